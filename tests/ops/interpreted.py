"""Products by Triton's interpreter, in a process of its own: it must be chosen before Triton is imported.

Run with the path of a file of arguments, (error, bits, n, programs) each; the products are written over it.
"""

from __future__ import annotations

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton.language as tl

from torchdfa.ops.sign_mm_triton import product

torch.set_num_threads(1)
cases = torch.load(sys.argv[1])
operands = {torch.float16: tl.float16, torch.float32: tl.float32}
torch.save([product(*case, operands[case[0].dtype]) for case in cases], sys.argv[1])
