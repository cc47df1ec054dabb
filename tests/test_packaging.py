"""The wheel as a user gets it: complete, working beside torch alone, naming what else it lacks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import requires, version
from pathlib import Path

import pytest

import torchdfa
from environments import torch_needs
from torchdfa.ops import cpu

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links torch into a second environment")


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run([*map(str, command)], cwd=cwd, env=clean, check=False, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from an sdist so that neither can lack a file, in a copy of the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", folder / "tree" / "src", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "tree")
    done = run(sys.executable, "-m", "build", "--no-isolation", "-o", folder / "dist", "tree", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def alone(wheel, tmp_path_factory) -> Path:
    """The Python of an environment that holds the wheel, torch and what torch needs, nothing else."""
    folder = tmp_path_factory.mktemp("alone")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    done = run(
        *(sys.executable, "-m", "pip", "--python", python),
        *("install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", wheel),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    here = Path(sys.modules["torch"].__file__).parents[1]  # torch is linked, not downloaded again
    for name in torch_needs():
        for source in (here / name, here / f"{name}.py"):
            if source.exists() and not (site / source.name).exists():
                (site / source.name).symlink_to(source)
    return python


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {"torchdfa/py.typed", *(f"torchdfa/ops/{source}" for source in cpu.SOURCES)} <= set(names)
    assert {n.split("/")[0] for n in names} == {"torchdfa", f"torchdfa-{torchdfa.__version__}.dist-info"}
    assert any(n.endswith("licenses/LICENSE") for n in names)
    packed = {n.removeprefix("torchdfa/") for n in names if n.endswith(".py")}
    package = ROOT / "src" / "torchdfa"
    assert packed == {str(p.relative_to(package)) for p in package.rglob("*.py")}


def test_torch_is_the_only_requirement():
    assert version("torchdfa") == torchdfa.__version__
    assert [r for r in requires("torchdfa") if "extra ==" not in r] == ["torch>=2.10"]


def test_library_works_alone(alone, tmp_path):
    code = """
import torch, torchdfa
from torch import nn
model = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
torchdfa.convert_(model, "bdfa", init="product")
model(torch.ones(2, 1, 2, 2)).sum().backward()
print(torchdfa.__version__, model[1].weight.grad.shape)
"""
    done = run(alone, "-c", code, cwd=tmp_path)
    assert done.stdout.split("\n")[0] == f"{torchdfa.__version__} torch.Size([8, 4])", done.stderr


def test_program_names_the_extra_it_lacks(alone, tmp_path):
    done = run(alone.parent / "torchdfa", "train", cwd=tmp_path)
    assert done.returncode == 2
    # torch 2.10 itself warns, in lines of its own, where numpy is missing.
    assert done.stderr.splitlines()[-1] == "torchdfa: this command needs typer: pip install 'torchdfa[train]'"
    assert "Traceback" not in done.stderr
