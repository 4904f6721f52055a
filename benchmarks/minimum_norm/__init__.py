"""How near minimum-norm attacks come to the nearest adversarial examples that are known."""
