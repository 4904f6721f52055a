"""Searches for the nearest adversarial point: DDN and FMN."""
