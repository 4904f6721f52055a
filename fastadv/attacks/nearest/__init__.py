"""Searches for the nearest adversarial point: DDN, FMN and ALMA."""
