"""The docs do what they say: every Python block of the README and the docs runs, every link has a target.

- A ```python block runs; blocks of one page share their names.
- A ```pycon block is a doctest: what it shows is compared.
- `<!-- python ... -->` runs unseen: set-up, and assertions about the block before.
- `<!-- needs: name -->` above a block skips the page where that package is not installed.
- `<!-- torchrun: n -->` above a block runs it as a script in n processes.
"""

from __future__ import annotations

import doctest
import importlib.util
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torchdfa

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(
    r"^(?:<!-- (?P<key>needs|torchrun): (?P<value>[\w ]+) -->\n)?```(?P<kind>python|pycon)\n(?P<code>.*?)^```$"
    r"|^<!-- python\n(?P<hidden>.*?)^-->$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"(?<!!)\[[^\]\n]+\]\(([^)\s]+)\)|!\[[^\]\n]*\]\(([^)\s]+)\)|<img[^>]*src=\"([^\"]+)\"")
FENCE = re.compile(r"^```.*?^```$|^<!--.*?-->$", re.MULTILINE | re.DOTALL)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def slug(heading: str) -> str:
    """Anchor of a heading, as GitHub and MyST form it."""
    plain = re.sub(r"[`*_]", "", heading.strip().lower())
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def run_doctest(code: str, names: dict, page: str, line: int) -> None:
    test = doctest.DocTestParser().get_doctest(code, names, page, page, line)
    test.globs = names  # shared, not copied
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False)
    runner.run(test, out=report.append, clear_globs=False)
    assert not report, "".join(report)


def run_processes(code: str, count: str, folder: Path) -> None:
    (folder / "script.py").write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for _ in range(3):
        done = subprocess.run(
            [*command, "script.py"], cwd=folder, env=environment, check=False, capture_output=True, text=True
        )
        # torch 2.10 aborts now and then when a process that used gloo ends, without torchdfa too.
        if done.returncode == 0 or "terminate called without an active exception" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr


# The examples with other frameworks run under those frameworks' own warnings.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [p for p in PAGES if BLOCK.search(p.read_text(encoding="utf-8"))], ids=name_of)
def test_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict = {"__name__": "__docs__"}
    text = page.read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start("code") if block["code"] else block.start("hidden")) + 1
        if block["key"] == "needs" and any(importlib.util.find_spec(n) is None for n in block["value"].split()):
            pytest.skip(f"{name_of(page)}:{line} needs {block['value']}")
        if block["key"] == "torchrun":
            run_processes(block["code"], block["value"], tmp_path)
        elif block["kind"] == "pycon":
            run_doctest(block["code"], names, name_of(page), line - 1)
        else:
            # padded so that tracebacks show the line of the page
            code = "\n" * (line - 1) + (block["code"] or block["hidden"])
            exec(compile(code, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_have_targets(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for groups in LINK.findall(text):
        target = next(filter(None, groups))
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path) if path else page
        assert linked.exists(), f"{name_of(page)}: {target}"
        if anchor and linked.suffix == ".md":
            found = linked.read_text(encoding="utf-8")
            anchors = {slug(h) for h in re.findall(r"^#+ (.*)$", FENCE.sub("", found), re.MULTILINE)}
            anchors |= set(re.findall(r"^\(([\w-]+)\)=$", found, re.MULTILINE))
            assert anchor in anchors, f"{name_of(page)}: {target}; {name_of(linked)} has {sorted(anchors)}"


def test_every_page_is_in_the_table_of_contents():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^([\w/-]+)$", "\n".join(re.findall(r"```{toctree}\n(.*?)```", index, re.DOTALL)), re.M))
    pages = {p.relative_to(ROOT / "docs").with_suffix("").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    included = {f"results/{name}/report" for name in ("tracking", "tracking-150", "tracking-forced")}
    tracking = (ROOT / "docs" / "tracking.md").read_text(encoding="utf-8")
    assert all(f"```{{include}} {page}.md" in tracking for page in included)
    assert pages - {"index"} - included <= listed


@pytest.mark.parametrize("name", [m.name for m in pkgutil.walk_packages(torchdfa.__path__, "torchdfa.")])
def test_docstring_examples(name):
    if name == "torchdfa.__main__":
        pytest.skip("runs the program when imported")
    if name == "torchdfa.ops.sign_mm_triton":
        pytest.importorskip("triton")
    module = importlib.import_module(name)
    failures, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert failures == 0


def test_rules_page_lists_every_rule():
    from torchdfa.rules import RULES

    table = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")
    for rule in RULES:
        assert f'| `"{rule}"`' in table, f"docs/rules.md lacks a row for {rule!r}"


def test_docs_name_every_public_function():
    api = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for name in torchdfa.__all__:
        assert f"torchdfa.{name}" in api, f"docs/api.md lacks torchdfa.{name}"


def test_programs_page_names_every_command_and_flag():
    typer = pytest.importorskip("typer")
    from torchdfa.cli import app

    page = (ROOT / "docs" / "programs.md").read_text(encoding="utf-8")
    for name, command in typer.main.get_command(app).commands.items():
        assert f"## torchdfa {name}\n" in page
        section = page.split(f"## torchdfa {name}\n")[1].split("\n## torchdfa ")[0]
        for flag in (o for p in command.params for o in (*p.opts, *p.secondary_opts) if o.startswith("--")):
            assert f"`{flag}`" in section, f"docs/programs.md lacks {flag} of {name}"
    named = re.findall(r"^## torchdfa (\w+)$", page, re.MULTILINE)
    assert named == list(typer.main.get_command(app).commands)
