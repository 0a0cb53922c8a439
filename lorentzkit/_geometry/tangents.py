"""Inner products and lengths of tangent vectors u at points x.

Far out the difference ``<u, v> = u.v - (x.u)(x.v)/x0**2`` is noise. So values, and their
derivatives in c, come from the parts across x and along x. Derivatives in the vectors come from the
increments of the difference (`smooth`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lorentzkit._geometry.invariants import Measures, Products, products
from lorentzkit._geometry.smooth import (
    Roots,
    cosh_root,
    product_rise,
    rise,
    roots,
    time_root,
    times,
)
from lorentzkit._geometry.special import differentiable, hypot, smallest_length
from lorentzkit._geometry.vectors import power_of_two, wide_dtype


def inner(x: Tensor, u: Tensor, v: Tensor, c: Tensor) -> Tensor:
    x, scale = _scaled(x)
    p, m, across = products(x, u, v)
    assert p.xu is not None
    assert p.yu is not None
    assert across is not None
    c, r = c.to(p.xx.dtype), scale * m.rx
    x0, cosh = _times(p, c, scale), cosh_root(r, c)
    rx = torch.where(m.rx > 0, m.rx, 1.0)
    value = across + cosh.over(m.ry * m.cosine) * cosh.over(p.xu.detach() / rx)
    if c.dtype == x.dtype:  # so near the origin x.u may have underflown, and does not matter
        value = torch.where(c * r * r < torch.finfo(c.dtype).eps ** 2, p.yu.detach(), value)
    if not differentiable(p.xx, p.yy, p.rise, p.xu, p.yu, c):
        return value.to(x.dtype)
    a, a_rises = _time(m.rx * m.ry * m.cosine, product_rise(p, m), x0)
    b, b_rises = _time(p.xu.detach(), rise(p.xu), x0)
    rises = rise(p.yu) - (a_rises * (b + b_rises) + a * b_rises)
    return (value + rises).to(x.dtype)


def square(x: Tensor, u: Tensor, c: Tensor) -> Tensor:
    """``<u, u>``"""
    x, scale = _scaled(x)
    p, m, _ = products(x, u)
    c = c.to(p.xx.dtype)
    value = m.ry * m.ry * m.sine2 + cosh_root(scale * m.rx, c).over(m.ry * m.cosine) ** 2
    if differentiable(p.xx, p.yy, p.rise, c):
        value = value + _square_rise(p, m, _times(p, c, scale))
    return value.to(x.dtype)


def norm(x: Tensor, u: Tensor, c: Tensor) -> Tensor:
    """The gradient at ``u = 0`` is 0."""
    if wide_dtype(u) == u.dtype:  # whose squares might underflow
        scale = power_of_two([u])
        return scale * _norm(x, u / scale, c)
    return _norm(x, u, c)


def _norm(x: Tensor, u: Tensor, c: Tensor) -> Tensor:
    x, far = _scaled(x)
    p, m, _ = products(x, u)
    c = c.to(p.xx.dtype)
    value = hypot(m.ry * m.sine2.sqrt(), cosh_root(far * m.rx, c).over(m.ry * m.cosine))
    scale = torch.where(value > 0, value, 1.0).detach().clamp_min(smallest_length(c.dtype))
    square = (value / scale) ** 2 + _square_rise(p, m, _times(p, c, far)) / scale / scale
    nonzero = square != 0
    return torch.where(nonzero, scale * torch.where(nonzero, square, 1.0).sqrt(), 0.0).to(x.dtype)


def squared_arc(p: Products, m: Measures, c: Tensor) -> Tensor:
    """``c <u, u>``; its derivative in c does not cancel."""
    value = c * (m.ry * m.ry * m.sine2) + time_root(m.rx, c).over(m.ry * m.cosine) ** 2
    if not differentiable(p.xx, p.yy, p.rise, c):
        return value
    return value + c * _square_rise(p, m, times(p.xx, c))


def _scaled(x: Tensor) -> tuple[Tensor, Tensor | float]:
    """x over its size, if it has no wider type: ``1/x0**2`` might underflow; and the size."""
    if wide_dtype(x) != x.dtype:
        return x, 1.0
    scale = power_of_two([x]).clamp_min(1.0)
    return x / scale, scale


def _times(p: Products, c: Tensor, scale: Tensor | float) -> Roots:
    """``x0 / scale``, from products of ``x / scale``."""
    return roots(1 / c / scale / scale, 1.0, p.xx)


def _square_rise(p: Products, m: Measures, x0: Roots) -> Tensor:
    """The increment of ``u.u - (x.u)**2/x0**2``; u is the y of p and m."""
    a, rises = _time(m.rx * m.ry * m.cosine, product_rise(p, m), x0)
    return rise(p.yy) - rises * (2 * a + rises)


def _time(xu: Tensor, rises: Tensor, x0: Roots) -> tuple[Tensor, Tensor]:
    """The time component ``x.u/x0`` of u, and its increment."""
    value = xu / x0.value
    return value, (rises - value * x0.rise) / (x0.value + x0.rise)
