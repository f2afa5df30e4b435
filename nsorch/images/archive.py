"""Reading a tar archive that nobody vouches for: one pass, bounded memory, and no silent end."""

from __future__ import annotations

import contextlib
import copy
import lzma
import tarfile
import zlib
from typing import IO, TYPE_CHECKING, Any

from nsorch.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of one header: long names, extended attributes, the map of a sparse file. GNU tar and Go's reader have limits like
# this.
_MOST_HEADER = 1 << 20
_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_VOLUME_LABEL = b"V"  # of GNU tar --label: an entry that is no file
_DUMPED_FOLDER = b"D"  # of GNU tar --listed-incremental: a directory, with the names that were in it as contents


class _Entry(tarfile.TarInfo):
    """tarfile reads a header as long as it says, and takes a damaged one in the middle for the end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Any:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            raise ImageError("the archive ends without its end mark: it is cut off, or no tar archive") from None
        except tarfile.HeaderError as exc:
            raise ImageError(f"the archive is damaged, or no tar archive: {exc}") from None

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Any:
        return _name(super().frombuf(buf, encoding, errors), buf, encoding, errors)

    @classmethod
    def _frombuf(cls, buf: Any, encoding: str, errors: str, **options: Any) -> Any:  # which later versions call instead
        found = super()._frombuf(buf, encoding, errors, **options)  # type: ignore[misc]
        return _name(found, buf, encoding, errors)

    def _proc_member(self, archive: tarfile.TarFile) -> Any:  # where tarfile's own source tells subclasses to go
        if self.size < 0 or (self.type in _HEADERS and self.size > _MOST_HEADER):
            raise ImageError(f"entry {self.name[:80]!r} has a header of {self.size} bytes", entry=self.name)
        return super()._proc_member(archive)  # type: ignore[misc]

    def _proc_sparse(self, archive: tarfile.TarFile) -> Any:
        with self._reading_a_map(archive):
            return super()._proc_sparse(archive)  # type: ignore[misc]

    def _proc_gnusparse_10(self, entry: tarfile.TarInfo, headers: Any, archive: tarfile.TarFile) -> Any:
        with self._reading_a_map(archive):
            return super()._proc_gnusparse_10(entry, headers, archive)  # type: ignore[misc]

    @contextlib.contextmanager
    def _reading_a_map(self, archive: Any) -> Iterator[None]:
        """It lies in the archive, as long as it says, and a few bytes of it are a hundred of memory."""
        stream = archive.fileobj
        archive.fileobj = _Bounded(stream, self.name)
        try:
            yield
        finally:
            archive.fileobj = stream


def _name(entry: tarfile.TarInfo, header: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
    """GNU tar has times where others have the first part of a long name."""
    if header[257:265] == tarfile.GNU_MAGIC:
        name = header[:100].partition(b"\0")[0].decode(encoding, errors)
        entry.name = name.rstrip("/") if entry.isdir() else name
    return entry


class _Bounded:
    def __init__(self, stream: Any, entry: str) -> None:
        self.tell = stream.tell
        self._stream = stream
        self._left = _MOST_HEADER
        self._entry = entry

    def read(self, size: int) -> Any:
        self._left -= size
        if self._left < 0:
            raise ImageError(
                f"entry {self._entry[:80]!r} has a map of more than {_MOST_HEADER} bytes", entry=self._entry
            )
        return self._stream.read(size)


def entries(stream: Any) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """Each entry, with its contents where it is a file, for a sparse one its :func:`extents` without the holes; to be
    read before the next is asked for.

    :raises ImageError: the archive is damaged
    """
    with damage():
        archive = tarfile.open(fileobj=stream, mode="r|", tarinfo=_Entry, bufsize=1 << 16)  # noqa: SIM115
        with archive:
            while (info := archive.next()) is not None:
                if info.type == _DUMPED_FOLDER:
                    info.type = tarfile.DIRTYPE
                if info.type != _VOLUME_LABEL:
                    yield info, archive.extractfile(_dense(info)) if info.isreg() else None
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all


def _dense(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Where what the archive has of it lies: there holes take no time, however long they say they are."""
    if not entry.issparse():
        return entry
    dense: Any = copy.copy(entry)
    dense.size, dense.sparse = sum(length for _, length in extents(entry)), None
    return dense  # type: ignore[no-any-return]


def extents(entry: tarfile.TarInfo) -> list[tuple[int, int]]:
    """(offset, length) of what a file has in the archive; the rest is holes.

    :raises ImageError: they overlap, or lie outside of it
    """
    if not entry.issparse():
        return [(0, entry.size)]
    parts: Any = entry.sparse
    found = [(offset, length) for offset, length in parts if length]
    end = 0
    for offset, length in found:
        if offset < end or length < 0:
            raise ImageError(f"entry {entry.name!r} has a map whose parts overlap", entry=entry.name)
        end = offset + length
    if end > entry.size:
        raise ImageError(f"entry {entry.name!r} has a map that goes beyond its end", entry=entry.name)
    return found


@contextlib.contextmanager
def damage() -> Iterator[None]:
    """Give the many errors of damaged data one name."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, UnicodeError, OverflowError, RecursionError) as exc:
        raise ImageError("the archive is damaged", detail=str(exc) or type(exc).__name__) from None
    except OSError as exc:
        if exc.errno is not None:
            raise
        raise ImageError("the archive is damaged", detail=str(exc)) from None  # gzip and bz2 have these
    except (ValueError, IndexError) as exc:
        if isinstance(exc, ImageError):
            raise
        raise ImageError("the archive is damaged", detail=str(exc)) from None
