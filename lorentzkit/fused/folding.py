"""The folded ``h`` (`triangle.unfold`) of a block of pairs: one product, mended where it lost h."""

from __future__ import annotations

import torch
from torch import Tensor

from lorentzkit._geometry.compilation import row_chunks
from lorentzkit._geometry.special import dot
from lorentzkit.fused.operands import FEW_DIMENSIONS

_ALIGNED = 1e-36  # under what `triangle.sines` takes for 0, but with a sign


def fold(kind: str, out: Tensor, x: Tensor, y: Tensor, mean: Tensor, threshold: float) -> None:
    """Fills `out` ``(n, m)`` for rows of two `Cloud.basis`, and what `Clouds` has besides.

    Of "angle", h near 2 is as exact as near 0: folded, negative there.
    """
    opposites = kind == "angle"
    if x.shape[-1] - 2 <= FEW_DIMENSIONS:
        x, y = x[:, :-2], y[:, :-2]
        near = _half_square(x, -y)
        if opposites:
            near = torch.where(near > 1, _opposites(x, y, mean), near)
        out.copy_(near)
        return
    torch.mm(x, y.mT, out=out)
    mend(out, x[:, :-2], y[:, :-2], mean, threshold, opposites)


def mend(
    out: Tensor, x: Tensor, y: Tensor, mean: Tensor, threshold: float, opposites: bool
) -> None:
    """Corrects the product h of two clouds, given by their `Cloud.spread`; folds opposites."""
    lowest, highest = map(float, out.aminmax())  # a float compares in a tenth of the time
    if lowest < threshold:
        _mend(out, x, y, out < threshold)
    if opposites and highest > 2 - threshold:
        _mend(out, x, y, out > 2 - threshold, mean)


def _mend(out: Tensor, x: Tensor, y: Tensor, which: Tensor, mean: Tensor | None = None) -> None:
    """From differences; with the mean, of opposites."""
    i, j = which.nonzero(as_tuple=True)
    if 8 * len(i) > out.numel():
        exact = _half_square(x, -y) if mean is None else _opposites(x, y, mean)
        out.copy_(torch.where(which, exact, out))
        return
    for some in row_chunks(len(i), x.shape[-1]):
        a, b = x[i[some]], y[j[some]]
        d = a + b if mean is None else a + 2 * mean - b
        h = 0.5 * dot(d, d)[:, 0]
        out[i[some], j[some]] = h if mean is None else _opposite(h)


def _opposites(x: Tensor, y: Tensor, mean: Tensor) -> Tensor:
    return _opposite(_half_square(x + 2 * mean, y))


def _opposite(g: Tensor) -> Tensor:
    """Folded; the mean's rounding is left of exactly opposite directions, and taken for 0."""
    noise = 2 * torch.finfo(g.dtype).eps ** 2
    return -torch.where(g < noise, 0.0, g) - _ALIGNED


def _half_square(x: Tensor, y: Tensor) -> Tensor:
    """``|x_i - y_j|**2 / 2`` from differences."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_().mul_(0.5)
