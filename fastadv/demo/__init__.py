"""A standard and a robust network under attack, in pictures."""
