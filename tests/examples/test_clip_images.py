"""Images of any mode, depth and orientation are read as they are meant to be seen."""

import io
import random
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from clip_hyperbolic import images
from clip_hyperbolic.schema import Box
from PIL import ExifTags, Image, ImageOps


def chunk(name: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def deep_png(values: list[Any], colour: int, clear: list[int] | None = None) -> bytes:
    """One row of 16 bits a channel, which Pillow writes of grey alone; `clear` is transparent."""
    row = np.array(values, ">u2")
    header = struct.pack(">IIBBBBB", len(row), 1, 16, colour, 0, 0, 0)
    transparent = chunk(b"tRNS", np.array(clear, ">u2").tobytes()) if clear else b""
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + row.tobytes()))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + transparent + pixels + chunk(b"IEND", b"")
    )


GREY = [0, 300, 0x8000, 0xFFFF]
LIGHT = [(0, 0, 0), (1, 1, 1), (128, 128, 128), (255, 255, 255)]
COLOUR = [[0, 0, 0], [0x8000, 0xFFFF, 1]]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (deep_png(GREY, 0), LIGHT),
        (deep_png(GREY, 0, [0]), [(255, 255, 255), *LIGHT[1:]]),
        (deep_png(COLOUR, 2), [(0, 0, 0), (128, 255, 0)]),
        (deep_png(COLOUR, 2, [0x8000, 0xFFFF, 1]), [(0, 0, 0), (255, 255, 255)]),
        (deep_png([[0, 0xFFFF], [0, 0x8000], [0, 0]], 4), [(0,) * 3, (127,) * 3, (255,) * 3]),
        (deep_png([[0, 0, 0, 0xFFFF], [0, 0, 0, 0]], 6), [(0, 0, 0), (255, 255, 255)]),
    ],
    ids=[
        "grey",
        "grey and tRNS",
        "colour",
        "colour and tRNS",
        "grey and alpha",
        "colour and alpha",
    ],
)
def test_sixteen_bits_are_scaled(content: bytes, expected: list[tuple[int, ...]]) -> None:
    image = images.read(content).image
    assert image.mode == "RGB"
    assert [image.getpixel((x, 0)) for x in range(image.width)] == expected


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "LA", "PA", "RGBA"])
def test_what_is_transparent_comes_on_white(mode: str) -> None:
    """Half of a picture is transparent, by a colour of the header or by alpha."""
    image = Image.new("RGBA", (4, 2), "black")
    image.paste((255, 255, 255, 255), (2, 0, 4, 2))
    options = {}
    if mode in ("LA", "PA", "RGBA"):
        image.paste((0, 0, 0, 0), (0, 0, 2, 2))
        image = image.convert("P" if mode == "PA" else mode)
    else:
        image = image.convert("RGB").convert(mode)
        options = {"transparency": (0, 0, 0) if mode == "RGB" else image.getpixel((0, 0))}
    file = io.BytesIO()
    image.save(file, "png", **options)
    upright = images.read(file.getvalue()).image
    assert upright.mode == "RGB"
    assert upright.getextrema() == ((255, 255),) * 3
    plain = io.BytesIO()
    if options:
        image.save(plain, "png")  # and without it black stays black
        assert images.read(plain.getvalue()).image.getextrema() == ((0, 255),) * 3


def spotted(mode: str = "RGB") -> Image.Image:
    noise = Image.frombytes("RGB", (6, 4), random.Random(0).randbytes(72))
    return noise.resize((30, 20), Image.Resampling.NEAREST).convert(mode)


@pytest.mark.parametrize("orientation", [*range(1, 9), 9, 65535])  # of which 9 and 65535 are none
@pytest.mark.parametrize(
    "kind_and_mode",
    ["png RGB", "png P", "png L", "png I;16", "jpeg RGB", "jpeg L", "jpeg CMYK", "webp RGB"],
)
def test_images_are_upright(kind_and_mode: str, orientation: int) -> None:
    """As Pillow turns them; boxes, which are given for the stored image, turn along."""
    kind, mode = kind_and_mode.split()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    spotted(mode).save(file, kind, exif=exif)
    picture = images.read(file.getvalue())
    with Image.open(file) as opened:
        plain = images.on_white(opened)
        expected = images.on_white(ImageOps.exif_transpose(opened))
    assert picture.image.size == ((20, 30) if 5 <= orientation <= 8 else (30, 20))
    assert picture.image.tobytes() == expected.tobytes()

    box = Box((5, 2, 20, 11), "a part")
    part = plain.crop(box.edges)
    part.getexif()[ExifTags.Base.Orientation] = orientation
    edges = picture.upright_box(box).edges
    assert picture.image.crop(edges).tobytes() == ImageOps.exif_transpose(part).tobytes()


@pytest.mark.filterwarnings("ignore")
def test_an_image_with_damaged_exif_is_kept() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    whole = exif.tobytes()
    rng = random.Random(0)
    for damaged in [whole[:n] for n in range(len(whole))] + [rng.randbytes(40) for _ in range(20)]:
        file = io.BytesIO()
        spotted().save(file, "webp", exif=damaged, lossless=True)
        assert images.read(file.getvalue()).image.getcolors() is not None
