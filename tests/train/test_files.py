from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from torchdfa.errors import RunError
from torchdfa.train.files import replacing, write_bytes, write_json


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_written_file_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a.bin"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:  # noqa: PT012
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_json_is_plain_and_refuses_nan(tmp_path):
    write_json(tmp_path / "a.json", {"é": [1, 2.5, None]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"é": [1, 2.5, None]}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert names(tmp_path) == ["a.json"]


def test_a_folder_that_is_gone_is_named(tmp_path):
    with pytest.raises(RunError, match=r"gone.a\.json could not be written"):
        write_json(tmp_path / "gone" / "a.json", {})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full to stand for a full disk")
def test_a_full_disk_is_named_and_the_old_file_kept(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(RunError, match="No space left"), replacing(path) as temporary:  # noqa: PT012
        temporary.symlink_to("/dev/full")
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    """kill -9 at many moments: the file holds one of the two contents, never a part."""
    path = tmp_path / "a.bin"
    write_bytes(path, b"0" * 10**6)
    program = (
        "import sys; from pathlib import Path; from torchdfa.train.files import write_bytes\n"
        "print('ready', flush=True)\n"
        "for i in range(10**6): write_bytes(Path(sys.argv[1]), (b'%d' % (i % 2)) * 10**6)"
    )
    for pause in (0.001, 0.007, 0.03):
        with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(pause)
            writer.send_signal(signal.SIGKILL)
        content = path.read_bytes()
        assert content in (b"0" * 10**6, b"1" * 10**6)
