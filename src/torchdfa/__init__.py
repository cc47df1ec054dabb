"""Direct feedback alignment for any PyTorch model (Han & Yoo, 2019)."""

from torchdfa import diagnostics
from torchdfa.convert import backprop, convert_, refresh_feedback_, restore_
from torchdfa.errors import ConversionError, RunError, UsageError
from torchdfa.ops import kernels
from torchdfa.optim import InBackwardSGD
from torchdfa.report import Report, report

__version__ = "0.1.0"

__all__ = [
    "ConversionError",
    "InBackwardSGD",
    "Report",
    "RunError",
    "UsageError",
    "backprop",
    "convert_",
    "diagnostics",
    "kernels",
    "refresh_feedback_",
    "report",
    "restore_",
]
