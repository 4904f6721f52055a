"""FAB: the nearest point of a linearised decision boundary."""
