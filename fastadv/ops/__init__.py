"""Ops: each a schema, an eager reference that defines it, and a Triton launch."""

from fastadv.ops.backend import use_backend
from fastadv.ops.linf import linf_step, linf_step_, linf_step_reference

__all__ = ["linf_step", "linf_step_", "linf_step_reference", "use_backend"]
