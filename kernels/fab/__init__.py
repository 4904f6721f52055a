"""Device code of FAB: projection onto a hyperplane in the box, step, nearest point."""
