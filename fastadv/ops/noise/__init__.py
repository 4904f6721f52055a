"""Counter-based randomness, and random starts made of it."""
