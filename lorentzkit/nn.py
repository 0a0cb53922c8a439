"""Modules for networks whose embeddings are points of hyperbolic space.

Positive numbers are learned as their logarithms, held in parameters of shape ``(1,)`` (what sharded
data parallelism asks for), and used within bounds, which the state dict has beside them. No module
keeps a tensor that is not a parameter, and each has `reset_parameters`: all can be copied, pickled,
moved, wrapped and made on the meta device like any other.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from lorentzkit import ops
from lorentzkit._geometry.arguments import LARGEST_CURV, SMALLEST_CURV, points_and, working_dtype
from lorentzkit._geometry.elementary import hypot, sinh, with_exact_constants
from lorentzkit._geometry.precision import product
from lorentzkit._geometry.special import (
    arsinh_length,
    carry,
    cosh_sinhc,
    largest_radius,
    norm,
    root_one_plus,
)
from lorentzkit.fused.reference import half_chords, root, unit


class _Positive(nn.Module):
    """A positive number, learned as its logarithm, within bounds.

    Outside, the number is the bound's, and of its gradient what points back inside. The bounds are
    saved with the logarithm and loaded with it: a number means what it meant where it was learned,
    whatever bounds the module that loads it was made with.
    """

    log_name = "log_scale"
    """Of the parameter, in the module and in its state dict."""

    def __init__(self, name: str, init: float, lower: float, upper: float, learnable: bool) -> None:
        super().__init__()
        if not 0 < lower <= init <= upper:
            raise ValueError(
                f"{name}: expected a positive number in [{lower:g}, {upper:g}], got {init!r}"
            )
        self.init, self.lower, self.upper = float(init), float(lower), float(upper)
        log = nn.Parameter(torch.empty(1), requires_grad=learnable)
        self.register_parameter(self.log_name, log)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The number at the start, as for a module made on the meta device."""
        nn.init.constant_(self._log, math.log(self.init))

    @property
    def _log(self) -> Tensor:  # which is no Parameter where functional_call has put another
        log: Tensor = getattr(self, self.log_name)
        return log

    @with_exact_constants
    def forward(self) -> Tensor:
        """The number, a 0-dim tensor."""
        # float32 whatever the module was cast to: bfloat16 has no 1.01
        log = self._log.to(working_dtype(self._log))
        number: Tensor = _Clamp.apply(log, math.log(self.lower), math.log(self.upper))  # type: ignore[no-untyped-call]
        number = number.exp().squeeze(0)
        # The exponential of a bound's logarithm may round beyond it.
        return carry(number.clamp(self.lower, self.upper), number)

    def get_extra_state(self) -> Tensor:
        """The bounds, as what the state dict has beside the parameter."""
        return torch.tensor([self.lower, self.upper], dtype=torch.float64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """The bounds, from a state dict."""
        self.lower, self.upper = state.tolist()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        log, bounds = prefix + self.log_name, f"{prefix}_extra_state"
        if prefix + "log" in state_dict:  # its name in 0.1
            state_dict[log] = state_dict.pop(prefix + "log")
        if bounds not in state_dict:  # 0.1 did not save them
            state_dict[bounds] = self.get_extra_state()
            error_msgs += self._misfit(log, state_dict.get(log))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _misfit(self, name: str, log: Any) -> list[str]:
        """Why a logarithm saved without its bounds was not learned within these; empty if it was.

        An optimiser's momentum carries a number some way beyond a bound, which is then its value.
        """
        if not isinstance(log, Tensor) or log.is_meta or log.numel() == 0:
            return []
        values = log.detach().exp()
        least, most = values.min().item(), values.max().item()
        if self.lower / _OVERSHOT <= least <= most <= self.upper * _OVERSHOT:
            return []
        got = f"{least:g}" if least == most else f"{least:g} to {most:g}"
        return [
            f"{name}: expected the logarithm of a number in [{self.lower:g}, {self.upper:g}], got "
            f"that of {got}. lorentzkit 0.1 saved no bounds: make the module with the init and the "
            f"bounds that the number was learned with, and load it then"
        ]

    def extra_repr(self) -> str:
        learnable = self._log.requires_grad
        return f"init={self.init:g}, in [{self.lower:g}, {self.upper:g}], learnable={learnable}"


_OVERSHOT = 1.1


class _Clamp(Function):
    """``clamp``, with the gradient of what a descent step would bring back inside."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, lower: float, upper: float) -> Tensor:
        return x.clamp(lower, upper)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.lower, ctx.upper = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        outward = ((x >= ctx.upper) & (grad_output < 0)) | ((x <= ctx.lower) & (grad_output > 0))
        return torch.where(outward, 0.0, grad_output), None, None


class Curvature(_Positive):
    r"""The curvature of a model, learned or fixed: ``curv`` for all that takes one.

    Args:
        init: positive; the sectional curvature is ``-init``.
        learnable: otherwise the parameter is there, but frozen: the state dict is the same.
        bounds: least and largest curvature, as factors of ``init``.

    Calling it gives the curvature, a 0-dim tensor. Exclude its parameter from weight decay, which
    would pull the curvature to 1.

    Source: Desai et al. 2023 (MERU), sec. 3.1: learned as a logarithm, within a factor of 10.

    >>> curvature = Curvature(0.1)
    >>> curvature()
    tensor(0.1000, grad_fn=<AddBackward0>)
    >>> list(curvature.state_dict())  # the second are the bounds, which are loaded as well
    ['log_curv', '_extra_state']
    """

    log_name = "log_curv"
    log_curv: nn.Parameter

    def __init__(
        self,
        init: float = 1.0,
        *,
        learnable: bool = True,
        bounds: tuple[float, float] = (0.1, 10.0),
    ) -> None:
        lower, upper = bounds
        if not 0 < lower <= 1 <= upper:
            raise ValueError(
                f"bounds: expected factors of init, 0 < lower <= 1 <= upper, got {bounds!r}"
            )
        if not SMALLEST_CURV <= init <= LARGEST_CURV:
            raise ValueError(
                f"init: expected a positive number in [{SMALLEST_CURV:g}, {LARGEST_CURV:g}], got "
                f"{init!r}; it is the negative of the sectional curvature"
            )
        super().__init__(
            "init",
            init,
            max(lower * init, SMALLEST_CURV),
            min(upper * init, LARGEST_CURV),
            learnable,
        )


class LogitScale(_Positive):
    r"""The inverse temperature of a contrastive loss, learned, at most ``max``.

    Args:
        init: positive, at most ``max``.
        max: the largest scale.

    Calling it gives the scale, a 0-dim tensor. Exclude its parameter from weight decay.

    Source: Radford et al. 2021 (CLIP), sec. 2.5: 1/0.07 at the start, at most 100.

    >>> LogitScale(10.0)()
    tensor(10., grad_fn=<AddBackward0>)
    """

    log_scale: nn.Parameter

    def __init__(self, init: float = 1 / 0.07, max: float = 100.0) -> None:
        super().__init__("init", init, torch.finfo(torch.float32).tiny, max, True)


class Lift(nn.Module):
    r"""Features of a Euclidean network to points: scaled by a learned number, then ``expmap0``.

    ``ops.expmap0(scale * features, curv)``, with a scale that starts at ``radius/sqrt(dim)`` and is
    at most 1: features with entries of size 1 start at the distance ``radius`` from the origin.

    Args:
        dim: D, the size of a feature.
        radius: positive, at most ``sqrt(dim)``. Two lifts of different radii start with a modality
            gap: an angle loss needs images farther out than their texts.

    Called with features ``(..., D)`` and ``curv``, gives space components ``(..., D)``; half
    precision is lifted in float32.

    Source: Desai et al. 2023 (MERU), sec. 3.2, with a radius of 1.

    >>> features = torch.tensor([1.0, -1.0, 1.0, -1.0])
    >>> Lift(4)(features, curv=1.0).detach()
    tensor([ 0.5876, -0.5876,  0.5876, -0.5876])
    >>> ops.dist0(Lift(4, radius=2.0)(features)).detach()
    tensor(2.)
    """

    def __init__(self, dim: int, radius: float = 1.0) -> None:
        super().__init__()
        _check_size("dim", dim)
        largest = dim**0.5
        if not 0 < radius <= largest:
            raise ValueError(
                f"radius: expected a positive number of at most sqrt(dim) = {largest:g}, got "
                f"{radius!r}; a larger one needs a scale above 1: multiply the features"
            )
        self.dim = dim
        least = torch.finfo(torch.float32).tiny
        self.scale = _Positive("scale", radius / largest, least, 1.0, True)

    def reset_parameters(self) -> None:
        """The scale at the start."""
        self.scale.reset_parameters()

    def forward(self, features: Tensor, curv: float | Tensor = 1.0) -> Tensor:
        """Points ``(..., D)``."""
        if features.shape[-1:] != (self.dim,):
            raise ValueError(
                f"features: expected (..., {self.dim}), got shape {tuple(features.shape)}"
            )
        wide = features.to(working_dtype(features))
        return ops.expmap0(wide * self.scale().to(wide.dtype), curv)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class LorentzMLR(nn.Module):
    r"""Logits of classes: signed distances to hyperplanes, times the lengths of their normals.

    With z the weight of a class and a its offset, the hyperplane crosses the ray along z at the
    distance a from the origin, at a right angle. The logit of x is
    ``|z|/sqrt(curv) asinh(sqrt(curv) (cosh(sqrt(curv) a) <x, z>/|z| - sinh(sqrt(curv) a) x0))``,
    without that difference's cancellation (docs/numerics.md).

    Args:
        dim: D.
        classes: K.

    Called with points ``(..., D)`` and ``curv``, gives logits ``(..., K)``. As ``curv -> 0`` they
    are those of a linear layer, ``<x, z> - |z| a``.

    Source: Bdeir et al. 2024, "Fully Hyperbolic Convolutional Neural Networks", theorem 2; Ganea et
    al. 2018, "Hyperbolic Neural Networks", sec. 3.1.

    >>> head = LorentzMLR(2, 1)
    >>> head.load_state_dict({"weight": torch.tensor([[2.0, 0.0]]), "offset": torch.tensor([1.0])})
    <All keys matched successfully>
    >>> x = ops.expmap0(torch.tensor([[3.0, 0.0], [1.0, 0.0], [0.0, 5.0]]))
    >>> head(x).detach()  # twice the distance: 2 from the plane, on it, on the origin's side
    tensor([[  4.0000],
            [  0.0000],
            [-10.3230]])
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        for name, size in (("dim", dim), ("classes", classes)):
            _check_size(name, size)
        self.weight = nn.Parameter(torch.empty(classes, dim))
        self.offset = nn.Parameter(torch.empty(classes))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normals drawn anew, and hyperplanes through the origin."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.offset)

    @with_exact_constants
    def forward(self, x: Tensor, curv: float | Tensor = 1.0) -> Tensor:
        """Logits ``(..., K)``."""
        if x.shape[-1:] != self.weight.shape[1:]:
            raise ValueError(
                f"x: expected (..., {self.weight.shape[1]}), got shape {tuple(x.shape)}"
            )
        dtype = working_dtype(x, self.weight)
        weight, offset = self.weight.to(dtype), self.offset.to(dtype)
        with _no_autocast(x):
            return norm(weight).mT * _signed_dist(x.to(dtype), weight, offset, curv)

    def extra_repr(self) -> str:
        classes, dim = self.weight.shape
        return f"dim={dim}, classes={classes}"


def _check_size(name: str, size: object) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"{name}: expected a positive int, got {size!r}")


