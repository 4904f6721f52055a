"""APGD's steps in three norms, and its schedule."""
