"""What is damaged in a shard, and what belongs to no sample, is named; all before it counts."""

import gzip
import tarfile
from pathlib import Path

import pytest
from clip_hyperbolic.config import Config, UserError
from clip_hyperbolic.shards import expand, samples
from pictures import SMALL, add, png, shard, small_config, take_batches

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
    "cut between files": (lambda content, at: content[:at], "the file ends before the archive"),
    "zeros": (
        lambda content, at: content[:at] + bytes(512) + content[at + 512 :],
        "bytes follow the archive's end and are not read",
    ),
}


@pytest.mark.parametrize("packed", [False, True], ids=["tar", "gz"])
@pytest.mark.parametrize("which", DAMAGES)
def test_damage_ends_a_shard_but_not_in_silence(
    whole: Path, tmp_path: Path, which: str, packed: bool
) -> None:
    damage, message = DAMAGES[which]
    at = offset_of_middle(whole)
    content = damage(whole.read_bytes(), at)
    file = tmp_path / "shard.tar"
    file.write_bytes(gzip.compress(content) if packed else content)
    keys, (received,) = read(file)
    assert keys == [f"{i:04d}" for i in range(COUNT // 2)]
    assert received.startswith(f"{file}: ReadError: ")
    assert message.format(at=at) in received


def test_two_archives_in_one_file_are_named(whole: Path, tmp_path: Path) -> None:
    file = tmp_path / "shard.tar"
    file.write_bytes(2 * whole.read_bytes())
    keys, (message,) = read(file)
    assert len(keys) == COUNT
    assert message.endswith("it is damaged, or two archives in one file")


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
    assert messages[0] == (f"a.txt: a link or a device, not a file: write its content (in {file})")
    assert messages[1].startswith("a: no caption")


@pytest.mark.parametrize("name", ["README", ".a.png", "a.__bad__", "folder/README"])
def test_names_that_are_no_key_and_ending_are_said(name: str, tmp_path: Path) -> None:
    file = tmp_path / "shard.tar"
    with tarfile.open(file, "w") as tar:
        add(tar, "a.png", png("red"))
        add(tar, name, b"1")
        add(tar, "a.txt", b"red")
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    assert read(file) == (["a"], [f"{name}: its name is not KEY.ENDING (in {file})"])


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
    empty = tmp_path / "empty.tar"
    tarfile.open(empty, "w").close()
    changes = {"shards": [str(whole), str(empty)], "workers": 2, "in_memory": False}
    config = Config(**SMALL | {"batch_size": 4} | changes)
    batches = take_batches(config, 8)
    assert {batch["worker"] for batch in batches} == {0, 1}
    messages = [message for batch in batches for message in batch["broken"]]
    assert messages[0] == f"{empty}: ReadError: no file in it"
    assert messages[1] == f"{empty}: no whole sample; others are read instead"
    # A run that goes on reads what the whole one read.
    positions = [batch["position"] for batch in batches[2:4]]
    rest = take_batches(config, 4, step=4, positions=positions)
    assert [b["keys"] for b in rest] == [b["keys"] for b in batches[4:]]


def test_a_users_error_in_a_worker_is_one_line(tmp_path: Path) -> None:
    empty = tmp_path / "empty.tar"
    tarfile.open(empty, "w").close()
    config = small_config(str(empty), workers=2, in_memory=False)
    (batch,) = take_batches(config, 1)
    assert batch["error"].startswith("the dataset is empty")
    assert "\n" not in batch["error"]
    assert batch["error"].endswith(f"the first of 1 errors: {empty}: ReadError: no file in it")
