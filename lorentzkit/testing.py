"""Assertions for code that is built on hyperbolic geometry."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lorentzkit import ops


def boost(x: Tensor, to: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """The Lorentz boost that moves the origin to ``to``, applied to points ``x``.

    Args:
        x: space components, ``(..., D)``.
        to: space components, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        ``(..., D)``: an isometry of x; ``boost(0, to) = to``.

    Source: Ungar 2008, ch. 3: the left gyrotranslation.

    >>> boost(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 2.0]))
    tensor([1., 2.])
    """
    c = torch.as_tensor(curv, dtype=x.dtype, device=x.device).unsqueeze(-1)
    cosh = (1 + c * (to * to).sum(-1, keepdim=True)).sqrt()
    time = (1 + c * (x * x).sum(-1, keepdim=True)).sqrt()
    return x + to * (time + c * (to * x).sum(-1, keepdim=True) / (1 + cosh))


def assert_lorentz_invariant(
    function: Callable[..., Tensor],
    *points: Tensor,
    curv: float | Tensor = 1.0,
    rotations_only: bool = False,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
) -> None:
    """Assert that a function of points does not change when all are moved by the same isometry.

    The isometry is a random rotation (a reflection half of the time), followed by a random boost of
    hyperbolic length 1 unless ``rotations_only``: angles at the origin, radii and cones depend on
    the origin, and are invariant under rotations alone.

    Args:
        function: called with the points, in order.
        points: space components, ``(..., D)``, all of one D.
        curv: the curvature that the boost belongs to.
        rotations_only: leave the boost out.
        rtol, atol: tolerances of ``torch.testing.assert_close``; the default is that of the dtype.
        seed: of the random isometry.

    Raises:
        AssertionError: if the results differ; the message says how much and under which isometry.
        ValueError: if no points are given.

    >>> from lorentzkit import ops
    >>> x, y = torch.randn(2, 8, 3, dtype=torch.float64)
    >>> assert_lorentz_invariant(ops.dist, x, y)
    """
    if not points:
        raise ValueError("points: expected at least one tensor of points, got none")
    generator = torch.Generator().manual_seed(seed)
    size = points[0].shape[-1]
    gaussian = torch.randn(size, size, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(gaussian).Q.to(points[0])
    moved = [(point.unsqueeze(-2) * rotation).sum(-1) for point in points]
    if not rotations_only:
        direction = torch.randn(size, generator=generator, dtype=torch.float64)
        unit = (direction / direction.norm()).to(points[0])
        to = ops.expmap0(unit / torch.as_tensor(curv).to(unit).sqrt().unsqueeze(-1), curv)
        moved = [boost(point, to, curv) for point in moved]
    kind = "rotation" if rotations_only else "rotation and boost"
    torch.testing.assert_close(
        function(*moved),
        function(*points),
        rtol=rtol,
        atol=atol,
        msg=lambda message: f"not invariant under a {kind} (seed {seed}):\n{message}",
    )


__all__ = ["assert_lorentz_invariant", "boost"]
