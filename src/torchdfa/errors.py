"""The exceptions torchdfa raises on purpose; each carries one sentence with the way out."""

from __future__ import annotations


class ConversionError(ValueError):
    """A model, or an argument about it, that cannot be converted."""


class UsageError(ValueError):
    """A wrong argument, path or file given to a program (exit code 2)."""


class RunError(RuntimeError):
    """A program that failed while it ran (exit code 1)."""
