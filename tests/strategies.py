"""Hypothesis strategies for the arguments of `lorentzkit.ops`, at every radius and in both dtypes.

A case is drawn as a few scalars (curvature, radii, an angle, a kind of degeneracy) and the seed of
a generator for directions, so that it shrinks to something readable; the tensors are built from
them in float64 and rounded. What is tested is the rounded tensor, taken as exact.

"Radius" here is `a = sqrt(curv) * distance to the origin`, up to `max_radius(dtype)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import oracle
import torch
from condition import OPS, Frame, exact_dot, generic
from hypothesis import assume
from hypothesis import strategies as st
from mpmath import mp, mpf
from torch import Tensor

from lorentzkit import ops

DIMENSIONS = [2, 1, 3, 4, 8, 64, 256, 1024]
HIGHEST_KLEIN = {torch.float32: 7, torch.float64: 16}  # digits of 1 - |k| that a dtype can hold


class Case(NamedTuple):
    args: list[Tensor]
    curv: Tensor
    kw: Mapping[str, float] = MappingProxyType({})


# --- Scalars ----------------------------------------------------------------------------------


def powers(low: float, high: float) -> st.SearchStrategy[float]:
    """Log-uniform between 10^low and 10^high."""
    return st.floats(low, high).map(lambda e: 10.0**e)


def curvatures(dtype: torch.dtype) -> st.SearchStrategy[Tensor]:
    return (st.just(1.0) | powers(-2, 2)).map(lambda c: torch.tensor(c, dtype=dtype))


def largest_radius(dtype: torch.dtype) -> float:
    """A little less than what is clamped, for rounding may lengthen a vector."""
    return float(ops.max_radius(dtype)) * (1 - 1e-6)


def radii(dtype: torch.dtype, highest: float = math.inf) -> st.SearchStrategy[float]:
    highest = min(highest, largest_radius(dtype))
    return (
        powers(-6, math.log10(highest))
        | st.floats(0, min(highest, 12.0)).map(lambda a: max(a, 1e-6))
        | st.floats(1e-6, highest)
        | st.sampled_from([1.0, 1e-6, highest])
    )


def angles() -> st.SearchStrategy[float]:
    """Between 1e-7 and pi - 1e-7, dense at both ends."""
    return powers(-7, 0) | powers(-7, 0).map(lambda t: math.pi - t) | st.floats(1e-7, 3.14159)


seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)

# --- Directions and points, as float64 arrays -------------------------------------------------


def unit(rng: np.random.Generator, D: int) -> np.ndarray:
    v = rng.standard_normal(D)
    return v / np.linalg.norm(v)


def beside(rng: np.random.Generator, u: np.ndarray, theta: float) -> np.ndarray:
    """A unit vector at angle theta from the unit vector u (in one dimension: u or -u)."""
    if len(u) == 1:
        return u * math.copysign(1, math.cos(theta))
    w = unit(rng, len(u) + 1)[1:]  # not u again, should its generator have had the same seed
    w -= u * (u @ w)
    return math.cos(theta) * u + math.sin(theta) * w / np.linalg.norm(w)


def point(u: np.ndarray, a: float, curv: Tensor) -> Tensor:
    return torch.from_numpy(u * (math.sinh(a) / math.sqrt(curv.item()))).to(curv.dtype)


def direction(x: Tensor) -> np.ndarray:
    v = x.double().numpy()
    v = v / (np.abs(v).max() or 1.0)
    return v / (np.linalg.norm(v) or 1.0)


def subnormal(rng: np.random.Generator, D: int, dtype: torch.dtype) -> Tensor:
    info = torch.finfo(dtype)
    return torch.from_numpy(unit(rng, D) * info.tiny * 10.0 ** rng.uniform(-6, 2)).to(dtype)


@st.composite
def points(draw, dtype: torch.dtype, D: int, curv: Tensor, smooth: bool) -> Tensor:
    rng = draw(seeds)
    if draw(st.integers(0, 9)) == 9:
        return torch.zeros(D, dtype=dtype) if smooth else subnormal(rng, D, dtype)
    u = np.eye(D)[-1] if draw(st.integers(0, 9)) == 9 else unit(rng, D)
    return point(u, draw(radii(dtype)), curv)


# --- Pairs ------------------------------------------------------------------------------------


@st.composite
def partners(draw, x: Tensor, curv: Tensor, kinds: list[str]) -> Tensor:
    """A second point: at an angle from x, near x, exactly in line with it, or degenerate."""
    rng, dtype, kind = draw(seeds), x.dtype, draw(st.sampled_from(kinds))
    u = direction(x) if x.any() else unit(rng, len(x))
    if kind == "angle":
        return point(beside(rng, u, draw(angles())), draw(radii(dtype)), curv)
    if kind == "near":
        scale = x.double().norm().item() * draw(powers(-7, -1))
        return shorter(x + torch.from_numpy(unit(rng, len(x)) * scale).to(dtype), curv)
    if kind == "ulp":
        towards = torch.from_numpy(rng.choice([-np.inf, 0, np.inf], len(x))).to(dtype)
        return shorter(torch.where(towards == 0, x, x.nextafter(towards)), curv)
    if kind == "line":
        return shorter(draw(st.sampled_from([0.5, 2.0, 2.0**-20, -0.25, -1.0])) * x, curv)
    return {"equal": x.clone(), "origin": 0 * x, "subnormal": subnormal(rng, len(x), dtype)}[kind]


def shorter(x: Tensor, curv: Tensor) -> Tensor:
    """x, halved if it is beyond the largest radius."""
    return x / 2 if _size(x, curv) > math.sinh(largest_radius(x.dtype)) else x


REGULAR = ["angle", "angle", "angle", "near", "ulp"]
SPECIAL = ["line", "equal", "origin"]


def kinds(smooth: bool) -> list[str]:
    """Subnormal numbers have few digits: the library's gradients there are finite, not exact."""
    return REGULAR + SPECIAL + ([] if smooth else ["subnormal"])


