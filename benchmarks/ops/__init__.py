"""Single ops."""
