"""CIFAR from every local layout, from its address, and from files that are not what they should be."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torchdfa.errors import RunError, UsageError
from torchdfa.train import cifar, datasets, download

ROWS = 20  # images in a file of the small data sets below


def content(name: str, file: str) -> dict[str, Any]:
    layout = cifar.LAYOUTS[name]
    if file in layout.meta:
        return {layout.names_key: [f"class {k}" for k in range(layout.classes)]}
    rows, seed = layout.rows[file], sorted(layout.files).index(file)
    pixels = np.random.default_rng(seed).integers(0, 256, (rows, cifar.PIXELS), np.uint8)
    return {
        "data": pixels,
        layout.label_key: [(seed + k) % layout.classes for k in range(rows)],
        "filenames": ["a.png"],
    }


def write(name: str, root: Path) -> Path:
    folder = root / cifar.LAYOUTS[name].folder
    folder.mkdir(parents=True)
    for file in cifar.LAYOUTS[name].files:
        (folder / file).write_bytes(pickle.dumps(content(name, file), 4))
    return folder


def archive_of(folder: Path, path: Path) -> str:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small files under the real names; neither ./data nor the user's cache folder is looked into."""
    for name, layout in cifar.LAYOUTS.items():
        monkeypatch.setitem(
            cifar.LAYOUTS, name, dataclasses.replace(layout, rows=dict.fromkeys(layout.rows, ROWS), archive_sha256="0")
        )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cifar, "cache_folder", lambda: tmp_path / "cache")


def trust(monkeypatch: pytest.MonkeyPatch, name: str, sha256: str, size: int = 0) -> None:
    layout = dataclasses.replace(cifar.LAYOUTS[name], archive_sha256=sha256, archive_bytes=size)
    monkeypatch.setitem(cifar.LAYOUTS, name, layout)


def check(name: str, found: cifar.Cifar) -> None:
    layout = cifar.LAYOUTS[name]
    train = [content(name, file) for file in layout.train]
    test = [content(name, file) for file in layout.test]
    for parts, x, y in [(train, found.train_x, found.train_y), (test, found.test_x, found.test_y)]:
        assert np.array_equal(x.numpy(), np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32))
        assert y.tolist() == [label for part in parts for label in part[layout.label_key]]
        assert (x.dtype, y.dtype) == (torch.uint8, torch.int64)
    assert found.classes == tuple(f"class {k}" for k in range(layout.classes))


@pytest.mark.parametrize("name", list(cifar.LAYOUTS))
@pytest.mark.parametrize("place", ["the folder itself", "its parent", "its grandparent", "./data", "the cache"])
def test_folders_are_found_and_read(name: str, place: str, tmp_path: Path) -> None:
    root = {"its grandparent": tmp_path / "root" / name, "./data": tmp_path / "data", "the cache": tmp_path / "cache"}
    folder = write(name, root.get(place, tmp_path / "root"))
    data_dir = {"the folder itself": folder, "its parent": tmp_path / "root", "its grandparent": tmp_path / "root"}
    found = cifar.load(name, data_dir=data_dir.get(place), download=False)
    check(name, found)
    as_named = folder.relative_to(tmp_path) if place == "./data" else folder  # not where the machine keeps it
    assert found.source["path"] == str(as_named)
    assert set(found.source["sha256"]) == set(cifar.LAYOUTS[name].files)
    assert found.source["equals_published_files"] is False


def test_a_renamed_folder_is_read_when_it_is_named_itself(tmp_path: Path) -> None:
    folder = write("cifar10", tmp_path).rename(tmp_path / "mine")
    check("cifar10", cifar.load("cifar10", data_dir=folder, download=False))


