"""What the networks' constructors refuse."""


def require_positive(**counts: int) -> None:
    """Raises ValueError, naming it, for the first of counts that is below 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1; got {count}.")
