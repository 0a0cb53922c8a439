"""Images: read upright and on white, fitted to the size of a tower."""

from __future__ import annotations

import io
import math
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .schema import Box, BrokenSample


class Picture(NamedTuple):
    """An upright image, and how the file stores it: its size there, and its EXIF orientation."""

    image: Image.Image
    stored_size: tuple[int, int]
    orientation: int

    def upright_box(self, box: Box) -> Box:
        """A box of the stored image, where it lies in the upright one."""
        (x0, y0, x1, y1), (width, height) = box.edges, self.stored_size
        if self.orientation in (2, 3, 7, 8):
            x0, x1 = width - x1, width - x0
        if self.orientation in (3, 4, 6, 7):
            y0, y1 = height - y1, height - y0
        edges = (y0, x0, y1, x1) if self.orientation >= 5 else (x0, y0, x1, y1)
        return Box(edges, box.caption)


def read(content: bytes) -> Picture:
    """An image of any mode and orientation as RGB; what is transparent comes on white."""
    try:
        opening = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:  # whose message names a buffer
        raise BrokenSample("its image is in no format that Pillow reads") from None
    with opening as opened:
        stored_mode = opened.tile[0].args if opened.tile else ""
        opened.load()
        clear = opened.info.get("transparency")
        if stored_mode == "RGB;16B" and clear is not None:
            # Pillow drops the low bytes of the pixels, but not those of the transparent colour.
            opened.info["transparency"] = tuple(value >> 8 for value in clear)
        try:
            upright = ImageOps.exif_transpose(opened)
            orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
            if orientation not in range(1, 9):  # Pillow leaves such an image as it is
                orientation = 1
        except Exception:  # whatever damaged EXIF makes its reader raise: the image itself is whole
            upright, orientation = opened, 1
        return Picture(on_white(upright), opened.size, orientation)


def on_white(image: Image.Image) -> Image.Image:
    is_transparent = image.has_transparency_data
    if image.mode.startswith("I"):  # 16 bits, of which `convert` would cut off all above 255
        grey = np.asarray(image)
        clear = grey == image.info.get("transparency", -1)
        image = Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
        image.putalpha(Image.fromarray(np.where(clear, 0, 255).astype(np.uint8)))
    image = image.convert("RGBA" if is_transparent else "RGB")
    if is_transparent:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def fitted(image: Image.Image, size: int) -> Image.Image:
    """The middle square of an image, at `size`: how images are evaluated."""
    side = min(image.size)
    left, top = ((length - side) / 2 for length in image.size)
    return image.resize(
        (size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side)
    )


def crop_box(image: Image.Image, box: Box) -> Image.Image:
    left, top, right, bottom = box.edges
    return image.crop((math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)))


def as_pixels(images: list[Image.Image]) -> Tensor:
    """Images of one size as floats (N, 3, size, size) in [0, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