@st.composite
def pairs(draw, dtype: torch.dtype, smooth: bool) -> Case:
    curv, D = draw(curvatures(dtype)), draw(st.sampled_from(DIMENSIONS))
    x = draw(points(dtype, D, curv, smooth))
    y = draw(partners(x, curv, kinds(smooth)))
    return Case([x, y], curv)


@st.composite
def distinct_pairs(draw, dtype: torch.dtype, smooth: bool) -> Case:
    """The distance has no derivative where it is zero."""
    case = draw(pairs(dtype, smooth))
    assume(not (smooth and torch.equal(*case.args)))
    return case


@st.composite
def triangles(draw, dtype: torch.dtype, smooth: bool) -> Case:
    """The angles have a kink where origin, x and y are in line, as in one dimension always."""
    curv = draw(curvatures(dtype))
    D = draw(st.sampled_from([d for d in DIMENSIONS if d > smooth]))
    x = draw(points(dtype, D, curv, smooth))
    y = draw(partners(x, curv, REGULAR if smooth else kinds(smooth)))
    assume(generic(x, y) or not smooth)
    return Case([x, y], curv)


@st.composite
def cones(draw, dtype: torch.dtype, smooth: bool) -> Case:
    """Not on the cone's edge: there the residual has a kink, and no derivative says how far off
    rounding may put it. For subnormal points, with few digits, that is everywhere.
    """
    case = draw(triangles(dtype, smooth))
    assume(all(not v.any() or v.double().norm() >= torch.finfo(dtype).tiny for v in case.args))
    scale = draw(st.sampled_from([1.0, 0.5, 0.75, 1.25]))
    kw = {"min_radius": draw(st.sampled_from([0.1, 0.5, 0.01])), "aperture_scale": scale}
    with mp.workdps(400):
        x, y, c = in_frame(*case.args, case.curv)
        cone = scale * oracle.half_aperture(x, c, mpf(kw["min_radius"]))
        assume(abs(oracle.exterior_angle(x, y, c) - cone) > 1e-3)
        assume(_off_apex(x, c, kw["min_radius"]) or not smooth)
    return case._replace(kw=kw)


def _off_apex(x: oracle.Vector, c: mpf, min_radius: float) -> bool:
    return abs(mp.sqrt(c) * oracle.norm(x) / (2 * min_radius) - 1) > 1e-6


def in_frame(*tensors: Tensor) -> list:
    """The vectors, then the scalars, for the oracle."""
    frame = Frame([t for t in tensors if t.ndim])
    return [frame.place(t) if t.ndim else mpf(t.item()) for t in tensors]


