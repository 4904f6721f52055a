"""FAB's projection onto a hyperplane in the box, step, and nearest point."""
