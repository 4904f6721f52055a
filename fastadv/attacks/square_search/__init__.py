"""Square: random search that asks for logits only."""
