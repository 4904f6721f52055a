"""Device code of counter-based randomness, and of random starts."""
