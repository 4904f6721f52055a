"""Models that are no plain image classifiers, attacked by what each task calls a failure."""
