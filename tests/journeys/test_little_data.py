"""The one with little data: a folder of photos, two rules, a comparison, a model file that works elsewhere."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from torchdfa.cli import main
from torchdfa.train import runs

CLASSES = ("checks", "columns", "rows")
PHOTOS = 20  # of each class, the odd ones among them
TRAIN = ["--model", "cnn", "--image-size", "16", "--fc-width", "32", "--epochs", "12", "--batch-size", "16",
         "--threads", "1", "--lr", "0.02"]  # fmt: skip


def pattern(name, seed):
    """RGB pixels (40, 48, 3) of stripes or checks in two random colours."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:40, :48] // 8 % 2
    mask = {"rows": y, "columns": x, "checks": x ^ y}[name][..., None]
    dark, light = random.integers(0, 90, 3), random.integers(160, 256, 3)
    return (np.where(mask, light, dark) + random.integers(-20, 20, (40, 48, 3))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The folder where everything happens, with photos/ as a user has them."""
    home = tmp_path_factory.mktemp("home")
    for i, name in enumerate(CLASSES):
        (home / "photos" / name).mkdir(parents=True)
        for j in range(PHOTOS):
            image = Image.fromarray(pattern(name, 100 * i + j))
            image.save(home / "photos" / name / f"IMG {j:02d}.jpg", quality=90)
    odd(home / "photos")
    return home


def odd(photos):
    """One grey photo, one CMYK, one that lies on its side and says so in EXIF, one broken, one formula."""
    Image.fromarray(pattern("rows", 1000)).convert("L").save(photos / "rows" / "grey.jpg")
    Image.fromarray(pattern("checks", 1001)).convert("CMYK").save(photos / "checks" / "cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    Image.fromarray(pattern("rows", 1002)).rotate(90, expand=True).save(photos / "rows" / "turned.jpg", exif=exif)
    whole = (photos / "rows" / "IMG 00.jpg").read_bytes()
    (photos / "columns" / "broken.jpg").write_bytes(whole[: len(whole) // 3])
    Image.fromarray(pattern("columns", 1003)).save(photos / "columns" / "=1+1.png")


def hashes(folder):
    return {path: hashlib.sha256(path.read_bytes()).digest() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def trained(home):
    """The two run folders and what training said on its way."""
    before, said = hashes(home / "photos"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for rule in ("bdfa", "bp"):
            out = io.StringIO()
            with redirect_stdout(out), redirect_stderr(out):
                assert main(["train", "--data", "photos/", "--rule", rule, *TRAIN]) == 0
            said[rule] = out.getvalue()
    assert hashes(home / "photos") == before
    folders = {rule: next((home / "runs").glob(f"*{label}*")) for rule, label in (("bdfa", "CBDFA"), ("bp", "BP-s"))}
    return folders, said


@pytest.fixture
def there(home, trained, monkeypatch):
    monkeypatch.chdir(home)
    return trained[0]


def test_the_broken_photo_is_named_and_the_others_are_used(trained):
    folders, said = trained
    for rule, folder in folders.items():
        source = json.loads((folder / "config.json").read_text())["data"]["source"]
        assert [item["file"] for item in source["skipped"]] == ["columns/broken.jpg"]
        assert "columns/broken.jpg" in said[rule]
        used = set(source["train_files"]) | set(source["test_files"])
        assert {"rows/grey.jpg", "rows/turned.jpg", "checks/cmyk.jpg", "columns/=1+1.png"} <= used
        assert len(used) == 3 * PHOTOS + 4


def test_no_photo_is_both_trained_and_tested_on(trained):
    for folder in trained[0].values():
        source = json.loads((folder / "config.json").read_text())["data"]["source"]
        assert not set(source["train_files"]) & set(source["test_files"])
        assert 9 <= len(source["test_files"]) <= 16
        for name in CLASSES:
            assert sum(file.startswith(f"{name}/") for file in source["test_files"]) >= 3


def test_both_rules_learn_and_say_how_sure_that_is(trained):
    folders, said = trained
    for rule, folder in folders.items():
        result = json.loads((folder / "result.json").read_text())
        assert result["top1"] >= 75
        assert result["balanced_accuracy"] >= 75
        confusion = np.array(result["confusion"])
        assert confusion.shape == (3, 3)
        assert 100 * confusion.trace() / confusion.sum() == pytest.approx(result["top1"])
        assert "95 %" in said[rule]


def test_pictures_of_a_run(trained):
    for folder in trained[0].values():
        for name in ("curves.png", "confusion.png", "worst.png"):
            with Image.open(folder / name) as picture:
                assert min(picture.size) >= 300
        assert runs.verify(folder) >= 7


def test_compare_shows_both_in_one_table_and_picture(there, capsys):
    assert main(["compare", str(there["bdfa"]), str(there["bp"]), "--out", "both.png"]) == 0
    said = capsys.readouterr().out
    assert "CBDFA product" in said
    assert "data photos, model cnn, epochs 12" in said
    assert "interval" in said
    rows = json.loads(Path("both.json").read_text())
    assert [row["rule"] for row in rows] == ["CBDFA product", "BP"]
    with Image.open("both.png") as picture:
        assert picture.size[0] > 1000
    for folder in there.values():
        runs.verify(folder)


def test_predict_writes_a_line_for_each_photo(there, capsys):
    before = hashes(there["bdfa"].parents[1] / "photos")
    assert main(["predict", str(there["bdfa"]), "photos", "--out", "found.csv"]) == 0
    said = capsys.readouterr().out
    assert hashes(there["bdfa"].parents[1] / "photos") == before
    written = io.StringIO(Path("found.csv").read_text(encoding="utf-8"), newline="")
    lines = {line["path"]: line for line in csv.DictReader(written)}
    assert len(lines) == 3 * PHOTOS + 5
    assert lines["photos/columns/broken.jpg"]["class"] == ""
    assert "broken" in lines["photos/columns/broken.jpg"]["left_out_because"]
    assert f"{3 * PHOTOS + 4} photo(s) classified, 1 left out: photos/columns/broken.jpg" in said
    tested = json.loads((there["bdfa"] / "config.json").read_text())["data"]["source"]["test_files"]
    new = {path for path, line in lines.items() if line["trained_on"] == "no" and line["class"]}
    assert new == {f"photos/{name}" for name in tested}
    top1 = json.loads((there["bdfa"] / "result.json").read_text())["top1"]
    right = sum(lines[path]["class"] == lines[path]["true_class"] for path in new)
    assert 100 * right / len(new) == pytest.approx(top1, abs=100 / len(new))  # bf16 in training, fp32 here
    assert f"right of the {len(new)} photo(s) in a folder named like a class (95 % interval" in said


def test_three_lines_of_plain_code_load_and_use_the_model(there):
    program = (
        "from torchdfa.train import load_model\n"
        f"model = load_model({str(there['bdfa'])!r})\n"
        "print(model.predict('photos/rows/turned.jpg'), model.predict('photos/rows/grey.jpg').label)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=240)
    label, *_, grey = found.stdout.split()
    assert (label, grey) == ("rows", "rows")


def test_wrong_turns_end_in_one_sentence(there, capsys):
    run, wrong = str(there["bdfa"]), "no such folder"
    for arguments in (
        ["train", "--data", wrong, *TRAIN],
        ["train", "--data", "photos", "--out", run, "--rule", "bdfa", *TRAIN],
        ["compare", wrong],
        ["compare", run, wrong],
        ["compare", run, "--out", f"{run}/c.png"],
        ["predict", wrong, "photos"],
        ["predict", run, wrong],
        ["predict", "photos", "photos"],
        ["predict", run, "photos", "--out", f"{run}/found.csv"],
    ):
        assert main(arguments) == 2, arguments
        said = capsys.readouterr().err.strip()
        assert said.startswith("torchdfa: ")
        assert "\n" not in said
    for folder in there.values():
        runs.verify(folder)
