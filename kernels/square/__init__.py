"""Device code of Square's proposals and their acceptance."""
