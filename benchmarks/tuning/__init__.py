"""What `fastadv.tune` finds, and what it is worth."""
