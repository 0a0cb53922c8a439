"""Vectors that are hard for a formula, all combinations of them, and whether an op is finite there.

What cannot be promised is kept out: a true result too large for its dtype. `largest_linear` and
`corpus` say where that would be.
"""

import math

import pytest
import torch
from calls import DTYPES, SIGNATURES

from lorentzkit import ops

F32, F64 = DTYPES
LINEAR = {"tangent_inner", "tangent_norm", "transp", "transp0", "transp0back", "egrad2rgrad"}


def largest_linear(op, dtype):
    """For arguments that the result is linear in: the inverse metric alone is cosh^2 large, and so
    are the derivatives of the transport.
    """
    if op in ("egrad2rgrad", "transp"):
        return 1.0 if dtype == F32 else 1e45
    return 1e15 if dtype == F32 else 1e150


def vectors(dtype, D):
    """Vectors of every size, and of every relation to one another that is hard for a formula."""
    info = torch.finfo(dtype)
    generator = torch.Generator().manual_seed(D)
    v, w = torch.randn(2, D, generator=generator, dtype=F64)
    far = math.sinh(ops.max_radius(dtype)) * v / v.norm()
    spike = torch.eye(D, dtype=F64)[-1]
    of_size_one = [v, 2 * v, -v, v * (1 + 4 * info.eps), v + 1e-4 * w, w]
    tiny = [0 * v, -0.0 * v, info.tiny * v, info.tiny * info.eps * spike, 1e-10 * w]
    huge = [far, -far, far * (1 - 4 * info.eps), far + 1e-4 * far.norm() * w, 1e10 * v]
    beyond = [1e30 * w, 1e30 * v, info.max * spike, -info.max * spike, info.max * v.sign()]
    mixed = [spike + info.tiny * v, 1e10 * spike + 1e-10 * v]
    return torch.stack([*of_size_one, *tiny, *huge, *beyond, *mixed]).to(dtype)


def calm(v):
    """Vectors no farther out than radius 3."""
    return v / (v.norm(dim=-1, keepdim=True, dtype=F64) / 10).clamp_min(1.0).to(v.dtype)


def product(*pools):
    picks = torch.cartesian_prod(*(torch.arange(len(pool)) for pool in pools)).reshape(
        -1, len(pools)
    )
    return [pool[i] for pool, i in zip(pools, picks.unbind(-1), strict=True)]


def pool(op, name, dtype, D, curv):
    """Values of one argument, moved into the op's domain if it has one."""
    info, v = torch.finfo(dtype), vectors(dtype, D)
    if name == "t":
        return torch.tensor([0, 0.5, 1, -1, 2, 1e-8, 1 + 1e-7, 1e10, -1e30], dtype=dtype)
    if op in LINEAR and name in ("u", "v", "g"):
        return v.clamp(-largest_linear(op, dtype), largest_linear(op, dtype))
    if name in ("k", "p"):  # up to the last floats inside the ball of radius 1/sqrt(curv)
        radii = torch.tensor([0, info.tiny, 1e-4, 0.5, 1 - 1e-3, 1 - 4 * info.eps], dtype=F64)
        radii, units = product(radii, torch.nn.functional.normalize(v.double(), dim=-1))
        return (radii[:, None] * units / math.sqrt(curv)).to(dtype)
    if name == "h":
        heights = v.abs().amax(-1).clamp_min(info.tiny)
        z, height = product(v[:, :-1], torch.cat([heights, heights.new_ones(1)]))
        return torch.cat([z, height[:, None]], -1)
    return v


def corpus(op, dtype, D, curv):
    if "points" in SIGNATURES[op]:
        v = vectors(dtype, D)
        # The derivative in a weight of 0 is cosh(d) long: only near by is it promised.
        first, second = product(v, v)
        points = torch.stack([first, second, first], -2)
        near = calm(points)
        weights = torch.tensor([[1.0, 1.0, 1.0], [1e-5, 1e5, 1.0], [1.0, 0.0, 2.0]], dtype=dtype)
        points = torch.cat([points, points, near])
        return [points, weights.repeat_interleave(len(near), 0)]
    return product(*(pool(op, name, dtype, D, curv) for name in SIGNATURES[op]))


def value_and_gradients(op, args, curv):
    """The op's value, and the gradients of a weighted sum of its entries, by name."""
    leaves = [a.clone().requires_grad_() for a in args]
    c = torch.full((len(args[0]),), curv, dtype=args[0].dtype, requires_grad=True)
    out = getattr(ops, op)(*leaves, c)
    cotangent = torch.linspace(0.5, 1.5, out[0].numel(), dtype=out.dtype).reshape(out[0].shape)
    gradients = torch.autograd.grad(out, [*leaves, c], cotangent.expand(out.shape))
    return dict(zip(["value", *SIGNATURES[op], "curv"], [out, *gradients], strict=True))


def assert_finite(op, args, curv):
    for name, result in value_and_gradients(op, args, curv).items():
        bad = ~result.isfinite().flatten(1).all(-1) if result.dim() > 1 else ~result.isfinite()
        if bad.any():
            first = {n: a[bad][0].tolist() for n, a in zip(SIGNATURES[op], args, strict=True)}
            what = name if name == "value" else f"gradient in {name}"
            pytest.fail(f"{op}: {what} not finite in {int(bad.sum())} cases: {first}, {curv=}")
