"""Which files of a folder are taken for photos of which class."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from torchdfa.errors import UsageError
from torchdfa.train.scan import readable, scan


def tree(root: Path, *files: str) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if file.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.touch()
    return root


def found(root: Path) -> dict[str, list[str]]:
    return {name: [path.relative_to(root).as_posix() for path in paths] for name, paths in scan(root).train.items()}


def test_classes_and_photos_come_in_order_from_any_depth_and_spelling(tmp_path: Path) -> None:
    tree(tmp_path, "b/2.JPG", "b/1.png", "a/x/y/3.WebP", "a/10.jpeg")
    assert found(tmp_path) == {"a": ["a/10.jpeg", "a/x/y/3.WebP"], "b": ["b/1.png", "b/2.JPG"]}


def test_hidden_files_and_other_files_are_passed_over_and_counted(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.jpg", "b/1.jpg", "a/._1.jpg", "a/.cache/2.jpg", ".git/3.jpg", "__MACOSX/a/1.jpg")
    tree(tmp_path, "a/notes.txt", "a/Thumbs.db", "b/film.mp4", "readme.md", "a/noextension")
    result = scan(tmp_path)
    assert {name: len(paths) for name, paths in result.train.items()} == {"a": 1, "b": 1}
    assert {k: v for k, v in result.ignored.items() if v} == {"hidden": 5, "not photos": 3, "not in a class folder": 1}
    assert result.warnings == []


def test_photos_without_a_class_are_told(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.jpg", "b/1.jpg", "loose.jpg", "loose.png", "list.csv")
    assert scan(tmp_path).warnings == [
        f"2 photo(s) directly in {tmp_path.name}/ have no class folder and were not used."
    ]


@pytest.mark.parametrize("test", ["test", "val", "Validation", "valid"])
def test_ready_made_parts_are_taken(test: str, tmp_path: Path) -> None:
    tree(tmp_path, "Train/a/1.jpg", "Train/b/1.jpg", f"{test}/a/2.jpg", f"{test}/b/2.jpg", "readme.txt")
    result = scan(tmp_path)
    assert [path.as_posix() for path in result.train["a"]] == [f"{tmp_path}/Train/a/1.jpg"]
    assert result.test is not None
    assert [path.as_posix() for path in result.test["b"]] == [f"{tmp_path}/{test}/b/2.jpg"]


def test_test_comes_before_val_and_the_unused_part_is_told(tmp_path: Path) -> None:
    tree(tmp_path, *(f"{part}/{name}/1.jpg" for part in ("train", "val", "test") for name in "ab"))
    result = scan(tmp_path)
    assert result.test is not None
    assert result.test["a"] == [tmp_path / "test/a/1.jpg"]
    assert result.warnings == ["val/ was not used: test/ is the test set."]


@pytest.mark.parametrize(
    "files, sentence",
    [
        ([], r"at least two class folders with photos in them .*, but has none"),
        (["1.jpg", "2.jpg"], "but has none"),
        (["only/1.jpg"], "but has one, only"),
        (["train/a/1.jpg", "train/b/1.jpg"], "or train/ and test/ that do, but has one, train"),
        (["a/1.jpg", "b/"], "class b has no photos; add some or remove its folder"),
        (["a/1.jpg", "b/notes.txt"], "class b has no photos"),
        (["train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "test/b/"], "test part: class b has no photos"),
        (["train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg"], "same classes .*, but b is in one alone"),
        (["train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "test/b/1.jpg", "test/c/1.jpg"], "but c is in one alone"),
        (["train/a/1.jpg", "test/a/1.jpg", "bus/1.jpg"], "not clear which are classes"),
        (["a/1.jpg", "b/2.heic", "b/3.HEIC"], r"has 2 HEIC photo\(s\), such as b/2.heic: .* convert to JPEG"),
    ],
)
def test_folders_that_cannot_serve_get_one_sentence(files: list[str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        scan(tree(tmp_path, *files))
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


def link_inside(root: Path) -> None:
    (root / "a/again").symlink_to(root)
    (root / "a/self").symlink_to(root / "a/self")
    (root / "a/up").symlink_to("..")


def link_beside(root: Path) -> None:
    (root / "loop").symlink_to(root)
    (root / "parent").symlink_to(root.parent)
    (root / "self").symlink_to("self")


@pytest.mark.parametrize("link", [link_inside, link_beside])
def test_links_in_circles_do_not_hang_and_add_nothing(link: Callable[[Path], None], tmp_path: Path) -> None:
    root = tree(tmp_path / "root", "a/1.jpg", "b/1.jpg")
    before = found(root)
    link(root)
    result = scan(root)
    assert found(root) == before
    assert result.ignored["linked folders"] == 2


def test_linked_class_folders_and_linked_photos_are_followed(tmp_path: Path) -> None:
    store = tree(tmp_path / "store", "cats/1.jpg", "2.jpg")
    root = tree(tmp_path / "root", "dog/1.jpg")
    (root / "cat").symlink_to(store / "cats")
    (root / "dog/2.jpg").symlink_to(store / "2.jpg")
    assert found(root) == {"cat": ["cat/1.jpg"], "dog": ["dog/1.jpg", "dog/2.jpg"]}


@pytest.mark.parametrize("names", [("training_set", "test_set"), ("val", "test"), ("a", "b", "c")])
def test_parts_by_other_names_are_not_taken_for_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    tree(tmp_path, *(f"{part}/{name}/1.jpg" for part in names for name in ("cat", "dog")))
    with pytest.raises(UsageError, match="look like parts of the data, not classes; name them train/ and test/"):
        scan(tmp_path)


def test_classes_whose_photos_lie_in_one_folder_of_the_same_name_are_classes(tmp_path: Path) -> None:
    tree(tmp_path, "a/img/1.jpg", "b/img/1.jpg")
    assert set(found(tmp_path)) == {"a", "b"}


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "a/1.jpg", "b/locked/1.jpg")
    whole = os.scandir

    def scandir(path: str | Path) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UsageError, match=r"b/locked cannot be read \(Permission denied\); check its permissions"):
        scan(tmp_path)


def test_names_of_any_bytes_become_text_that_can_be_printed_and_written(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path)
    for name in (b"caf\xe9", b"na\xc3\xafve", b"\x1b[31m"):
        tree(Path(os.fsdecode(raw + b"/" + name)), "1.jpg")
    assert sorted(scan(tmp_path).train) == ["\\x1b[31m", "caf\\udce9", "naïve"]
    assert readable("a/ü b.jpg") == "a/ü b.jpg"
