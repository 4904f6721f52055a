"""Fused adversarial attacks and training for PyTorch."""

from fastadv import ops

__version__ = "0.1.0"
__all__ = ["ops"]
