"""Ops by the Gram numbers of their vectors: values and written-out derivatives, in float64.

Ops commute with rotations. So the value of an op is a function of the inner products of its
vectors, and a resulting vector is a sum of them with such functions as coefficients. The products
of two vectors along one ray cancel: at the radius a, numbers lose a factor of ``cosh(a)**2``, and
derivatives in c lose its square. Near the origin float64 can spare those digits of float32 points.
Farther out, and for float64 points, `pairs`, `tangents` and `maps` use lengths and angles instead.

The first vector is x. The second, b, is a tangent vector; for a second point y it is ``y - x``, so
that close points lose no digits. The third, u, is a tangent vector.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from lorentzkit._geometry.array_functions import Numbers

NEAR = 2.0**14  # of c |x|**2: a radius of 5.5
SHORT = 2.0**8  # of c <u, u>, of tangent vectors whose exponential is taken


class Gram(NamedTuple):
    """Products ``(N, 1)`` of x, b and u; None where an op does not need the product."""

    xx: Numbers
    xb: Numbers = None
    bb: Numbers = None
    xu: Numbers = None
    bu: Numbers = None
    last: Numbers = None
    """The last coordinate of x, for half-space maps: their xx leaves it out"""


class Coefficients(NamedTuple):
    """Coefficients of x, b and u."""

    x: Numbers
    b: Numbers = None
    u: Numbers = None


class SplitVector(NamedTuple):
    """A vector ``(rest x_rest, last)``: half-space maps treat the last coordinate by itself."""

    rest: Numbers
    last: Numbers


class Partials(NamedTuple):
    """Partial derivatives of a sum over the rows: by the Gram numbers, by c, and by t."""

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
    cosh_diff: Numbers
    """``cosh(a) - cosh(b)``"""
    T: Numbers
    """``sinh(D/2)**2``"""
    R: Numbers
    """``sinh D``"""

    def log_c_partial(self) -> Numbers:
        """The derivative of T by ``log c``"""
        return self.T - 0.25 * self.cosh_diff * self.cosh_diff / (self.x_cosh * self.y_cosh)


class Settings(NamedTuple):
    """What an op depends on besides its vectors."""

    c: Numbers
    side: Side = None  # type: ignore[assignment]
    """For ops of two points"""
    t: Numbers = None
    """The parameter of "geodesic", in [0, 1]"""
    min_radius: float = 0.1


class Op(NamedTuple):
    """An op, as `rowwise` needs it.

    ``value(gram, settings)`` is a number or, where the op gives a vector, its `Coefficients`.
    ``vjp(gram, settings, grad)`` has the derivatives of ``(grad * value).sum()``. Where the op
    gives a vector, grad is ``grad_dots``, the products of x, b and u with the gradient, and the
    derivatives are those of ``grad_dots.x * value.x + grad_dots.b * value.b + ...``.
    """

    value: Callable[[Gram, Settings], Any]
    vjp: Callable[[Gram, Settings, Any], Partials]
    numbers: tuple[str, ...]
    """Which Gram numbers it takes"""
    points: int
    """How many of its vectors are points, the first ones"""
    grad_dots: str = ""
    """Which of x and b the vjp needs the products with the gradient of; empty if no vector"""
    reach: float = NEAR
    """It is exact up to this ``c |x|**2``, and ``c |y|**2``"""
    size: Callable[[Gram, Settings], Numbers] | None = None
    """What `reach` limits in place of ``c |x|**2``"""

    @property
    def splits_last(self) -> bool:
        """Whether it takes the last coordinate by itself."""
        return "last" in self.numbers

    def within(self, gram: Gram, settings: Settings) -> Numbers:
        """Whether all Gram numbers are exact enough, as one bool; False for NaN."""
        sizes = [settings.c * gram.xx if self.size is None else self.size(gram, settings)]
        if self.points == 2:
            sizes.append(0.25 * settings.c * gram.bb)
        # NaN is not less than anything, and no maximum hides it.
        within = sizes[0].max() <= self.reach
        for size in sizes[1:]:
            within = within & (size.max() <= self.reach)
        if settings.t is None:
            return within
        inside = (settings.t >= 0) & (settings.t <= 1)
        return within & (inside if isinstance(inside, bool) else inside.all())
