"""Training steps, epochs and whole runs."""
