"""Benchmarks: run from the repository root, `python -m benchmarks.attacks`. See README.md here."""
