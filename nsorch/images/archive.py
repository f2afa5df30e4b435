"""Reading a tar archive that nobody vouches for: one pass, bounded memory, and no silent end."""

from __future__ import annotations

import contextlib
import lzma
import tarfile
import zlib
from typing import IO, TYPE_CHECKING, Any

from nsorch.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of one header: long names, extended attributes. GNU tar and Go's reader have limits like this.
_MOST_HEADER = 1 << 20
_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


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

    def _proc_member(self, archive: tarfile.TarFile) -> Any:  # where tarfile's own source tells subclasses to go
        if self.size < 0 or (self.type in _HEADERS and self.size > _MOST_HEADER):
            raise ImageError(f"entry {self.name[:80]!r} has a header of {self.size} bytes", entry=self.name)
        return super()._proc_member(archive)  # type: ignore[misc]


def entries(stream: Any) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """Each entry, with its contents where it is a file; to be read before the next is asked for.

    :raises ImageError: the archive is damaged
    """
    with damage():
        archive = tarfile.open(fileobj=stream, mode="r|", tarinfo=_Entry, bufsize=1 << 16)  # noqa: SIM115
        with archive:
            while (info := archive.next()) is not None:
                yield info, archive.extractfile(info) if info.isreg() else None
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all


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
