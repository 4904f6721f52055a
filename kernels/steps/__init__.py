"""Device code of the PGD steps: L-infinity, L2, L1, momentum, and the choice of rows."""
