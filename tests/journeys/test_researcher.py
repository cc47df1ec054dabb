"""The researcher: her own module, optimizer, autocast and loop, in a script of her own; one line more."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = '''
import torch
from torch import nn
from torch.nn import functional as F
import torchdfa


class Net(nn.Module):
    """A convolution and a head of three layers that an attribute, not a Sequential, holds."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        self.fc1, self.fc2, self.out = nn.Linear(144, 64), nn.Linear(64, 48), nn.Linear(48, 4)

    def forward(self, x, temperature=1.0):
        x = F.relu(self.fc1(self.stem(x)))
        return self.out(F.relu(self.fc2(x))) / temperature


torch.manual_seed(0)
model = Net()
count, names = sum(p.numel() for p in model.parameters()), [n for n, _ in model.named_parameters()]
{line}
assert (count, names) == (sum(p.numel() for p in model.parameters()), [n for n, _ in model.named_parameters()])
print(model)
print(torchdfa.report(model))

optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=60)
centres = torch.randn(4, 1, 8, 8)
for step in range(60):
    y = torch.randint(4, (32,))
    x = centres[y] + torch.randn(32, 1, 8, 8)
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(model(x, temperature=2.0), y)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
y = torch.randint(4, (400,))
print("accuracy", (model.eval()(centres[y] + torch.randn(400, 1, 8, 8)).argmax(1) == y).float().mean().item())
'''


def run(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    script = folder / "train.py"
    script.write_text(SCRIPT.replace("{line}", line))
    command = [sys.executable, "-W", "error", script.name]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def rows(table: str) -> dict[str, list[str]]:
    """Rule and source of the error of each layer, as `report` prints them."""
    lines = [re.split(r" {2,}", line.strip()) for line in table.splitlines()]
    return {cells[0]: cells[1:3] for cells in lines if len(cells) == 8}


@pytest.mark.parametrize(
    "line, hidden",
    [
        ('torchdfa.convert_(model, "bdfa", init="product")', ["bdfa", "feedback at the input of fc2"]),
        ('torchdfa.convert_(model, "fa")', ["fa", "feedback at the input of fc2"]),
    ],
)
def test_one_line_in_her_own_script(tmp_path: Path, line: str, hidden: list[str]) -> None:
    done = run(tmp_path, line)
    assert (done.returncode, done.stderr) == (0, "")
    shown, _, table = done.stdout.partition("\nrule=")
    assert [name for name in ("stem", "fc1", "fc2", "out") if f"({name}): Feedback" in shown] == ["fc1", "fc2", "out"]
    assert rows(table)["fc1"] == hidden
    assert rows(table)["out"] == ["bp", "the loss"]
    assert float(done.stdout.split()[-1]) > 0.9


@pytest.mark.parametrize(
    "arguments, words",
    [
        ('"bdfa", init="orthogonal"', "init='orthogonal' must be one of 'random', 'product'"),
        ('"hebb"', "rule='hebb' must be one of"),
        ('"dfa", layers=["fc9"]', "'fc9', which is not a Linear or convolution; it may list: ['stem.0', 'fc1'"),
    ],
)
def test_a_wrong_word_ends_before_training_with_a_sentence(tmp_path: Path, arguments: str, words: str) -> None:
    done = run(tmp_path, f"torchdfa.convert_(model, {arguments})")
    said = done.stderr.strip().splitlines()[-1]
    assert (done.returncode, done.stdout) == (1, "")
    assert said.startswith("torchdfa.errors.ConversionError: ")
    assert words in said
