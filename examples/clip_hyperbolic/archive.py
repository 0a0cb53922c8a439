"""The files of a shard, a tar of any compression; what is damaged or no file is reported."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, Any

from webdataset.tariterators import base_plus_ext, group_by_keys

OnBroken = Callable[[str], None]  # takes the message about what is skipped
# What opens a file that starts so. Unlike tarfile's own, these read all parts of a file that was
# compressed in parts, and check their sums.
OPENERS: dict[bytes, Any] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"\x5d\x00\x00": lzma.open,
}


class Header(tarfile.TarInfo):
    """A file's header. At a damaged one `tarfile` stops as if the archive ended there."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Header:
        start = archive.fileobj.tell()
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # where the archive does end
            raise
        except tarfile.EmptyHeaderError:
            reason = "it ends without the end mark of a tar: cut off, or not closed"
            raise tarfile.ReadError(reason if start else "empty file") from None
        except tarfile.HeaderError as error:
            reason = f"damaged at byte {start:,}; what follows is lost" if start else "no tar"
            raise tarfile.ReadError(f"{reason} ({error})") from None


def files_of_keys(shard: str, on_broken: OnBroken) -> Iterator[dict[str, Any]]:
    """The contents of the files of each key by their endings, with __key__ and __url__.

    Files of one key are taken together where they lie next to each other.
    """

    def skip(error: Exception) -> bool:
        on_broken(f"{shard}: {error.args[0]}")
        return True

    yield from group_by_keys(_files(shard, on_broken), handler=skip)


def _files(shard: str, on_broken: OnBroken) -> Iterator[dict[str, Any]]:
    """Each file's name and content, as webdataset has them.

    Webdataset's own reader passes over links, other names and damage in silence.
    """
    is_empty = True
    text = {"encoding": "utf-8", "errors": "backslashreplace"}
    try:
        with (
            _opened(shard) as stream,
            tarfile.open(fileobj=stream, mode="r|", tarinfo=Header, **text) as archive,
        ):
            for member in archive:
                archive.members = []  # else it keeps all of them
                if member.isdir():
                    continue
                is_empty = False
                if reason := _reason_to_skip(member):
                    on_broken(f"{member.name}: {reason} (in {shard})")
                elif content := archive.extractfile(member):
                    yield {"fname": member.name, "data": content.read(), "__url__": shard}
            if _is_followed(archive):
                raise tarfile.ReadError(
                    "something follows the archive's end and is not read: it is damaged, or two "
                    "archives in one file"
                )
            if is_empty:
                raise tarfile.ReadError("no file in it")
    except Exception as error:  # whatever damage makes a decompressor raise
        on_broken(f"{shard}: {type(error).__name__}: {error}")


def _opened(shard: str) -> IO[bytes]:
    """The content of a file, decompressed."""
    with open(shard, "rb") as file:
        start = file.read(6)
    opener = next((o for magic, o in OPENERS.items() if start.startswith(magic)), open)
    return opener(shard, "rb")


def _reason_to_skip(member: tarfile.TarInfo) -> str:
    """Why a member of an archive belongs to no sample; "" if it does."""
    if not member.isreg():
        return "a link, a device or an unknown kind, not a file: write its content"
    key, ending = base_plus_ext(member.name)
    if key is None:
        return "its name is not KEY.ENDING"
    if ending.startswith("__"):
        return "webdataset keeps endings with __ for itself"
    return ""


def _is_followed(archive: tarfile.TarFile) -> bool:
    """Whether anything but zeros follows the end of an archive that was read to its end."""
    while chunk := archive.fileobj.read(1 << 20):
        if chunk.strip(b"\0"):
            return True
    return False
