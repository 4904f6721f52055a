"""Steps recorded once as a CUDA graph and replayed: when to record, and the recording itself."""
