"""Measures how a model is attacked fastest: batch size, layout, folding, precision."""
