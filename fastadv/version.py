"""The version of this package, as reports and checkpoints record it."""

__version__ = "0.1.0"
