"""Large files over HTTP: broken downloads carry on where they stopped, and nothing unchecked gets its name."""

import http.client
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from wsss_nb.data.layout import require_file
from wsss_nb.system.errors import InputError, expecting, require
from wsss_nb.system.files import sha256_file
from wsss_nb.system.progress import progress

__all__ = ["Archive", "check_archive", "fetch"]

_BLOCK = 1 << 20
_PASSING = {408, 429, 500, 502, 503, 504}  # answers that a later request may not get again


@dataclass(frozen=True)
class Archive:
    """A published file.

    Attributes:
        name: its file name.
        bases: addresses of the folders it is in, tried in this order.
        size: bytes, where known.
        sha256: hexadecimal digest, where known.
    """

    name: str
    bases: tuple[str, ...]
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
    size = require_file(path, archive.name).stat().st_size
    require(size == (archive.size or size), f"{path}: expected the {archive.size} bytes of {archive.name}, got {size}")
    digest = sha256_file(path) if archive.sha256 else None
    require(digest == archive.sha256, f"{path}: expected SHA-256 {archive.sha256} of {archive.name}, got {digest}")


def fetch(archive: Archive, folder: Path, *, attempts: int = 5, pause: float = 1.0, timeout: float = 60.0) -> Path:
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
    with expecting("a writable folder", folder, OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if _length(part) > (archive.size or _length(part)):
        part.unlink()
    reasons = []
    for url in (f"{base}/{archive.name}" for base in archive.bases):
        try:
            _download(url, part, archive, attempts, pause, timeout)
            break
        except _UnreachableError as error:
            reasons.append(f"{url}: {error}")
    else:
        kept = f"; {_length(part)} bytes are kept and carried on from" if part.exists() else ""
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
    failures, best = 0, _length(part)
    while True:
        start = _length(part)
        headers = {"User-Agent": "wsss-nb", "Accept-Encoding": "identity"}
        headers |= {"Range": f"bytes={start}-"} if start else {}
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout) as response:
                total = _receive(response, part, start, archive)
            if total in (None, _length(part)):
                return
            reason = f"the connection ended after {_length(part)} of {total} bytes"
        except (OSError, http.client.HTTPException) as error:
            code = error.code if isinstance(error, urllib.error.HTTPError) else None
            if code == 416 and start and archive.size in (None, start):  # nothing is missing
                return
            reason = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, urllib.error.URLError) and code not in _PASSING:
                # no network, no such server or file: waiting seldom helps, another address may
                raise _UnreachableError(reason) from error
        # a server without ranges starts again each time: only more than ever before is progress
        failures = 0 if _length(part) > best else failures + 1
        best = max(best, _length(part))
        if failures >= attempts:
            raise _UnreachableError(reason)
        time.sleep(pause * 2 ** (failures - 1) if failures else 0.0)


def _receive(response: http.client.HTTPResponse, part: Path, start: int, archive: Archive) -> int | None:
    """Append what comes to ``part``; the length of the whole file, where the server tells it."""
    if response.status != 206:  # a server without ranges sends all of it again
        start = 0
    elif not (told := response.headers.get("Content-Range", "")).startswith(f"bytes {start}-"):
        raise _UnreachableError(f"asked for the bytes from {start}, got {told or 'others'}")
    length = response.headers.get("Content-Length", "")
    total = start + int(length) if length.isdigit() else None
    if total is not None and total != (archive.size or total):
        raise _UnreachableError(f"expected a file of {archive.size} bytes, got one of {total}")
    if not start:
        part.unlink(missing_ok=True)
    print(f"{archive.name}: {f'carries on from byte {start}, ' if start else ''}from {response.url}", flush=True)
    blocks = iter(lambda: response.read(_BLOCK), b"")
    for block in progress(blocks, f"{archive.name}, MiB", total and -(-(total - start) // _BLOCK)):
        with expecting("a writable place with room", part, OSError), open(part, "ab") as file:
            file.write(block)
    return total


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
