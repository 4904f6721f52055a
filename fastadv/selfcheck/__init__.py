"""Every kernel against its reference on the device at hand: `fastadv info --check`."""