# --- One point --------------------------------------------------------------------------------


@st.composite
def singles(draw, dtype: torch.dtype, smooth: bool) -> Case:
    curv, D = draw(curvatures(dtype)), draw(st.sampled_from(DIMENSIONS))
    return Case([draw(points(dtype, D, curv, smooth))], curv)


def nonzero_singles(dtype: torch.dtype, smooth: bool) -> st.SearchStrategy[Case]:
    return singles(dtype, smooth).filter(lambda case: not smooth or bool(case.args[0].any()))


@st.composite
def apexes(draw, dtype: torch.dtype, smooth: bool) -> Case:
    case = draw(singles(dtype, smooth))
    kw = {"min_radius": draw(st.sampled_from([0.1, 0.5, 0.01]))}
    if draw(st.booleans()):  # near the edge of the ball in which the cone is everything
        a = math.asinh(2 * kw["min_radius"]) * (1 + draw(powers(-7, 0)))
        case = case._replace(args=[point(unit(draw(seeds), len(case.args[0])), a, case.curv)])
    if smooth:
        x, c = in_frame(*case.args, case.curv)
        assume(_off_apex(x, c, kw["min_radius"]))
    return case._replace(kw=kw)


@st.composite
def around_the_axis(draw, dtype: torch.dtype, smooth: bool) -> Case:
    """For the half-space: from near the boundary's one distinguished point to the other side."""
    curv, D, rng = draw(curvatures(dtype)), draw(st.sampled_from(DIMENSIONS)), draw(seeds)
    axis = np.eye(D)[-1]
    u = draw(st.sampled_from([axis, -axis, beside(rng, axis, draw(angles()))]))
    return Case([point(u, draw(radii(dtype)), curv)], curv)


@st.composite
def balls(draw, dtype: torch.dtype, smooth: bool) -> Case:
    """Points of the ball of radius 1 / sqrt(curv), up to the last float inside."""
    curv, D = draw(curvatures(dtype)), draw(st.sampled_from(DIMENSIONS))
    near = powers(-HIGHEST_KLEIN[dtype], 0).map(lambda gap: 1 - gap)
    r = draw(near | powers(-6, -0.01) | st.just(0.0))
    k = torch.from_numpy(unit(draw(seeds), D) * r / math.sqrt(curv.item())).to(dtype)
    with mp.workdps(60):
        while mpf(curv.item()) * exact_dot(k, k) >= 1:
            k = k * (1 - torch.finfo(dtype).eps)
    return Case([k], curv)


@st.composite
def halfspaces(draw, dtype: torch.dtype, smooth: bool) -> Case:
    """Height exp(tau), distance from the axis at most exp((A + tau) / 2): radius at most A + 2."""
    curv, D, rng = draw(curvatures(dtype)), draw(st.sampled_from(DIMENSIONS)), draw(seeds)
    A = largest_radius(dtype) - 2
    tau = draw(st.floats(-A, A) | powers(-7, 0) | st.floats(-3, 3))
    aside = draw(st.floats(0, 1) | powers(-7, 0)) * math.exp((A + tau) / 2 * draw(st.floats(0, 1)))
    z = unit(rng, D - 1) * aside if D > 1 else np.zeros(0)
    h = np.append(z, math.exp(tau)) / math.sqrt(curv.item())
    return Case([torch.from_numpy(h).to(dtype)], curv)


# --- Tangent vectors --------------------------------------------------------------------------


@st.composite
def tangents(draw, x: Tensor, curv: Tensor, longest: float = 10.0) -> Tensor:
    """A tangent vector at x of length at most `longest` / sqrt(curv), space components.

    Along the radius it is cosh(a) times as long as its length. So far out rounding alone gives it
    a long transverse part: the length is measured after rounding, and corrected.
    """
    rng, dtype = draw(seeds), x.dtype
    u = direction(x) if x.any() else unit(rng, len(x))
    phi = draw(st.sampled_from([0.0, math.pi / 2, math.pi]) | st.floats(0, math.pi))
    size = draw(powers(-6, 0) | st.floats(0, 1) | st.just(0.0)) * longest
    stretch = math.hypot(1, _size(x, curv))
    if draw(st.integers(0, 4)) == 4:  # of any direction in space, so mostly short
        v = unit(rng, len(x))
    else:
        v = beside(rng, u, math.pi / 2) * math.sin(phi) * (len(x) > 1) + u * math.cos(phi) * stretch
    v = torch.from_numpy(v * size / math.sqrt(curv.item())).to(dtype)
    while (length := exact_length(x, v, curv)) > longest:
        v = v * (0.9 * longest / length)
    return v


