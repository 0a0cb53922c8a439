"""Ops by the Gram numbers of their vectors: values and written-out derivatives, in float64.

No rotation changes what an op does, so its value is a function of the products of its vectors, and
a resulting vector is a sum of them with such functions as coefficients. The products of two vectors
along one ray cancel: at the radius a numbers lose a factor of ``cosh(a)**2``, and derivatives in c
its square. Near the origin float64 has so many digits to spare for float32 points. Farther out, and
of float64 points, `pairs`, `tangents` and `maps` take lengths and angles instead.

The first vector is x. The second, b, is a tangent vector, or ``y - x`` if it is a point y: so that
nothing cancels of close points. The third, u, is a tangent vector.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from lorentzkit._geometry.array_functions import Numbers

NEAR = 2.0**14  # of c |x|**2: a radius of 5.5
SHORT = 2.0**8  # of c <u, u>, of tangent vectors whose exponential is taken


class Gram(NamedTuple):
    """Products ``(N, 1)`` of x, b and u; None of those that an op does not need."""

    xx: Numbers
    xb: Numbers = None
    bb: Numbers = None
    xu: Numbers = None
    bu: Numbers = None
    last: Numbers = None
    """Of half-space maps: the last coordinate of x, which xx leaves out"""


class Sum(NamedTuple):
    """Coefficients of x, b and u."""

    x: Numbers
    b: Numbers = None
    u: Numbers = None


class Apart(NamedTuple):
    """A vector ``(rest x_rest, last)``: of half-space maps, which single out one coordinate."""

    rest: Numbers
    last: Numbers


class Slopes(NamedTuple):
    """Partial derivatives of a sum over the rows, by the Gram numbers, by c, and by t."""

    xx: Numbers
    xb: Numbers = None
    bb: Numbers = None
    xu: Numbers = None
    bu: Numbers = None
    c: Numbers = None
    t: Numbers = None
    last: Numbers = None


class Side(NamedTuple):
    """The third side of the triangle O, x, y: ``D = sqrt(c) d(x, y)``."""

    x_cosh: Numbers
    y_cosh: Numbers
    gap: Numbers
    """``cosh(a) - cosh(b)``"""
    T: Numbers
    """``sinh(D/2)**2``"""
    R: Numbers
    """``sinh D``"""

    def c_slope(self) -> Numbers:
        """The derivative of T by ``log c``"""
        return self.T - 0.25 * self.gap * self.gap / (self.x_cosh * self.y_cosh)


class Settings(NamedTuple):
    """What else an op depends on."""

    c: Numbers
    side: Side = None  # type: ignore[assignment]
    """Of two points; other ops have none"""
    t: Numbers = None
    """Of "geodesic", in [0, 1]"""
    min_radius: float = 0.1


class Op(NamedTuple):
    """An op, or what `rowwise` needs to know of it.

    ``value(gram, settings)`` is the op's number or a `Sum`. ``slopes(gram, settings, grad)`` are
    the derivatives of ``(grad * value).sum()`` or, of a vector, those of ``along.x * value.x +
    along.b * value.b + along.u * value.u``, with ``along`` the products of x, b and u with grad.
    """

    value: Callable[[Gram, Settings], Any]
    slopes: Callable[[Gram, Settings, Any], Slopes]
    numbers: tuple[str, ...]
    """Which Gram numbers it takes"""
    points: int
    """How many of its vectors are points, the first ones"""
    along: str = ""
    """Of a vector: those of x and b whose products with grad the slopes take"""
    reach: float = NEAR
    """The most of ``c |x|**2`` that it is exact for, and of ``c |y|**2``"""
    size: Callable[[Gram, Settings], Numbers] | None = None
    """What `reach` limits, if it is not the size of the vectors"""

    @property
    def apart(self) -> bool:
        """Whether it singles out the last coordinate."""
        return "last" in self.numbers

    def within(self, gram: Gram, of: Settings) -> Numbers:
        """Whether all Gram numbers are exact enough, one bool; not if they are NaN."""
        sizes = [of.c * gram.xx if self.size is None else self.size(gram, of)]
        if self.points == 2:
            sizes.append(0.25 * of.c * gram.bb)
        # NaN is not less than anything, and no maximum hides it.
        within = sizes[0].max() <= self.reach
        for size in sizes[1:]:
            within = within & (size.max() <= self.reach)
        if of.t is None:
            return within
        inside = (of.t >= 0) & (of.t <= 1)
        return within & (inside if isinstance(inside, bool) else inside.all())
