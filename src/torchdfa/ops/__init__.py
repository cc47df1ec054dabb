"""Operators with a schema, a fake and a reference kernel in plain torch."""

from torchdfa.ops.sign_mm import sign_mm

__all__ = ["sign_mm"]
