"""What a model that clamps its input costs attacks, under both rules of PyTorch."""
