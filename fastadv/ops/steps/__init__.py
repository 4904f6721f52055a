"""One PGD step in L-infinity, L2 and L1, and the choice of rows."""