@pytest.mark.parametrize("name", list(cifar.LAYOUTS))
def test_the_archive_is_read_where_it_lies_and_nothing_is_unpacked(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "root" / cifar.LAYOUTS[name].archive
    archive.parent.mkdir()
    trust(monkeypatch, name, archive_of(write(name, tmp_path / "elsewhere"), archive))
    for data_dir in (archive.parent, archive):
        check(name, cifar.load(name, data_dir=data_dir, download=False))
    assert list(archive.parent.iterdir()) == [archive]


def test_a_complete_folder_comes_before_an_archive_and_an_archive_before_a_half_unpacked_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write("cifar10", tmp_path / "root")
    archive = tmp_path / "root" / "cifar-10-python.tar.gz"
    trust(monkeypatch, "cifar10", archive_of(folder, archive))
    assert cifar.load("cifar10", data_dir=tmp_path / "root", download=False).source["path"] == str(folder)
    (folder / "test_batch").unlink()
    assert cifar.load("cifar10", data_dir=tmp_path / "root", download=False).source["path"] == str(archive)
    archive.unlink()
    with pytest.raises(UsageError, match=r"cifar-10-batches-py lacks test_batch; unpack cifar-10-python\.tar\.gz"):
        cifar.load("cifar10", data_dir=tmp_path / "root", download=False)


def test_missing_data_names_the_places_looked_at_and_the_ways_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        cifar.load("cifar10", data_dir=None, download=False)
    for part in (f"{tmp_path}/data or {tmp_path}/cache", "cifar-10-batches-py/", "--download", "--data-dir", "170 MB"):
        assert part in str(caught.value)
    with pytest.raises(UsageError, match="nowhere"):
        cifar.load("cifar100", data_dir=Path("nowhere"), download=False)


@pytest.mark.parametrize("data_dir", [None, Path("chosen")])
def test_the_download_is_asked_for_the_official_file_and_then_read(
    data_dir: Path | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "made.tar.gz"
    trust(monkeypatch, "cifar10", archive_of(write("cifar10", tmp_path / "elsewhere"), made), 123)
    asked = []

    def fetch(url: str, sha256: str, size: int, folder: Path) -> Path:
        asked.append((url, size))
        folder.mkdir(parents=True)
        return made.rename(folder / "cifar-10-python.tar.gz")

    monkeypatch.setattr(cifar, "fetch", fetch)
    check("cifar10", cifar.load("cifar10", data_dir=data_dir, download=True))
    check("cifar10", cifar.load("cifar10", data_dir=data_dir, download=True))
    assert asked == [("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", 123)]
    assert ((data_dir or tmp_path / "cache") / "cifar-10-python.tar.gz").is_file()


def test_an_archive_with_another_checksum_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive_of(write("cifar10", tmp_path / "elsewhere"), archive)
    monkeypatch.setattr(tarfile, "open", lambda *_: pytest.fail("opened"))
    with pytest.raises(UsageError, match=r"is not the published archive .* was not opened; delete it and fetch it"):
        cifar.load("cifar10", data_dir=tmp_path, download=True)


def test_members_with_unexpected_names_kinds_or_sizes_are_never_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write("cifar10", tmp_path / "elsewhere")
    archive = tmp_path / "cifar-10-python.tar.gz"

    def pack(*extra: tuple[tarfile.TarInfo, bytes]) -> None:
        with tarfile.open(archive, "w:gz") as file:
            for info, data in extra:
                info.size = len(data) if info.isreg() else 0
                file.addfile(info, io.BytesIO(data))
            file.add(folder, folder.name)
        trust(monkeypatch, "cifar10", hashlib.sha256(archive.read_bytes()).hexdigest())

    def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        return info

    before = {path for path in tmp_path.rglob("*") if path != archive}
    pack(
        (member("../escape"), b"x"),
        (member("/absolute"), b"x"),
        (member("cifar-10-batches-py/../escape"), b"x"),
        (member("cifar-10-batches-py/test_batch", tarfile.SYMTYPE, "/etc/passwd"), b""),
        (member("cifar-10-batches-py/data_batch_1", tarfile.FIFOTYPE), b""),
    )
    check("cifar10", cifar.load("cifar10", data_dir=tmp_path, download=False))
    assert {path for path in tmp_path.rglob("*") if path != archive} == before
    pack((member("cifar-10-batches-py/data_batch_2"), bytes(2**20 + ROWS * 4000)))
    with pytest.raises(UsageError, match="data_batch_2 of cifar10 has 1,128,576 bytes, more than it can need"):
        cifar.load("cifar10", data_dir=tmp_path, download=False)


def test_a_file_larger_than_it_can_need_is_not_read(tmp_path: Path) -> None:
    folder = write("cifar10", tmp_path)
    with (folder / "data_batch_3").open("r+b") as file:
        file.truncate(2**40)  # sparse: takes no room on the disk
    with pytest.raises(UsageError, match="data_batch_3 of cifar10 has 1,099,511,627,776 bytes"):
        cifar.load("cifar10", data_dir=tmp_path, download=False)


def changed(**values: Any) -> Callable[[dict[str, Any]], bytes]:
    return lambda entry: pickle.dumps({key: value for key, value in (entry | values).items() if value is not None}, 4)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("canary",)


@pytest.mark.parametrize(
    "file, change, sentence",
    [
        (
            "test_batch",
            changed(data=None),
            r"test_batch of cifar10 should hold uint8 images \(20, 3072\), but has a NoneT",
        ),
        ("test_batch", changed(data=np.zeros((19, 3072), np.uint8)), r"but has shape \(19, 3072\)"),
        ("test_batch", changed(data=np.zeros((20, 3, 1024), np.uint8)), r"but has shape \(20, 3, 1024\)"),
        ("test_batch", changed(data=np.zeros((20, 3072))), "not a CIFAR file: it builds something other than a uint8"),
        ("test_batch", changed(data=np.full((20, 3072), None)), "not a CIFAR file"),
        ("test_batch", changed(data=b"x" * 20 * 3072), "has a bytes"),
        ("test_batch", changed(data=[np.zeros((20, 3072), np.uint8)]), "has a list"),
        ("test_batch", changed(labels=None), "should hold a list of 20 labels"),
        ("test_batch", changed(labels=[1] * 19), "should hold a list of 20 labels"),
        ("test_batch", changed(labels=[10] * 20), r"has labels outside 0 \.\. 9"),
        ("test_batch", changed(labels=[-1] * 20), "has labels outside"),
        ("test_batch", changed(labels=[True] * 20), "has labels outside"),
        ("test_batch", changed(labels=["1"] * 20), "has labels outside"),
        (
            "test_batch",
            changed(data=Bomb()),
            r"test_batch is not a CIFAR file: it asks for 'posix.mkdir'; nothing in it",
        ),
        ("test_batch", lambda _: pickle.dumps([1], 4), "test_batch holds a list instead of CIFAR's dictionary"),
        (
            "test_batch",
            lambda entry: pickle.dumps(entry, 4)[:-1000],
            "test_batch is not a CIFAR file: it .*Get it again",
        ),
        ("test_batch", lambda _: b"", "test_batch is not a CIFAR file: it ends too early"),
        ("test_batch", lambda _: b"<!DOCTYPE html><html>", "test_batch is not a CIFAR file"),
        ("batches.meta", changed(label_names=None), "has no 10 names under label_names"),
        ("batches.meta", changed(label_names=["a"] * 10), "has no 10 names"),
        ("batches.meta", changed(label_names=list(range(10))), "has no 10 names"),
        ("batches.meta", changed(label_names=[f"\x1b[{k}m" for k in range(10)]), "has no 10 names"),
        ("batches.meta", lambda _: pickle.dumps(Bomb(), 4), "batches.meta is not a CIFAR file"),
    ],
)
def test_wrong_files_get_one_sentence_and_run_nothing(
    file: str, change: Callable[[dict[str, Any]], bytes], sentence: str, tmp_path: Path
) -> None:
    folder = write("cifar10", tmp_path)
    wrong = change(content("cifar10", file))
    (folder / file).write_bytes(wrong)
    with pytest.raises(UsageError, match=sentence):
        cifar.load("cifar10", data_dir=tmp_path, download=False)
    assert not (tmp_path / "canary").exists()
    assert (folder / file).read_bytes() == wrong


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files_raise_our_own_exceptions_only(tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / cifar.LAYOUTS["cifar10"].folder
    if not folder.exists():
        write("cifar10", tmp_path)
    file = folder / data.draw(st.sampled_from(["test_batch", "batches.meta"]))
    whole = file.read_bytes()
    damaged = bytearray(whole)
    edges = st.integers(0, 300) | st.integers(len(whole) - 300, len(whole) - 1)
    for place, value in data.draw(st.lists(st.tuples(edges, st.integers(0, 255)), min_size=1, max_size=3)):
        damaged[place % len(whole)] = value
    file.write_bytes(damaged[: data.draw(st.sampled_from([len(whole), len(whole) - 1, len(whole) // 2]))])
    try:
        found = cifar.load("cifar10", data_dir=tmp_path, download=False)
        assert found.test_x.shape == (ROWS, 3, 32, 32)
        assert 0 <= int(found.test_y.min()) <= int(found.test_y.max()) < 10
    except UsageError:
        pass
    finally:
        file.write_bytes(whole)


def test_a_truncated_archive_with_a_trusted_checksum_still_gets_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive_of(write("cifar10", tmp_path / "elsewhere"), archive)
    for cut in (archive.read_bytes()[:5000], b"no archive", b""):
        archive.write_bytes(cut)
        trust(monkeypatch, "cifar10", hashlib.sha256(cut).hexdigest())
        with pytest.raises(UsageError, match="cannot be read"):
            cifar.load("cifar10", data_dir=tmp_path, download=False)


def test_a_failed_download_is_a_run_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise download.requests.ConnectionError("no network")

    monkeypatch.setattr(download.requests, "get", refuse)
    with pytest.raises(RunError, match="no network"):
        cifar.load("cifar100", data_dir=tmp_path, download=True)


@pytest.mark.slow
def test_the_real_data_sets_read_as_published(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    root = shared_data
    if not (root / "cifar-10-batches-py").is_dir():
        if not (root / "unpack.py").is_file():
            pytest.skip(f"{root} holds neither CIFAR nor the script that unpacks it")
        subprocess.run([sys.executable, root / "unpack.py", "--out", tmp_path], check=True, capture_output=True)
        root = tmp_path
    ten = datasets.load("cifar10", data_dir=root)
    assert (ten.train_x.shape, ten.test_x.shape) == ((50_000, 3, 32, 32), (10_000, 3, 32, 32))
    assert ten.train_y.bincount().tolist() == [5000] * 10
    assert ten.classes[:2] == ("airplane", "automobile")
    assert [round(value, 4) for value in ten.mean + ten.std] == [0.4914, 0.4822, 0.4465, 0.2470, 0.2435, 0.2616]
    assert ten.train_y[:6].tolist() == [6, 9, 9, 4, 1, 1]
    assert ten.train_x[0, :, 0, 0].tolist() == [59, 62, 63]
    hundred = datasets.load("cifar100", data_dir=root)
    assert hundred.source["equals_published_files"] is True
    assert hundred.train_y.bincount().tolist() == [500] * 100
    assert hundred.classes[:2] == ("apple", "aquarium_fish")
