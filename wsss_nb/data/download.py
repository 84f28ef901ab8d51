"""Large files over HTTP: broken downloads carry on where they stopped, and nothing unchecked gets its name."""

from __future__ import annotations

import email.message
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from wsss_nb.errors import InputError
from wsss_nb.files import sha256_file

__all__ = ["Archive", "check_archive", "fetch"]

_BLOCK = 1 << 16
_LINE_SECONDS = 30.0
_PASSING = {408, 429, 500, 502, 503, 504}  # answers that a later request may not get again


@dataclass(frozen=True)
class Archive:
    """A published file.

    Attributes:
        name: its file name.
        urls: where it is, tried in this order.
        size: bytes, where known.
        sha256: hexadecimal digest, where known.
    """

    name: str
    urls: tuple[str, ...]
    size: int | None = None
    sha256: str | None = None


class _UnreachableError(Exception):
    """One address gave no file; another may."""


def check_archive(path: Path, archive: Archive) -> None:
    """Compare a file with the published size and SHA-256.

    Raises:
        InputError: it is missing or another file.

    Example:
        >>> _ = Path("a.tar").write_bytes(b"abc")
        >>> check_archive(Path("a.tar"), Archive("a.tar", (), size=3))
    """
    if not path.is_file():
        raise InputError(f"{path}: expected {archive.name}, got {'a folder' if path.is_dir() else 'no file'}")
    size = path.stat().st_size
    if archive.size is not None and size != archive.size:
        raise InputError(f"{path}: expected the {archive.size} bytes of {archive.name}, got {size}")
    if archive.sha256 is not None:
        digest = sha256_file(path)
        if digest != archive.sha256:
            raise InputError(f"{path}: expected SHA-256 {archive.sha256} of {archive.name}, got {digest}")


def fetch(
    archive: Archive, folder: Path, *, attempts: int = 5, pause: float = 1.0, timeout: float = 60.0
) -> Path:
    """Download ``folder/NAME``, or take it where it is there already; checked in both cases.

    What arrives is kept in ``NAME.part``; a lost connection is taken up again with an HTTP Range request, in
    this call and in the next one. The file gets its name after its size and SHA-256 were right.

    Args:
        archive: what and where.
        folder: created if need be.
        attempts: connections in a row that bring nothing before an address is given up.
        pause: seconds before the second of these; doubled each time.
        timeout: seconds without a byte that count as a lost connection.

    Returns:
        The file.

    Raises:
        InputError: no address could be reached, the place is not writable, or the file is not the published
            one (a wrong download is removed).
    """
    target, part = folder / archive.name, folder / f"{archive.name}.part"
    if target.exists():
        check_archive(target, archive)
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: expected a writable folder, got {error.strerror or error}") from error
    if archive.size is not None and part.exists() and part.stat().st_size > archive.size:
        part.unlink()
    reasons = []
    for url in archive.urls:
        try:
            _download(url, part, archive, attempts, pause, timeout)
            break
        except _UnreachableError as error:
            reasons.append(f"{url}: {error}")
    else:
        kept = f"; {part.stat().st_size} bytes are kept and carried on from" if part.exists() else ""
        raise InputError(
            f"{archive.name}: expected a download, got none ({'; '.join(reasons)}); without a network put the "
            f"file into {folder} or name it on the command line{kept}"
        )
    try:
        check_archive(part, archive)
    except InputError as error:
        part.unlink(missing_ok=True)
        raise InputError(f"{error}; the download is removed, the same command starts it again") from error
    os.replace(part, target)
    return target


def _download(url: str, part: Path, archive: Archive, attempts: int, pause: float, timeout: float) -> None:
    """Bring ``part`` to its full length from one address, over as many connections as it takes."""
    failures, connected, best = 0, False, _length(part)
    while True:
        before = _length(part)
        try:
            with _request(url, before, timeout) as response:
                connected = True
                reason = _receive(response, part, before, archive)
            if not reason:
                return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and before:  # there is nothing after what we have
                if _content_range(error.headers)[1] == before:
                    return
                part.unlink()
            elif error.code not in _PASSING:
                raise _UnreachableError(f"{error.code} {error.reason}") from error
            reason = f"{error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            reason = _reason(error)
            if not connected:  # no network, or no such server: waiting seldom helps, another address may
                raise _UnreachableError(reason) from error
        # a server without ranges starts again each time: only more than ever before is progress
        failures = 0 if _length(part) > best else failures + 1
        best = max(best, _length(part))
        if failures >= attempts:
            raise _UnreachableError(reason)
        time.sleep(pause * 2 ** (failures - 1) if failures else 0.0)


def _request(url: str, start: int, timeout: float) -> http.client.HTTPResponse:
    headers = {"User-Agent": "wsss-nb", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    response: http.client.HTTPResponse = urllib.request.urlopen(
        urllib.request.Request(url, headers=headers), timeout=timeout
    )
    return response


def _receive(response: http.client.HTTPResponse, part: Path, start: int, archive: Archive) -> str:
    """Append what comes to ``part``; the reason why it is not yet whole, or nothing."""
    if response.status == 206:
        first, total = _content_range(response.headers)
        if first != start:
            raise _UnreachableError(f"asked for the bytes from {start}, got those from {first}")
    else:  # a server without ranges sends all of it again
        length = response.headers.get("Content-Length", "")
        first, total = 0, int(length) if length.isdigit() else None
    if archive.size is not None and total is not None and total != archive.size:
        raise _UnreachableError(f"expected a file of {archive.size} bytes, got one of {total}")
    try:
        with open(part, "ab" if first else "wb") as file, _Progress(archive.name, first, total) as progress:
            while block := response.read(_BLOCK):
                try:
                    file.write(block)
                except OSError as error:
                    raise InputError(f"{part}: expected room to write, got {error.strerror}") from error
                progress.add(len(block))
    except PermissionError as error:
        raise InputError(f"{part}: expected a writable place, got {error.strerror}") from error
    got = _length(part)
    return "" if total is None or got == total else f"the connection ended after {got} of {total} bytes"


class _Progress:
    """A bar at a terminal, else a plain line every half a minute."""

    def __init__(self, name: str, first: int, total: int | None) -> None:
        self.name, self.done, self.total = name, first, total
        self.bar = tqdm(
            total=total, initial=first, desc=name, unit="B", unit_scale=True, leave=False,
            disable=not sys.stderr.isatty(),
        )  # fmt: skip
        self.shown = time.monotonic()
        if first:
            print(f"{name}: carries on from byte {first}", flush=True)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def add(self, count: int) -> None:
        """Count so many more bytes."""
        self.done += count
        self.bar.update(count)
        if self.bar.disable and time.monotonic() - self.shown > _LINE_SECONDS:
            self.shown = time.monotonic()
            of = f" of {self.total / 1e6:.0f}" if self.total else ""
            print(f"{self.name}: {self.done / 1e6:.0f}{of} MB", flush=True)


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _content_range(headers: email.message.Message) -> tuple[int | None, int | None]:
    """First byte and total length of ``Content-Range: bytes 5-9/10`` (or ``bytes */10``), where they are told."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", headers.get("Content-Range", "").strip())
    if match is None:
        return None, None
    return int(match[1]) if match[1] else None, None if match[2] == "*" else int(match[2])


def _reason(error: BaseException) -> str:
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    return " ".join(str(inner).split()) or type(inner).__name__
