"""Compressed streams, counted and hashed on the way."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import importlib
import lzma
from typing import IO, TYPE_CHECKING, Any

from nsorch.errors import ClosedError, ImageError, UnsupportedError

if TYPE_CHECKING:
    import threading

_MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"BZh", "bzip2"),
)
_SKIPPABLE = b"\x2a\x4d\x18"  # of a frame of zstd without contents, as pzstd begins with; before it 0x50 to 0x5f
_BLOCK = 512


def decompressed(raw: IO[bytes]) -> IO[bytes]:
    """*raw*, which can seek, without its compression; told by its first bytes, not by what somebody says of it.

    :raises UnsupportedError: this Python has no zstd
    """
    start = raw.read(6)
    raw.seek(0)
    kind = next((name for magic, name in _MAGIC if start.startswith(magic)), "")
    if start[1:4] == _SKIPPABLE and start[0] & 0xF0 == 0x50:
        kind = "zstd"
    if kind == "gzip":
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if kind == "zstd":
        return _zstd(raw)
    if kind == "xz":
        return lzma.LZMAFile(raw)
    if kind == "bzip2":
        return bz2.BZ2File(raw)
    return raw


def _zstd(raw: IO[bytes]) -> IO[bytes]:
    opened: IO[bytes]
    for name in ("compression.zstd", "backports.zstd"):
        try:
            opened = importlib.import_module(name).ZstdFile(raw)
        except ImportError:
            continue
        return opened
    try:
        zstandard: Any = importlib.import_module("zstandard")
    except ImportError:
        raise UnsupportedError(
            "the layer is compressed by zstd, which this Python can't read",
            stage="unpack",
            detail="pip install zstandard",
        ) from None
    opened = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
    return opened


class Counted:
    """What a tar reader reads from: no more than *limit* bytes, with their digest by *algorithm*.

    :param whole: a digest says that nothing is missing at the end. Then that may be without the padding of the last
        file and without the end mark, as in what ``umoci insert`` writes, and both are added.
    """

    def __init__(
        self,
        source: IO[bytes],
        limit: int,
        cancelled: threading.Event,
        *,
        whole: bool = False,
        algorithm: str = "sha256",
    ) -> None:
        self._source = source
        self._left = limit
        self._cancelled = cancelled
        self._hash = hashlib.new(algorithm)
        self._size = 0
        self._ending = whole

    def read(self, size: int) -> bytes:
        """
        :raises ImageError: there is more than allowed
        :raises ClosedError: cancelled
        """
        if self._cancelled.is_set():
            raise ClosedError("unpacking was cancelled")
        data = self._source.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise ImageError("the archive is larger than max_size allows")
        self._hash.update(data)
        self._size += len(data)
        if not data and self._ending:
            self._ending = False
            return bytes(-self._size % _BLOCK + 2 * _BLOCK)
        return data

    def drain(self) -> None:
        while self.read(1 << 18):
            pass

    def digest(self) -> str:
        return f"{self._hash.name}:{self._hash.hexdigest()}"
