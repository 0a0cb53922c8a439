"""The folded ``h`` (`triangle.unfold`) of a block of pairs, from one matrix product.

Where the product has lost h to rounding it is recomputed from differences.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lorentzkit._geometry.compilation import row_chunks
from lorentzkit._geometry.invariants import ANGLES
from lorentzkit._geometry.special import dot
from lorentzkit.fused.operands import FEW_DIMENSIONS

_ALIGNED = 1e-36  # `triangle.sines` takes it for 0, but it has a sign


def fold(kind: str, out: Tensor, x: Tensor, y: Tensor, mean: Tensor, threshold: float) -> None:
    """Fills `out` ``(n, m)`` for rows of two `Operand.basis`.

    For angles h has to be as exact near 2 as near 0: there it is folded, and negative. The mean
    and the threshold are those of `Operands`.
    """
    opposites = kind in ANGLES
    if x.shape[-1] - 2 <= FEW_DIMENSIONS:
        x, y = x[:, :-2], y[:, :-2]
        h = _half_square(x, -y)
        if opposites:
            h = torch.where(h > 1, _folded_opposites(x, y, mean), h)
        out.copy_(h)
        return
    torch.mm(x, y.mT, out=out)
    recompute(out, x[:, :-2], y[:, :-2], mean, threshold, opposites)


def recompute(
    out: Tensor, x: Tensor, y: Tensor, mean: Tensor, threshold: float, opposites: bool
) -> None:
    """Recomputes where ``out``, a product of two `Operand.spread`, has lost h; folds opposites."""
    lowest, highest = map(float, out.aminmax())  # a float compares in a tenth of the time
    if lowest < threshold:
        _recompute_where(out, x, y, out < threshold)
    if opposites and highest > 2 - threshold:
        _recompute_where(out, x, y, out > 2 - threshold, mean)


def _recompute_where(
    out: Tensor, x: Tensor, y: Tensor, mask: Tensor, mean: Tensor | None = None
) -> None:
    """Recomputes h from differences where the mask is set; given the mean, of opposite points."""
    i, j = mask.nonzero(as_tuple=True)
    if 8 * len(i) > out.numel():
        exact = _half_square(x, -y) if mean is None else _folded_opposites(x, y, mean)
        out.copy_(torch.where(mask, exact, out))
        return
    for chunk in row_chunks(len(i), x.shape[-1]):
        a, b = x[i[chunk]], y[j[chunk]]
        d = a + b if mean is None else a + 2 * mean - b
        h = 0.5 * dot(d, d)[:, 0]
        out[i[chunk], j[chunk]] = h if mean is None else _fold_opposite(h)


def _folded_opposites(x: Tensor, y: Tensor, mean: Tensor) -> Tensor:
    return _fold_opposite(_half_square(x + 2 * mean, y))


def _fold_opposite(g: Tensor) -> Tensor:
    """Folded. Exactly opposite directions leave the rounding of the mean, which is taken for 0."""
    noise = 2 * torch.finfo(g.dtype).eps ** 2
    return -torch.where(g < noise, 0.0, g) - _ALIGNED


def _half_square(x: Tensor, y: Tensor) -> Tensor:
    """``|x_i - y_j|**2 / 2`` from differences."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_().mul_(0.5)
