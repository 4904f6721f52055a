"""Whole attacks against every peer, timed and counted."""
