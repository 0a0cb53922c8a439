"""Random changes of training images: their frame, their colours and the style of the drawing.

Each image has a random state of its own, so it comes out the same whatever batch it is in.
"""

from __future__ import annotations

import random

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from .config import Config


def cropped(image: Image.Image, config: Config, rng: random.Random) -> Image.Image:
    """A random crop of a slightly turned image, at the size of the tower."""
    if config.rotate:
        angle = rng.uniform(-config.rotate, config.rotate)
        image = image.rotate(angle, Image.Resampling.BILINEAR, fillcolor="white")
    width, height = image.size
    area = rng.uniform(config.crop, 1.0) * width * height
    ratio = rng.uniform(0.85, 1.18)
    w, h = min((area * ratio) ** 0.5, width), min((area / ratio) ** 0.5, height)
    left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
    size = (config.image_size, config.image_size)
    return image.resize(size, Image.Resampling.BICUBIC, (left, top, left + w, top + h))


def varied(pixels: Tensor, config: Config, rngs: list[random.Random]) -> Tensor:
    """A batch in [0, 1] with another frame, other colours and, some of it, another style."""
    if config.warp:
        pixels = warped(pixels, config.warp, rngs)
    if config.jitter:
        pixels = jittered(pixels, config.jitter, rngs)
    if config.tint:
        pixels = tinted(pixels, config.tint, rngs)
    return restyled(pixels, config.restyle, rngs) if config.restyle else pixels


def warped(pixels: Tensor, share: float, rngs: list[random.Random]) -> Tensor:
    """A share of the images turned, scaled, stretched, sheared and shifted; white comes in."""
    chosen = torch.tensor([rng.random() < share for rng in rngs])[:, None]
    turn, scale, stretch, shear, right, down = torch.where(chosen, uniform(rngs, 6), 0.0).T
    cos, sin = (0.15 * turn).cos(), (0.15 * turn).sin()
    size = (0.3 * scale + 0.2 * chosen[:, 0]).exp()  # above 1: smaller than before
    wide, high, slant = size * (0.1 * stretch).exp(), size / (0.1 * stretch).exp(), 0.1 * shear
    rows = [
        torch.stack([cos * wide, cos * slant - sin * high, 0.15 * right], 1),
        torch.stack([sin * wide, sin * slant + cos * high, 0.15 * down], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(pixels.shape), align_corners=False)
    return 1 - F.grid_sample(1 - pixels, grid, align_corners=False)  # outside it is 0


def jittered(pixels: Tensor, strength: float, rngs: list[random.Random]) -> Tensor:
    """Each image's brightness, contrast and saturation changed a little."""
    factors = [[rng.uniform(1 - strength, 1 + strength) for _ in range(3)] for rng in rngs]
    brightness, contrast, saturation = torch.tensor(factors).T[:, :, None, None, None]
    grey = pixels.mean(dim=1, keepdim=True)
    pixels = grey + saturation * (pixels - grey)
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    return (brightness * (mean + contrast * (pixels - mean))).clamp(0, 1)


def tinted(pixels: Tensor, strength: float, rngs: list[random.Random]) -> Tensor:
    """Each image with more or less of red, green and blue taken out; white stays white."""
    factors = (strength * uniform(rngs, 3)).exp()[:, :, None, None]
    return (1 - factors * (1 - pixels)).clamp(0, 1)


def restyled(pixels: Tensor, share: float, rngs: list[random.Random]) -> Tensor:
    """A share of the images, each in one of `STYLES`, by lot."""
    styles = [rng.choice([*STYLES]) if rng.random() < share else "" for rng in rngs]
    pixels = pixels.clone(memory_format=torch.contiguous_format)
    for style, redrawn in STYLES.items():
        rows = [i for i, chosen in enumerate(styles) if chosen == style]
        if rows:
            draws = uniform([rngs[i] for i in rows], 11)
            pixels[rows] = redrawn(pixels[rows], draws[..., None, None, None]).clamp(0, 1)
    return pixels


def grey(pixels: Tensor, _: Tensor) -> Tensor:
    return luminance(pixels).expand_as(pixels)


def outlined(pixels: Tensor, draws: Tensor) -> Tensor:
    """Dark lines on white where colours change."""
    edges = (pixels - blurred(pixels)).abs().amax(1, keepdim=True)
    return (1 - (6 + 4 * draws[:, 0]) * edges).expand_as(pixels)


def black_and_white(pixels: Tensor, draws: Tensor) -> Tensor:
    return (0.5 + 10 * (luminance(pixels) - 0.5 - 0.3 * draws[:, 0])).expand_as(pixels)


def lit(pixels: Tensor, draws: Tensor) -> Tensor:
    """Light and shade over what is not white, as on a rounded body, and soft edges."""
    coarse = draws[:, :9].reshape(-1, 1, 3, 3)
    light = F.interpolate(coarse, pixels.shape[-2:], mode="bicubic", align_corners=True)
    light = light * (4 * (1 - pixels).amax(1, keepdim=True)).clamp(0, 1)
    pixels = pixels * (1 + 0.5 * light) + 0.15 * draws[:, 9] * light
    return pixels.lerp(blurred(pixels), 0.5 + 0.5 * draws[:, 10])


STYLES = {"grey": grey, "outlined": outlined, "black and white": black_and_white, "lit": lit}


def luminance(pixels: Tensor) -> Tensor:
    return (pixels * pixels.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)


def blurred(pixels: Tensor) -> Tensor:
    """The mean of each pixel and its eight neighbours."""
    return F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def uniform(rngs: list[random.Random], count: int) -> Tensor:
    """So many random numbers in [-1, 1] for each, ``(N, count)``."""
    return torch.tensor([[rng.uniform(-1, 1) for _ in range(count)] for rng in rngs])