def _no_autocast(x: Tensor) -> AbstractContextManager[Any]:
    device = x.device.type
    available = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if available else nullcontext()


def _signed_dist(x: Tensor, normal: Tensor, offset: Tensor, curv: float | Tensor) -> Tensor:
    """Distances ``(..., K)`` of points ``(..., D)`` to hyperplanes, negative on the origin's side.

    With b the distance to the plane of the same normal through the origin and r_n the part of x
    across the normal, ``sinh d = sinh(b - a) - sinh(a) (cosh|x| - cosh b)`` in units of the
    curvature, and the last difference is ``curv r_n**2 / (cosh|x| + cosh b)``.
    """
    x, c = points_and(curv, {"x": x})
    batch = (x[..., 0] + c[..., 0]).shape
    x = x.expand(*batch, x.shape[-1]).reshape(-1, x.shape[-1])
    c = c.expand(*batch, 1).reshape(-1, 1)
    (u, r), (n, _) = unit(x), unit(normal)
    h, g = half_chords(u, n)
    along, across = product(x, n), c.sqrt() * r * root(h * g)
    limit = largest_radius(x.dtype) / c.sqrt()
    a = torch.clamp(offset, -limit, limit)
    coshes = root_one_plus(c.sqrt() * r) + root_one_plus(c.sqrt() * along)
    cosh_part = across / coshes * across * sinh(c.sqrt() * a)
    return _arsinh_difference(arsinh_length(along, c) - a, cosh_part, c).reshape(
        *batch, len(normal)
    )


