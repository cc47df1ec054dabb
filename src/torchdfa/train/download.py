"""Fetch one published file: pooch compares its checksum before anyone opens it, a broken download goes on later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pooch
import requests
from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from urllib3.exceptions import HTTPError

from torchdfa.errors import RunError

CHUNK_BYTES = 2**18
TIMEOUT_SECONDS = 30


def cache_folder() -> Path:
    """Where downloads go without a folder of the user's: the system's cache folder for torchdfa."""
    return Path(pooch.os_cache("torchdfa"))


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return str(pooch.file_hash(str(path), alg="sha256"))


def fetch(url: str, known_sha256: str, size: int, folder: Path) -> Path:
    """Download ``url`` (``size`` bytes) into ``folder``, or take up a download that broke off there.

    Bytes gather in NAME.part beside the target; only a whole file whose checksum fits gets its name. Raises RunError.
    """
    target = folder / url.rsplit("/", 1)[-1]
    part = target.with_name(target.name + ".part")
    pooch.get_logger().setLevel("WARNING")  # the progress bar says what pooch would
    way_out = f"run the same command again to go on from {part}, or fetch {url} by other means and use --data-dir."
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(target.name + ".lock")):  # two programs may want the same file
            pooch.retrieve(
                url,
                known_hash=f"sha256:{known_sha256}",
                fname=target.name,
                path=folder,
                downloader=_Resumable(part, size),
            )
    except ValueError as error:  # pooch's word for a wrong checksum; it has deleted what came
        raise RunError(
            f"What came from {url} is not the published file (its sha256 differs) and was deleted; try again later."
        ) from error
    except (requests.RequestException, HTTPError) as error:
        raise RunError(f"The download of {url} failed ({error}); {way_out}") from error
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error}); make room, or name another with --data-dir.") from error
    return target


class _Resumable:
    """A pooch downloader. pooch's own starts from the first byte each time, over an hour on a slow line."""

    def __init__(self, part: Path, size: int) -> None:
        self.part, self.size = part, size

    def __call__(self, url: str, output_file: str, _: Any) -> None:
        have = self.part.stat().st_size if self.part.exists() else 0
        if have > self.size:
            self.part.unlink()
            have = 0
        if have < self.size:
            self._download(url, have)
        self.part.replace(output_file)

    def _download(self, url: str, have: int) -> None:
        # "identity": a server that would label the archive as gzip-encoded must not have it unpacked on the way.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
            if response.status_code == 416:  # the server has less than we: what we have is another file
                self.part.unlink()
            response.raise_for_status()
            resumed = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            if response.status_code != 206 or not resumed:
                have = 0
            with self.part.open("ab" if have else "wb") as file, _progress() as progress:
                task = progress.add_task(self.part.stem, total=self.size, completed=have)
                for chunk in response.raw.stream(CHUNK_BYTES, decode_content=False):
                    have += file.write(chunk)
                    progress.update(task, completed=have)
                    if have > self.size:
                        break
        if have < self.size:
            raise requests.ConnectionError(f"the connection ended after {have:,} of {self.size:,} bytes")


def _progress() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
