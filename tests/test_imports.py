"""The layering of the source: imports go down one list, and the library needs torch alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import torchdfa
from environments import torch_needs

PACKAGE = Path(torchdfa.__file__).parent

# The core from bottom to top: each module imports only from those before it.
CORE = (
    "errors",
    "counter",
    "bits",
    "ops",
    "feedback",
    "seeded",
    "rules",
    "settings",
    "updates",
    "layers",
    "graph",
    "tracing",
    "probe",
    "head",
    "initial",
    "convert",
    "report",
    "diagnostics",
    "optim",
    "__init__",
)
# Imported at the first product on a GPU, never before; torch for CUDA brings Triton along.
TRITON = PACKAGE / "ops" / "sign_mm_triton.py"
# The programs may import the core; the core never knows them.
VISITORS = ("train", "runner", "paper", "online", "track", "bench", "cli", "__main__")

SMOKE = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

allowed = set(ALLOWED) | sys.stdlib_module_names
sys.meta_path.insert(0, Block())
import torch
import torchdfa
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
torchdfa.convert_(model, "bdfa", init="product")
loss = nn.functional.cross_entropy(model(torch.ones(2, 4)), torch.zeros(2, dtype=torch.long))
loss.backward()
assert model[0].weight.grad.abs().sum() > 0
assert torchdfa.report(model).feedback_bytes > 0
assert not {m for m in sys.modules if m.startswith(("torchdfa.train", "torchdfa.cli", "torchdfa.ops.sign_mm_triton"))}
print("fine")
"""


def top(path: Path) -> str:
    """The room a source file belongs to: its first folder or its own name."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def sources(rooms: tuple[str, ...]) -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if top(path) in rooms]


def imported(path: Path) -> set[str]:
    """Full names of everything `path` imports, inside functions and TYPE_CHECKING blocks too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; name the module in full"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def rooms_used(path: Path) -> set[str]:
    """Rooms of torchdfa that `path` imports from; `from torchdfa import x` counts for x, or for the door."""
    rooms = set()
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "torchdfa":
            known = len(parts) > 1 and parts[1] in CORE + VISITORS
            rooms.add(parts[1] if known else "__init__")
    return rooms - {top(path)}


def test_every_module_has_a_place():
    unknown = {top(path) for path in PACKAGE.rglob("*.py")} - set(CORE) - set(VISITORS)
    assert not unknown, f"place {unknown} in CORE or VISITORS"


@pytest.mark.parametrize("path", sources(CORE), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    below = set(CORE[: CORE.index(top(path))])
    assert rooms_used(path) <= below


@pytest.mark.parametrize("path", sources(CORE), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_core_imports_torch_alone(path):
    third_party = {name.partition(".")[0] for name in imported(path)} - sys.stdlib_module_names
    assert third_party <= {"torch", "torchdfa"} | ({"triton"} if path == TRITON else set())


def test_torchdfa_works_with_every_other_package_blocked():
    allowed = sorted(torch_needs() | {"torchdfa"})
    assert not {"numpy", "rich", "lightning_fabric"} & set(allowed)
    code = SMOKE.replace("ALLOWED", repr(allowed))
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stdout == "fine\n", done.stderr


def test_import_is_quiet_and_touches_no_gpu():
    code = "import torch, torchdfa; print(torch.cuda.is_initialized())"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")