def _arsinh_difference(d: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """``asinh(sinh(sqrt(c) d) - y) / sqrt(c)``; d itself, to the last digit, where y is 0."""
    cosh, sinhc, k = cosh_sinhc(c * d * d)  # all divided by exp(k)
    scale = torch.exp(-k)
    sinh_d, subtrahend = c.sqrt() * d * sinhc, y * scale
    difference = sinh_d - subtrahend
    # What is smaller changes d little: as asinh(p) - asinh(q), without cancellation.
    small = 2 * subtrahend.abs() < sinh_d.abs()
    denominator = difference * cosh + sinh_d * hypot(scale, difference)
    argument = -subtrahend * ((difference + sinh_d) / torch.where(small, denominator, 1.0))
    near = d + arsinh_length(torch.where(small, argument, 0.0) / c.sqrt(), c)
    minuend = torch.where(small, 0.0, sinh_d) * torch.exp(torch.where(small, 0.0, k))
    p = minuend - torch.where(small, 0.0, y)
    large = p.abs() > 1
    far = torch.where(large, p.abs(), 1.0)
    far = (far + hypot(torch.ones_like(far), far)).log() / c.sqrt()
    far = torch.where(p < 0, -far, far)
    return torch.where(small, near, torch.where(large, far, arsinh_length(p / c.sqrt(), c)))


__all__ = ["Curvature", "Lift", "LogitScale", "LorentzMLR"]
