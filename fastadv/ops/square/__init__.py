"""Square's proposals in three norms, and their acceptance."""
