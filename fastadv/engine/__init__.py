"""Runs slot algorithms over work items: the plain loop and continuous batching."""
