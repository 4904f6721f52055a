"""Triton device code, launch grids and ahead-of-time signatures; imported as `fastadv.kernels`."""
