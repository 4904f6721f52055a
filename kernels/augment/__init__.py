"""Device code that makes a training batch from bytes."""
