"""Downloads from a server on this machine: progress kept over a break, checksum before use, one clear sentence."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from torchdfa.errors import RunError
from torchdfa.train import download

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT and honours Range; breaks off after ``allowance`` bytes of a response."""

    daemon_threads = True
    content = CONTENT
    allowance = 10**9
    honours_range = True
    labels_gzip = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/set.tar.gz"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        start = int(wanted[len("bytes=") : -1]) if wanted and self.server.honours_range else 0
        rest = self.server.content[start:]
        if not rest:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            total = len(self.server.content)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if self.server.labels_gzip:
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: self.server.allowance])
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(server: Server, folder: Path) -> Path:
    return download.fetch(server.url, SHA256, len(CONTENT), folder)


def test_a_file_is_fetched_once(server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = fetch(server, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "set.tar.gz"
    assert path.read_bytes() == CONTENT
    assert "1.0/1.0 MB" in capfd.readouterr().err
    assert fetch(server, path.parent) == path
    assert server.asked == [None]
    assert {p.name for p in path.parent.iterdir()} <= {"set.tar.gz", "set.tar.gz.lock"}


def test_a_broken_download_goes_on_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.allowance = 300_000
    with pytest.raises(RunError, match=r"run the same command again to go on from .*set\.tar\.gz\.part"):
        fetch(server, tmp_path)
    part = tmp_path / "set.tar.gz.part"
    kept = part.stat().st_size
    assert 0 < kept <= 300_000
    assert part.read_bytes() == CONTENT[:kept]
    assert not (tmp_path / "set.tar.gz").exists()
    server.allowance = 10**9
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={kept}-"]
    assert not part.exists()


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set.tar.gz.part").write_bytes(b"other bytes")
    server.honours_range = False
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=11-"]


def test_a_part_that_is_whole_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set.tar.gz.part").write_bytes(CONTENT)
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == []


def test_an_archive_labelled_as_gzip_encoded_is_kept_as_it_is(server: Server, tmp_path: Path) -> None:
    server.labels_gzip = True
    assert fetch(server, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("wrong", [CONTENT[:-1] + b"?", CONTENT + b"more"])
def test_other_bytes_never_get_the_name(server: Server, tmp_path: Path, wrong: bytes) -> None:
    server.content = wrong
    with pytest.raises(RunError, match="is not the published file"):
        fetch(server, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} <= {"set.tar.gz.lock"}
    server.content = CONTENT
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_tampered_part_is_found_out_and_dropped(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set.tar.gz.part").write_bytes(b"x" * 1000)
    with pytest.raises(RunError, match="is not the published file"):
        fetch(server, tmp_path)
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_part_longer_than_what_the_server_has_is_dropped(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[:1000]
    (tmp_path / "set.tar.gz.part").write_bytes(CONTENT[:2000])
    with pytest.raises(RunError, match="416"):
        fetch(server, tmp_path)
    server.content = CONTENT
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_no_server_is_one_sentence_with_the_way_out(server: Server, tmp_path: Path) -> None:
    url = server.url.replace(str(server.server_port), "1")
    with pytest.raises(RunError, match=r"The download of http.* failed .*fetch .* by other means and use --data-dir"):
        download.fetch(url, SHA256, len(CONTENT), tmp_path)


def test_an_unwritable_folder_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RunError, match="file/sub cannot be written"):
        fetch(server, tmp_path / "file" / "sub")
    assert (tmp_path / "file").read_text() == "not a folder"


def test_two_at_once_fetch_once(server: Server, tmp_path: Path) -> None:
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(fetch(server, tmp_path).read_bytes())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT, CONTENT]
    assert server.asked == [None]
