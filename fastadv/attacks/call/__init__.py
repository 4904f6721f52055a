"""What every call of an attack does: check, search, verify, account."""
