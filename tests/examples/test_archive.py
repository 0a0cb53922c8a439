"""What is damaged in a shard, and what belongs to no sample, is named; all before it counts."""

import bz2
import gzip
import lzma
import tarfile
from pathlib import Path

import psutil
import pytest
from clip_hyperbolic.config import UserError
from clip_hyperbolic.data import Batches
from clip_hyperbolic.shards import expand, samples
from pictures import add, png, shard, small_config, take_batches

COUNT = 16  # samples of three files each
MIDDLE = 24  # the first file of the ninth sample


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shard(tmp_path_factory.mktemp("whole") / "shard.tar", count=COUNT)


def offset_of_middle(file: Path) -> int:
    with tarfile.open(file) as tar:
        return tar.getmembers()[MIDDLE].offset


def read(file: Path) -> tuple[list[str], list[str]]:
    """The keys that are read, and the messages."""
    messages: list[str] = []
    return [sample.key for sample in samples([str(file)], messages.append)], messages


DAMAGES = {  # what a file becomes, damaged at an offset, and the message
    "a bit of a name": (
        lambda content, at: content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :],
        "damaged at byte {at:,}; what follows is lost",
    ),
    "junk": (
        lambda content, at: content[:at] + b"junk" * 999 + content[at:],
        "damaged at byte {at:,}; what follows is lost",
    ),
    "cut in a header": (lambda content, at: content[: at + 99], "damaged at byte {at:,}"),
    "cut in a file": (lambda content, at: content[: at + 600], "unexpected end of data"),
    "cut between files": (lambda content, at: content[:at], "ends without the end mark of a tar"),
    "zeros": (
        lambda content, at: content[:at] + bytes(512) + content[at + 512 :],
        "something follows the archive's end and is not read",
    ),
}
PACKERS = {"tar": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("which", DAMAGES)
def test_damage_ends_a_shard_but_not_in_silence(
    whole: Path, tmp_path: Path, which: str, packer: str
) -> None:
    damage, message = DAMAGES[which]
    at = offset_of_middle(whole)
    file = tmp_path / "shard.tar"
    file.write_bytes(PACKERS[packer](damage(whole.read_bytes(), at)))
    keys, (received, *_) = read(file)
    assert keys == [f"{i:04d}" for i in range(COUNT // 2)]
    assert received.startswith(f"{file}: ReadError: ")
    assert message.format(at=at) in received


@pytest.mark.parametrize("packer", ["gz", "bz2", "xz"])
def test_damage_to_what_is_compressed_is_named(whole: Path, tmp_path: Path, packer: str) -> None:
    content = PACKERS[packer](whole.read_bytes())
    file = tmp_path / "shard.tar"
    file.write_bytes(content[: len(content) // 2])
    assert "end-of-stream marker" in read(file)[1][0]
    sum_at = len(content) - 8 if packer == "gz" else len(content) // 2
    file.write_bytes(content[:sum_at] + bytes([content[sum_at] ^ 1]) + content[sum_at + 1 :])
    assert len(read(file)[1]) >= 1


@pytest.mark.parametrize("packer", PACKERS)
def test_two_archives_in_one_file_are_named(whole: Path, tmp_path: Path, packer: str) -> None:
    file = tmp_path / "shard.tar"
    file.write_bytes(2 * PACKERS[packer](whole.read_bytes()))
    keys, (message,) = read(file)
    assert len(keys) == COUNT
    assert message.endswith("it is damaged, or two archives in one file")


def test_an_archive_may_be_compressed_in_parts(whole: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    file = tmp_path / "shard.tar"
    file.write_bytes(gzip.compress(content[:20_000]) + gzip.compress(content[20_000:]))
    keys, messages = read(file)
    assert len(keys) == COUNT
    assert messages == []


def test_files_are_closed(whole: Path, tmp_path: Path) -> None:
    process = psutil.Process()
    before = process.num_fds()
    half = tmp_path / "shard.tar"
    half.write_bytes(whole.read_bytes()[:999])
    for path in (whole, half, tmp_path):
        read(path)
    next(samples([str(whole)], pytest.fail))  # and let go
    assert process.num_fds() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty file"), (b"no tar" * 999, "no tar"), (bytes(10240), "no file in it")],
    ids=["empty", "text", "no members"],
)
def test_what_is_no_shard_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "shard.tar"
    file.write_bytes(content)
    keys, (received,) = read(file)
    assert not keys
    assert received.startswith(f"{file}: ReadError: {message}")


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_named(kind: bytes, tmp_path: Path) -> None:
    file = tmp_path / "shard.tar"
    with tarfile.open(file, "w") as tar:
        add(tar, "a.png", png("red"))
        link = tarfile.TarInfo("a.txt")
        link.type, link.linkname = kind, "b.txt"
        tar.addfile(link)
    keys, messages = read(file)
    assert not keys
    assert messages[0] == (
        f"a.txt: a link, a device or an unknown kind, not a file: write its content (in {file})"
    )
    assert messages[1].startswith("a: no caption")


NO_ENDING, RESERVED = "its name is not KEY.ENDING", "webdataset keeps endings with __ for itself"


@pytest.mark.parametrize(
    ("name", "reason"),
    [*((n, NO_ENDING) for n in ("README", ".a.png", "folder/README")), ("a.__bad__", RESERVED)],
)
def test_names_that_are_no_key_and_ending_are_said(name: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "shard.tar"
    with tarfile.open(file, "w") as tar:
        add(tar, "a.png", png("red"))
        add(tar, name, b"1")
        add(tar, "a.txt", b"red")
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    assert read(file) == (["a"], [f"{name}: {reason} (in {file})"])


def test_names_in_other_encodings_can_be_printed(tmp_path: Path) -> None:
    file = tmp_path / "shard.tar"
    with tarfile.open(file, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        add(tar, "caf\xe9.png", b"no image")
        add(tar, "caf\xe9.txt", b"red")
    _, (message,) = read(file)
    message.encode("utf-8")
    assert message == (f"caf\\xe9: its image is in no format that Pillow reads (in {file})")


# --- names of shards ------------------------------------------------------------------------------


def test_a_name_that_exists_is_a_name_whatever_its_characters(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a[1].tar", "a:b.tar", "pipe:touch harm;cat x"):
        Path(name).write_bytes(whole.read_bytes())
        assert expand([name]) == [name]
        assert len(read(Path(name))[0]) == COUNT
    assert not Path("harm").exists()


@pytest.mark.parametrize("pattern", ["x{0..1.tar", "{a"])
def test_half_a_pair_of_braces_is_an_error(pattern: str) -> None:
    with pytest.raises(UserError, match="a brace opens or closes without the other"):
        expand([pattern])


# --- workers --------------------------------------------------------------------------------------


def test_a_worker_without_a_whole_sample_reads_the_shards_of_others(
    whole: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.tar"
    with tarfile.open(broken, "w") as tar:
        for i in range(5):
            add(tar, f"{i}.png", b"no image")
            add(tar, f"{i}.txt", b"red")
    config = small_config(str(whole), batch_size=4, workers=2, in_memory=False)
    config.shards = [str(whole), str(broken)]
    batches = take_batches(config, 12)
    assert [batch["worker"] for batch in batches] == 6 * [0, 1]
    message = batches[1]["broken"][0]
    assert message.startswith("no sample to train on")
    assert message.endswith(f"(in {broken}). Others are read instead")
    seen = {key for batch in batches[1:8:2] for key in batch["keys"]}
    assert len(seen) > COUNT // 2  # of its own order, of which it leaves none out
    # A run that goes on reads and reports what the whole one did.
    positions = [batch["position"] for batch in batches[4:6]]
    rest = take_batches(config, 6, step=6, positions=positions)
    assert [(b["keys"], b["broken"]) for b in rest] == [
        (b["keys"], b["broken"]) for b in batches[6:]
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_is_reported_once_and_before_the_epoch_ends(
    whole: Path, tmp_path: Path, workers: int
) -> None:
    half = tmp_path / "half.tar"
    half.write_bytes(whole.read_bytes()[: offset_of_middle(whole)])
    config = small_config(str(half), batch_size=2, workers=workers, in_memory=False)
    batches = take_batches(config, 8)
    assert any(batch["broken"] for batch in batches[:2])
    positions = [b["position"] for b in sorted(batches[2:4], key=lambda b: b["worker"])]
    positions = positions[-max(workers, 1) :]
    rest = take_batches(config, 4, step=4, positions=positions)
    assert [(b["keys"], b["broken"]) for b in rest] == [
        (b["keys"], b["broken"]) for b in batches[4:]
    ]


def test_no_sample_in_memory_is_an_error(whole: Path) -> None:
    with pytest.raises(UserError, match="no sample to train on"):
        Batches(small_config(str(whole)), memory=[])


def test_a_users_error_in_a_worker_is_one_line(tmp_path: Path) -> None:
    empty = tmp_path / "empty.tar"
    tarfile.open(empty, "w").close()
    config = small_config(str(empty), workers=2, in_memory=False)
    (batch,) = take_batches(config, 1)
    assert batch["error"].startswith("no sample to train on")
    assert "\n" not in batch["error"]
    assert batch["error"].endswith(f"the first of 1 errors: {empty}: ReadError: no file in it")
