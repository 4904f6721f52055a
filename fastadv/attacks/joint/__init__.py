"""Searches for the nearest adversarial example that join several attacks: minimum_norm."""
