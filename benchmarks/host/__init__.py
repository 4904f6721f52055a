"""The host's time of a call of an op, over Triton's launcher and a driver that does nothing."""
