"""Pictures: the Poincare disk with points, geodesics and entailment cones; radii; traversals.

Every function draws on ``ax``, by default pyplot's current axes, hands other keyword arguments to
the matplotlib artist it adds, and returns the axes. The disk has radius 1 whatever the curvature:
points of curvature ``-curv`` are scaled to curvature -1 first, which leaves angles as they are.

    import matplotlib.pyplot as plt
    from lorentzkit import viz

    ax = viz.poincare_disk()
    viz.cones(concepts, curv, ax=ax)
    viz.points(images, curv, ax=ax)
    plt.show()

matplotlib is imported when something is drawn: ``pip install 'lorentzkit[viz]'``.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lorentzkit import ops
from lorentzkit._geometry.arguments import curvature, vectors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike, NDArray

    Step = str | tuple[str, ArrayLike | None]

_STEP = 0.1  # between the vertices of a geodesic: its chords stay within 3e-4 of it in the disk
_HORIZON = 40.0  # a ray this long ends on the horizon, to float64
_THUMBNAIL = 36.0  # the size of an image in a traversal, in points


def coordinates(x: Tensor, curv: float | Tensor = 1.0) -> NDArray[np.float64]:
    """Where points appear in the disk of radius 1: for labels, arrows and other artists.

    ``sqrt(curv) to_poincare(x, curv)``, in float64.

    Args:
        x: points, space components, ``(..., 2)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        An array ``(..., 2)``.

    Raises:
        TypeError: if x is no floating-point tensor.
        ValueError: if x is not of 2 dimensions (the message has the line that projects it), or not
            finite.

    >>> coordinates(torch.tensor([1.5, 0.0]), curv=0.25)
    array([0.33333333, 0.        ])
    """
    return _disk(*_planar(curv, x=x)).numpy()


def poincare_disk(ax: Axes | None = None, **kwargs: Any) -> Axes:
    """An empty Poincare disk: the horizon, equal scales, no frame and no ticks.

    Args:
        ax: where to draw; by default ``plt.gca()``.
        **kwargs: for the horizon, a `matplotlib.patches.Circle` of radius 1 around 0.

    Returns:
        The axes.

    >>> ax = poincare_disk(facecolor="none")
    >>> ax.patches[0].radius
    1.0
    """
    ax = _axes(ax)
    patches = _matplotlib("patches")
    style = {"facecolor": "#fbfbf9", "edgecolor": "#8a8f96", "zorder": 0.5}
    ax.add_patch(patches.Circle((0, 0), 1.0, **_style(patches.Circle, style, kwargs)))
    ax.set_aspect("equal")
    ax.set(xlim=(-1.03, 1.03), ylim=(-1.03, 1.03))
    ax.axis("off")
    return ax


def points(x: Tensor, curv: float | Tensor = 1.0, *, ax: Axes | None = None, **kwargs: Any) -> Axes:
    """Points in the disk.

    Args:
        x: points, space components, ``(..., 2)``.
        curv: positive, broadcasts against ``(...)``.
        ax: where to draw, a `poincare_disk`; by default ``plt.gca()``.
        **kwargs: for `Axes.scatter`; its sequences (``s``, ``c``) are in the order of x, flattened.

    Returns:
        The axes.

    Raises:
        TypeError, ValueError: as `coordinates`.

    >>> ax = points(torch.randn(5, 2), ax=poincare_disk(), s=10)
    """
    across, up = coordinates(x, curv).reshape(-1, 2).T
    ax = _axes(ax)
    ax.scatter(across, up, **{"zorder": 3, **kwargs})
    return ax


def geodesics(
    x: Tensor, y: Tensor, curv: float | Tensor = 1.0, *, ax: Axes | None = None, **kwargs: Any
) -> Axes:
    """The geodesics from x to y: arcs that would meet the horizon at right angles.

    Args:
        x, y: points, space components, ``(..., 2)``.
        curv: positive, broadcasts against ``(...)``.
        ax: where to draw, a `poincare_disk`; by default ``plt.gca()``.
        **kwargs: for `matplotlib.collections.LineCollection`; sequences in the order of x and y.

    Returns:
        The axes.

    Raises:
        TypeError, ValueError: as `coordinates`.

    >>> x, y = torch.randn(2, 5, 2)
    >>> ax = geodesics(x, y, ax=poincare_disk(), color="gray")
    """
    x, y, c = _planar(curv, x=x, y=y)
    ax = _axes(ax)
    longest = (c.sqrt() * ops.dist(x, y, c)).max().item() if x.numel() and y.numel() else 0.0
    t = torch.linspace(0, 1, 2 + math.ceil(longest / _STEP), dtype=torch.float64)
    paths = ops.geodesic(t, x[..., None, :], y[..., None, :], c[..., None])
    lines = _disk(paths, c[..., None]).reshape(-1, len(t), 2).numpy()
    kind = _matplotlib("collections").LineCollection
    ax.add_collection(kind(list(lines), **_style(kind, {}, kwargs)))
    return ax


def cones(
    apex: Tensor,
    curv: float | Tensor = 1.0,
    *,
    min_radius: float = 0.1,
    ax: Axes | None = None,
    **kwargs: Any,
) -> Axes:
    """Entailment cones, shaded: all y with ``exterior_angle(apex, y) <= half_aperture(apex)``.

    The boundary are the two geodesic rays from the apex that make this angle with the ray that
    leads away from the origin, and the horizon between their ends. With the conventions of these
    ops, an apex with ``sqrt(curv) |x| <= 2 min_radius`` has the half-plane beyond it, and the
    origin the whole disk.

    Args:
        apex: points, space components, ``(..., 2)``.
        curv: positive, broadcasts against ``(...)``.
        min_radius: see `ops.half_aperture`.
        ax: where to draw, a `poincare_disk`; by default ``plt.gca()``.
        **kwargs: for `matplotlib.collections.PolyCollection`; sequences in the order of apex.

    Returns:
        The axes.

    Raises:
        TypeError, ValueError: as `coordinates`; if ``min_radius`` is not positive.

    >>> ax = cones(torch.tensor([[0.5, 0.0], [0.0, 2.0]]), ax=poincare_disk(), color="tab:green")
    """
    x, c = _planar(curv, apex=apex)
    aperture = ops.half_aperture(x, c, min_radius=min_radius)
    shape = aperture.shape
    x, c = x.expand(*shape, 2).reshape(-1, 2), c.expand(shape).flatten()
    ax = _axes(ax)
    kind = _matplotlib("collections").PolyCollection
    style = _style(kind, {"alpha": 0.25, "linewidth": 0.8}, kwargs)
    ax.add_collection(kind(_outlines(x, c, aperture.flatten()), **style))
    return ax


def _outlines(x: Tensor, c: Tensor, aperture: Tensor) -> list[NDArray[np.float64]]:
    """The boundary in the disk of the cone of every apex ``(N, 2)``: a ray, an arc, a ray back."""
    outward = torch.atan2(x[:, 1], x[:, 0])
    turned = outward + torch.stack([aperture, -aperture])
    directions = torch.stack([turned.cos(), turned.sin()], -1)
    length = torch.arange(0, _HORIZON, _STEP, dtype=torch.float64) / c.sqrt()[:, None]
    # Transport from the origin turns neither the direction to x nor what makes an angle with it.
    velocities = length[..., None] * ops.transp0(x, directions, c)[:, :, None]
    rays = _disk(ops.expmap(x[:, None], velocities, c[:, None]), c[:, None])

    left, right = torch.atan2(rays[:, :, -1, 1], rays[:, :, -1, 0])
    between = torch.remainder(left - right + 0.1, 2 * torch.pi) - 0.1  # above -0.1: it is positive
    angles = right[:, None] + between[:, None] * torch.linspace(1, 0, 361, dtype=torch.float64)
    arcs = torch.stack([angles.cos(), angles.sin()], -1)
    circle = torch.linspace(0, 2 * torch.pi, 361, dtype=torch.float64)
    full_circle = torch.stack([circle.cos(), circle.sin()], -1).numpy()
    outlines = torch.cat([rays[0], arcs, rays[1].flip(1)], 1).numpy()
    at_origin = (x == 0).all(-1).tolist()
    return [full_circle if o else outline for o, outline in zip(at_origin, outlines, strict=True)]


def radius_histogram(
    groups: Mapping[str, Tensor],
    curv: float | Tensor = 1.0,
    *,
    ax: Axes | None = None,
    **kwargs: Any,
) -> Axes:
    """How far each group of points is from the origin: one histogram over the other.

    Where entailment is learned, general concepts (texts) come to lie nearer to it than the specific
    (images).

    Args:
        groups: points by the name of their group, ``{"text": (..., D), ...}``, any D.
        curv: positive, broadcasts against ``(...)``.
        ax: where to draw; by default ``plt.gca()``.
        **kwargs: for `Axes.hist`, which chooses the same bins for all groups.

    Returns:
        The axes, with a legend.

    Raises:
        TypeError: if points are no floating-point tensor.
        ValueError: if there is no group, one is empty, or not finite.

    >>> x = torch.randn(100, 512)
    >>> ax = radius_histogram({"text": 0.01 * x, "image": 0.1 * x}, curv=0.1)
    """
    if not groups:
        raise ValueError("groups: expected points by name, like {'text': points}, got none")
    named = {f"groups[{name!r}]": x for name, x in groups.items()}
    for name, x in named.items():
        if _finite(name, *vectors(**{name: x})).numel() == 0:
            raise ValueError(f"{name}: expected points, got none; leave the group out")
    data = [ops.dist0(x, curv).detach().flatten().double().cpu().numpy() for x in groups.values()]
    ax = _axes(ax)
    style = {"bins": 40, "density": True, "histtype": "stepfilled", "alpha": 0.6}
    ax.hist(data, **{**style, "label": [*groups], **kwargs})
    ax.set(xlabel="distance to the origin", xlim=(0, None), yticks=[])
    ax.spines[["left", "top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return ax


def traversal(
    steps: Sequence[Step],
    t: Sequence[float] | Tensor | None = None,
    *,
    ax: Axes | None = None,
    **kwargs: Any,
) -> Axes:
    """What is met on the way along a geodesic, in a strip from top to bottom.

    Usually from an image to the root: at every ``ops.geodesic(t, image, root, curv)`` the nearest
    text. Consecutive steps of one label share a row, which shows the first and the last t.

    Args:
        steps: in the order of the way; labels, or pairs of a label and an image (what
            `Axes.imshow` takes, or None).
        t: parameter of each step, by default evenly from 0 to 1.
        ax: where to draw; by default ``plt.gca()``.
        **kwargs: for the labels, `matplotlib.text.Text`.

    Returns:
        The axes.

    Raises:
        ValueError: if there is no step, or not one t for each.

    >>> ax = traversal(["a tabby asleep", "a cat", "a cat", "animal", "[ROOT]"])
    """
    pairs = [(step, None) if isinstance(step, str) else step for step in steps]
    where = torch.linspace(0, 1, len(pairs)) if t is None else torch.as_tensor(t)
    if not pairs or where.shape != (len(pairs),):
        raise ValueError(
            f"steps, t: expected one t for each of one or more steps, got {len(pairs)} steps "
            f"and t of shape {tuple(where.shape)}"
        )
    located = zip(pairs, where.tolist(), strict=True)
    rows = [[*run] for _, run in groupby(located, key=lambda step: step[0][0])]
    pictures = [next((p for (_, p), _ in run if p is not None), None) for run in rows]
    indent = 12 if all(picture is None for picture in pictures) else 20 + _THUMBNAIL
    style = _style(_matplotlib("text").Text, {"verticalalignment": "center"}, kwargs)
    beside: dict[str, Any] = {"textcoords": "offset points"}
    gray = {**beside, "color": "#6b7a87", "fontsize": "small", "va": "center", "ha": "right"}

    ax = _axes(ax)
    ax.plot([0] * len(rows), range(len(rows)), "o-", color="#b9bfc6", mfc="#2f6fb5", mec="white")
    for row, (run, picture) in enumerate(zip(rows, pictures, strict=True)):
        ((label, _), first), (_, final) = run[0], run[-1]
        span = f"{first:.2f}" if len(run) == 1 else f"{first:.2f}\N{EN DASH}{final:.2f}"
        ax.annotate(span, (0, row), (-10, 0), **gray)
        ax.annotate(label, (0, row), (indent, 0), **beside, **style)
        if picture is not None:
            _thumbnail(ax, picture, row)
    ax.set(xlim=(-0.3, 1), ylim=(len(rows) - 0.5, -0.5))
    ax.axis("off")
    return ax


def _thumbnail(ax: Axes, picture: ArrayLike, row: int) -> None:
    """An image of fixed size on the page, to the right of its row's dot."""
    box, pixels = _matplotlib("offsetbox"), np.asarray(picture)
    image = box.OffsetImage(pixels, zoom=_THUMBNAIL / max(pixels.shape[:2]))
    beside = (12 + _THUMBNAIL / 2, 0)
    placement = {"xybox": beside, "boxcoords": "offset points", "frameon": False, "pad": 0}
    ax.add_artist(box.AnnotationBbox(image, (0, row), **placement))


