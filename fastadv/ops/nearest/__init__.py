"""Attacks that look for the nearest adversarial point: verdict on a point, and the next one."""