def exact_length(x: Tensor, v: Tensor, curv: Tensor) -> float:
    with mp.workdps(700):
        x, v, c = in_frame(x, v, curv)
        return float(mp.sqrt(c) * oracle.tangent_norm(x, v, c))


@st.composite
def steps(draw, dtype: torch.dtype, smooth: bool) -> Case:
    """Arguments of expmap: the end point is within the largest radius."""
    curv, D, rng = draw(curvatures(dtype)), draw(st.sampled_from(DIMENSIONS)), draw(seeds)
    a = draw(radii(dtype, 0.95 * largest_radius(dtype)))
    x = torch.zeros(D, dtype=dtype) if draw(st.integers(0, 9)) == 9 else None
    x = point(unit(rng, D), a, curv) if x is None else x
    u = draw(tangents(x, curv, largest_radius(dtype) - a))
    # Where rounding u alone can lengthen it by more than 1, the end point is anywhere: no condition
    # number, being a derivative, says how far.
    blur = torch.finfo(dtype).eps * _size(u, curv)
    return Case([x, u / max(1.0, 10 * blur)], curv)


@st.composite
def steps_from_origin(draw, dtype: torch.dtype, smooth: bool) -> Case:
    curv, D, rng = draw(curvatures(dtype)), draw(st.sampled_from(DIMENSIONS)), draw(seeds)
    size = draw(radii(dtype) | st.just(0.0)) / math.sqrt(curv.item())
    return Case([torch.from_numpy(unit(rng, D) * size).to(dtype)], curv)


@st.composite
def tangent_at_one(draw, dtype: torch.dtype, smooth: bool) -> Case:
    case = draw(singles(dtype, smooth))
    return case._replace(args=[*case.args, draw(tangents(*case.args, case.curv))])


def nonzero_tangent_at_one(dtype: torch.dtype, smooth: bool) -> st.SearchStrategy[Case]:
    """The derivative in curv is (x.u)^2: where rounding alone makes x.u, no first-order condition
    says by how much it may be off.
    """

    def resolved(case: Case) -> bool:
        x, u = case.args
        size = torch.finfo(dtype).eps ** 2 * exact_dot(x, x) * exact_dot(u, u)
        product = exact_dot(x, u) ** 2
        return bool(u.any()) and (not product or product > size)

    return tangent_at_one(dtype, smooth).filter(lambda case: not smooth or resolved(case))


@st.composite
def tangent_at_origin(draw, dtype: torch.dtype, smooth: bool) -> Case:
    case = draw(singles(dtype, smooth))
    (y,) = case.args
    return case._replace(args=[y, draw(tangents(0 * y, case.curv))])


@st.composite
def two_tangents(draw, dtype: torch.dtype, smooth: bool) -> Case:
    case = draw(tangent_at_one(dtype, smooth))
    return case._replace(args=[*case.args, draw(tangents(case.args[0], case.curv))])


@st.composite
def transports(draw, dtype: torch.dtype, smooth: bool) -> Case:
    case = draw(pairs(dtype, smooth))
    return case._replace(args=[*case.args, draw(tangents(case.args[0], case.curv))])


@st.composite
def covectors(draw, dtype: torch.dtype, smooth: bool) -> Case:
    case = draw(singles(dtype, smooth))
    (x,) = case.args
    g = beside(draw(seeds), direction(x) if x.any() else np.eye(len(x))[0], draw(angles()))
    return case._replace(args=[x, torch.from_numpy(g * draw(powers(-6, 3))).to(dtype)])


@st.composite
def geodesics(draw, dtype: torch.dtype, smooth: bool) -> Case:
    """t is in [0, 1], or beyond where the end stays within the largest radius."""
    case = draw(pairs(dtype, smooth))
    t = draw(st.floats(0, 1) | st.floats(-1, 2) | st.sampled_from([0.0, 1.0, 0.5]))
    lengths = [math.asinh(_size(v, case.curv)) for v in case.args]
    if lengths[0] + abs(t) * sum(lengths) > largest_radius(dtype):
        t = min(max(t, 0.0), 1.0)
    return case._replace(args=[torch.tensor(t, dtype=dtype), *case.args])


