"""The files of a shard, a tar of any compression; what is damaged or no file is reported."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from typing import Any

from webdataset.tariterators import base_plus_ext, group_by_keys

OnBroken = Callable[[str], None]  # takes the message about what is skipped


class Header(tarfile.TarInfo):
    """A file's header. At a damaged one `tarfile` stops as if the archive ended there."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Header:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # where the archive does end
            raise
        except tarfile.EmptyHeaderError:
            reason = "the file ends before the archive: it is cut off"
            raise tarfile.ReadError(reason if archive.offset else "empty file") from None
        except tarfile.HeaderError as error:
            place = f"damaged at byte {archive.offset:,}; what follows is lost"
            raise tarfile.ReadError(f"{place if archive.offset else 'no tar'} ({error})") from None


def raw_samples(shard: str, on_broken: OnBroken) -> Iterator[dict[str, Any]]:
    """The contents of the files of each key by their endings, with __key__ and __url__.

    Files of one key are taken together where they lie next to each other.
    """

    def skip(error: Exception) -> bool:
        on_broken(f"{shard}: {error.args[0]}")
        return True

    yield from group_by_keys(_files(shard, on_broken), handler=skip)


def _files(shard: str, on_broken: OnBroken) -> Iterator[dict[str, Any]]:
    """Each file's name and content, as webdataset has them."""
    is_empty = True
    try:
        # Not by webdataset, which passes over links, other names and damage in silence.
        text = {"encoding": "utf-8", "errors": "backslashreplace"}
        with tarfile.open(shard, "r|*", tarinfo=Header, **text) as archive:
            for member in archive:
                archive.members = []  # else it keeps all of them
                if member.isdir():
                    continue
                is_empty = False
                if reason := _reason_to_skip(member):
                    on_broken(f"{member.name}: {reason} (in {shard})")
                elif content := archive.extractfile(member):
                    yield {"fname": member.name, "data": content.read(), "__url__": shard}
            if rest := _bytes_after(archive):
                raise tarfile.ReadError(
                    f"{rest:,} bytes follow the archive's end and are not read: it is damaged, or "
                    "two archives in one file"
                )
            if is_empty:
                raise tarfile.ReadError("no file in it")
    except Exception as error:  # whatever damage makes a decompressor raise
        on_broken(f"{shard}: {type(error).__name__}: {error}")


def _reason_to_skip(member: tarfile.TarInfo) -> str:
    """Why a member of an archive belongs to no sample; "" if it does."""
    if not member.isreg():
        return "a link or a device, not a file: write its content"
    key, ending = base_plus_ext(member.name)
    if key is None or ending.startswith("__"):
        return "its name is not KEY.ENDING"
    return ""


def _bytes_after(archive: tarfile.TarFile) -> int:
    """How much there is after the end of an archive that was read to its end, but for zeros."""
    count, stream = 0, archive.fileobj
    while stream and (chunk := stream.read(1 << 20)):
        count += len(chunk) if chunk.strip(b"\0") else 0
    return count
