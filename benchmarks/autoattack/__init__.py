"""AutoAttack against its authors' code."""