def _planar(curv: float | Tensor, **named: object) -> list[Tensor]:
    """Points of the plane and the curvature, checked, on the CPU, in float64."""
    for name, x in zip(named, tensors := vectors(**named), strict=True):
        if x.shape[-1] != 2:
            raise ValueError(
                f"{name}: a disk shows points (..., 2), got shape {tuple(x.shape)}; project them "
                f"first, say on the two main directions seen from the origin: "
                f"u = ops.logmap0({name}, curv); "
                f"{name} = ops.expmap0(u @ torch.pca_lowrank(u, 2, center=False)[2], curv)"
            )
        _finite(name, x)
    c = curvature(curv, torch.float64, torch.device("cpu"))[..., 0]
    return [x.detach().cpu().double() for x in [*tensors, c]]


def _finite(name: str, x: Tensor) -> Tensor:
    if not bool(x.isfinite().all()):
        bad = int((~x.isfinite()).any(-1).sum())
        raise ValueError(f"{name}: expected finite points, got {bad} with NaN or infinity")
    return x


def _disk(x: Tensor, c: Tensor) -> Tensor:
    """Poincare coordinates in the ball of radius 1."""
    return c.sqrt()[..., None] * ops.to_poincare(x, c)


def _axes(ax: Axes | None) -> Axes:
    return _matplotlib("pyplot").gca() if ax is None else ax


def _style(artist: type, defaults: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of an artist, by their long names, before our defaults."""
    chosen = _matplotlib("cbook").normalize_kwargs(kwargs, artist)
    if "color" in chosen:  # stands for both of these
        defaults = {k: v for k, v in defaults.items() if k not in ("facecolor", "edgecolor")}
    return {**defaults, **chosen}


def _matplotlib(module: str) -> Any:
    try:
        return importlib.import_module(f"matplotlib.{module}")
    except ModuleNotFoundError as error:
        raise ImportError(
            "lorentzkit.viz draws with matplotlib, which is not installed; "
            "pip install 'lorentzkit[viz]'"
        ) from error


__all__ = [
    "cones",
    "coordinates",
    "geodesics",
    "poincare_disk",
    "points",
    "radius_histogram",
    "traversal",
]