# --- Means ------------------------------------------------------------------------------------


@st.composite
def clouds(draw, dtype: torch.dtype, smooth: bool) -> Case:
    curv, D = draw(curvatures(dtype)), draw(st.sampled_from(DIMENSIONS))
    n = draw(st.integers(2, 3 if smooth else 4))
    x = draw(points(dtype, D, curv, smooth))
    rows = [x, *(draw(partners(x, curv, kinds(smooth))) for _ in range(n - 1))]
    weights = draw(st.lists(powers(-3, 3) | st.just(1.0), min_size=n, max_size=n))
    if draw(st.integers(0, 9)) == 9:
        weights[-1] = 0.0
    return Case([torch.stack(rows), torch.tensor(weights, dtype=dtype)], curv)


@st.composite
def near_clouds(draw, dtype: torch.dtype, smooth: bool) -> Case:
    """Clouds within radius 8."""
    case = draw(clouds(dtype, smooth))
    rows = [v * min(1.0, math.sinh(8) / max(_size(v, case.curv), 1e-30)) for v in case.args[0]]
    return case._replace(args=[torch.stack(rows), case.args[1]])


def _size(x: Tensor, curv: Tensor) -> float:
    return math.sqrt(curv.item()) * x.double().norm().item()


@st.composite
def cotangents(draw, case: Case) -> Tensor:
    """At an angle from the op's first vector: random ones are across it in high dimension."""
    first = next(a for a in case.args if a.ndim)
    first = first[0] if first.ndim == 2 else first
    u = direction(first) if first.any() else np.eye(len(first))[0]
    return torch.from_numpy(beside(draw(seeds), u, draw(angles()))).to(first.dtype)


# --- Points for laws of several ops ----------------------------------------------------------

LARGEST = 6.0


class Points(NamedTuple):
    curv: Tensor
    x: list[Tensor]
    u: Tensor
    """Another vector of length up to 2 / sqrt(curv)."""


@st.composite
def some_points(draw, n, largest=LARGEST):
    """Points at random radii, in directions that are all over the place or all alike."""
    curv = draw((st.just(1.0) | powers(-2, 2)).map(lambda c: torch.tensor(c, dtype=torch.float64)))
    # Not in one dimension: nothing there is across the radius, where rounding is magnified most,
    # and the ops, written for all dimensions, do not profit from that.
    rng, D = draw(seeds), draw(st.sampled_from([2, 3, 5]))
    first, spread = rng.standard_normal(D), draw(st.sampled_from([1e3, 1.0, 1e-2]))
    radii = draw(st.lists(powers(-3, math.log10(largest)), min_size=n, max_size=n))
    vectors = [first + spread * rng.standard_normal(D) for _ in range(n)]
    points = [point(v / math.hypot(*v), a, curv) for v, a in zip(vectors, radii, strict=True)]
    u = torch.from_numpy(rng.standard_normal(D))
    size = draw(powers(-3, math.log10(2)))
    return Points(curv, points, u * size / (u.norm() * curv.sqrt()))


CASES = {
    "time": singles,
    "inner": pairs,
    "tangent_inner": two_tangents,
    "tangent_norm": nonzero_tangent_at_one,
    "dist": distinct_pairs,
    "dist0": nonzero_singles,
    "exterior_angle": triangles,
    "interior_angle": triangles,
    "half_aperture": apexes,
    "entailment_residual": cones,
    "expmap": steps,
    "logmap": pairs,
    "expmap0": steps_from_origin,
    "logmap0": singles,
    "geodesic": geodesics,
    "transp": transports,
    "transp0": tangent_at_origin,
    "transp0back": tangent_at_one,
    "egrad2rgrad": covectors,
    "to_klein": singles,
    "from_klein": balls,
    "to_poincare": singles,
    "from_poincare": balls,
    "to_halfspace": around_the_axis,
    "from_halfspace": halfspaces,
    "einstein_midpoint": clouds,
    "frechet_mean": clouds,
}
assert CASES.keys() == OPS.keys()
