"""Random changes of training images: each by itself, on white, and none unless asked for."""

from __future__ import annotations

import random

import pytest
import torch
from clip_hyperbolic import augment
from clip_hyperbolic.config import Config
from torch import Tensor


def rngs(count: int) -> list[random.Random]:
    return [random.Random(i) for i in range(count)]


def drawings(count: int = 40) -> Tensor:
    """Coloured squares on white."""
    pixels = torch.ones(count, 3, 24, 24)
    colours = torch.rand(count, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    pixels[:, :, 8:16, 8:16] = 0.8 * colours
    return pixels


def config(**changes: float) -> Config:
    return Config(**(dict.fromkeys(("warp", "jitter", "tint", "restyle"), 0.0) | changes))


def test_nothing_changes_unless_asked_for() -> None:
    torch.testing.assert_close(augment.varied(drawings(), config(), rngs(40)), drawings())


@pytest.mark.parametrize(
    "changes", [{"warp": 1.0}, {"jitter": 0.5}, {"tint": 0.2}, {"restyle": 0.5}]
)
def test_an_image_changes_alike_in_any_batch(changes: dict[str, float]) -> None:
    pixels = drawings()
    whole = augment.varied(pixels, config(**changes), rngs(40))
    assert not torch.allclose(whole, pixels)
    assert whole.shape == pixels.shape
    assert 0 <= whole.min() <= whole.max() <= 1 + 1e-6
    halves = [
        augment.varied(half, config(**changes), part)
        for half, part in zip(pixels.split(20), (rngs(40)[:20], rngs(40)[20:]), strict=True)
    ]
    torch.testing.assert_close(torch.cat(halves), whole)


def test_a_warp_brings_white_in() -> None:
    black = torch.zeros(40, 3, 24, 24)
    warped = augment.warped(black, 1.0, rngs(40))
    shares = warped.mean((1, 2, 3))
    assert (shares > 0.02).any()
    assert torch.equal(
        augment.warped(torch.ones(2, 3, 24, 24), 1.0, rngs(2)), torch.ones(2, 3, 24, 24)
    )

    class Middle(random.Random):  # draws the middle of every range
        def uniform(self, a: float, b: float) -> float:
            return (a + b) / 2

    # Then an image is only made smaller, by exp(0.2).
    smaller = augment.warped(black, 1.0, [Middle()] * 40)
    rows = (smaller[0, 0] < 0.5).any(1).sum().item()
    assert 19 <= rows <= 20
    some = (augment.warped(drawings(), 0.5, rngs(40)) - drawings()).abs().amax((1, 2, 3)) > 0.01
    assert 12 <= some.sum() <= 28


def test_a_tint_changes_each_colour_by_a_factor_of_its_own() -> None:
    pixels = drawings()
    inks = 1 - augment.tinted(pixels, 0.2, rngs(40))
    factors = inks[:, :, 12, 12] / (1 - pixels[:, :, 12, 12])
    assert (factors.log().abs() <= 0.2 + 1e-5).all()
    assert (factors.std(0) > 0.08).all()  # of equal draws from -0.2 to 0.2: 0.115
    assert (factors.std(1) > 0.01).all()
    assert (inks[:, :, 0, 0] == 0).all()  # white stays white


def test_styles() -> None:
    pixels, draws = drawings(), torch.zeros(40, 11, 1, 1, 1)
    grey = augment.grey(pixels, draws)
    assert torch.equal(grey[:, 0], grey[:, 2])
    assert (grey[:, :, 0, 0] > 0.999).all()
    lines = augment.outlined(pixels, draws).clamp(0, 1)
    flat = lines[:, :, 11:13, 11:13]  # inside the square
    torch.testing.assert_close(flat, torch.ones_like(flat))
    assert (lines[:, 0, 8, 8:16] < 0.9).all()
    inked = augment.black_and_white(pixels, draws).clamp(0, 1)
    luminance = augment.luminance(pixels)[:, 0, 12, 12]
    clear = (luminance - 0.5).abs() > 0.06
    assert torch.equal(inked[clear, 0, 12, 12], (luminance[clear] > 0.5).float())
    torch.testing.assert_close(
        augment.lit(torch.ones(2, 3, 9, 9), torch.ones(2, 11, 1, 1, 1)), torch.ones(2, 3, 9, 9)
    )
    shaded = augment.lit(pixels, torch.rand(40, 11, 1, 1, 1) - 0.5)
    assert not torch.allclose(shaded[:, :, 10:14, 10:14], pixels[:, :, 10:14, 10:14], atol=0.02)


def test_about_the_share_is_restyled() -> None:
    pixels = drawings(400)
    restyled = augment.restyled(pixels, 0.3, rngs(400))
    changed = (restyled - pixels).abs().amax((1, 2, 3)) > 1e-3
    assert 0.22 < changed.float().mean() < 0.38
    assert torch.equal(pixels, drawings(400))  # the caller's own
