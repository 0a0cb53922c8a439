"""`torch.onnx.export` of ops and modules: onnxruntime computes what PyTorch does."""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import onnxruntime
import pytest
import torch
from calls import SIGNATURES, arguments
from torch import Tensor, nn

from lorentzkit import ops
from lorentzkit._geometry import elementary
from lorentzkit.nn import Curvature, Lift, LorentzMLR

D = 6
OUTSIDE = ("from_klein", "from_poincare", "from_halfspace")  # refuse infinite coordinates
EXPORTED = [op for op in SIGNATURES if op != "frechet_mean"]  # which iterates on values


class Op(nn.Module):
    def __init__(self, op: str) -> None:
        super().__init__()
        self.function = getattr(ops, op)

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args[:-1], curv=args[-1])


class Classifier(nn.Module):
    """A network's usual end: features, points, logits."""

    def __init__(self) -> None:
        super().__init__()
        self.curvature, self.lift, self.head = Curvature(0.7), Lift(D), LorentzMLR(D, 4)
        nn.init.normal_(self.head.offset)

    def forward(self, features: Tensor) -> Tensor:
        curv = self.curvature()
        return self.head(self.lift(features, curv), curv)


@pytest.fixture(autouse=True)
def quiet():
    """pytest collects the exporter's messages of every level, which takes its time."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def in_onnxruntime(program: torch.onnx.ONNXProgram):
    """A function of tensors."""
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    names = [node.name for node in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        named = dict(zip(names, (g.numpy() for g in inputs), strict=True))
        return torch.from_numpy(session.run(None, named)[0])

    return run


def exported(module: nn.Module, args: Sequence[Tensor], **kw: Any):
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return in_onnxruntime(torch.onnx.export(module, tuple(args), dynamo=True, **kw))


# --- Arguments ------------------------------------------------------------------------------------


def directions(seed: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(count, D, generator=generator, dtype=torch.float64)
    return nn.functional.normalize(v, dim=-1)


def hard_points(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Pairs of points: near, far, coinciding, aligned, opposite, the origin, beyond the clamp."""
    far = 35.0 if dtype == torch.float32 else 250.0
    u, v = directions(0, 16), directions(1, 16)
    a = [1.0, 1e-3, 1e-3, 1.0, 20.0, far, far, 0.0, 0.0, 1.0, 1.0, 8.0, 3.0, 1e-6, 12.0, far]
    b = [1.0, 1e-3, 5.0, 20.0, 20.0, far, 1e-3, 0.0, 1.0, 0.0, 1.0, 8.0, 9.0, 1e-6, 12.0, 2.0]
    v[10:12] = u[10:12]  # coinciding
    v[12:13] = u[12:13]  # aligned
    v[13] = nn.functional.normalize(u[13] + 1e-5 * v[13], dim=-1)
    v[14] = -u[14]
    v[15] = -u[15]
    x, y = (w * torch.tensor(r, dtype=torch.float64).sinh()[:, None] for w, r in ((u, a), (v, b)))
    y[11] = y[11] * (1 + 1e-5)  # close
    beyond = 1e30 if dtype == torch.float32 else 1e200
    extra = torch.zeros(1, D, dtype=torch.float64)
    extra[0, 0] = beyond
    return torch.cat([x, extra]).to(dtype), torch.cat([y, -extra]).to(dtype)


def hard_arguments(op: str, dtype: torch.dtype) -> list[Tensor]:
    x, y = hard_points(dtype)
    n = len(x)
    generic = arguments(op, batch=(n,), D=D, dtype=dtype)
    sizes = torch.tensor([0.0, 1e-6, 1.0, 5.0, 30.0]).repeat(n)[:n, None].to(dtype)
    inputs = {
        "x": x,
        "y": y,
        "u": (directions(2, n) * sizes).to(dtype),
        "v": directions(3, n).to(dtype),
        "g": directions(3, n).to(dtype),
        "points": torch.stack([x, y, 0.5 * x], 1),
        "t": torch.linspace(-0.5, 1.5, n).to(dtype),
    }
    return [inputs.get(name, own) for name, own in zip(SIGNATURES[op], generic, strict=True)]


def every_argument(op: str, dtype: torch.dtype) -> list[Tensor]:
    generic = arguments(op, batch=(17,), D=D, dtype=dtype)
    return [torch.cat(pair) for pair in zip(generic, hard_arguments(op, dtype), strict=True)]


def check(run, op: str, args: Sequence[Tensor], curv: float, rtol: float) -> None:
    """Scalars by their own size, vectors by their largest component."""
    inputs = (*args, torch.tensor(curv, dtype=args[0].dtype))
    result, expected = run(*inputs), Op(op)(*inputs)
    assert result.shape == expected.shape
    assert torch.equal(result.isfinite(), expected.isfinite()), (result, expected)
    size = expected.abs() if expected.dim() == 1 else expected.abs().amax(-1, keepdim=True)
    apart = (result - expected).abs() > rtol * size
    assert not apart.any(), f"{result[apart]} instead of {expected[apart]}"


# --- Ops ------------------------------------------------------------------------------------------


@pytest.mark.few(op="expmap")
@pytest.mark.parametrize("op", EXPORTED)
def test_ops(op):
    args = every_argument(op, torch.float32)
    run = exported(Op(op), (*args, torch.tensor(0.5)))
    for curv in (0.7, 0.1):
        check(run, op, args, curv, 1e-5)
    for i, name in enumerate(SIGNATURES[op]):  # what is not finite stays visible
        spoiled = [a.clone() for a in args]
        spoiled[i][3:5] = torch.nan
        spoiled[i][7] = torch.nan if op in OUTSIDE or name == "weights" else torch.inf
        check(run, op, spoiled, 0.7, 1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("op", ["dist", "einstein_midpoint"])
def test_float64_ops_to_its_digits(op):
    args = every_argument(op, torch.float64)
    run = exported(Op(op), (*args, torch.tensor(0.7, dtype=torch.float64)))
    check(run, op, args, 0.7, 1e-12)


@pytest.mark.thorough
def test_an_op_of_a_batch_of_any_size():
    op = "exterior_angle"
    args = arguments(op, batch=(5,), D=D, dtype=torch.float32)
    rows = torch.export.Dim("rows")
    shapes = ((*({0: rows} for _ in args), {}),)  # `*args` is one argument
    run = exported(Op(op), (*args, torch.tensor(0.7)), dynamic_shapes=shapes)
    for n in (5, 1, 17):
        check(run, op, arguments(op, batch=(n,), D=D, dtype=torch.float32), 0.7, 1e-5)


@pytest.mark.thorough
def test_a_program_exported_before():
    """It has the derivatives' operations, too."""
    args = every_argument("tangent_norm", torch.float64)
    program = torch.export.export(
        Op("tangent_norm"), (*args, torch.tensor(0.7, dtype=torch.float64))
    )
    check(exported(program, ()), "tangent_norm", args, 0.7, 1e-12)


# --- Modules --------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_network_that_ends_in_hyperbolic_space():
    torch.manual_seed(0)
    module = Classifier()
    rows = torch.export.Dim("rows")
    run = exported(module, (torch.randn(5, D),), dynamic_shapes=({0: rows},))
    for n in (5, 1, 17):
        sizes = torch.logspace(-6, 2, n)[:, None]
        features = torch.cat([sizes * torch.randn(n, D), torch.zeros(1, D)])
        torch.testing.assert_close(run(features), module(features).detach(), rtol=1e-5, atol=1e-5)


# --- Elementary functions -------------------------------------------------------------------------


def points_of(least: float, most: float) -> Tensor:
    t = torch.logspace(least, most, 2001, dtype=torch.float64)
    return torch.cat([-t, torch.zeros(1, dtype=torch.float64), t])


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("expm1", points_of(-20, 2.5)),
        ("sinh", points_of(-20, 2.5)),
        ("cosh", points_of(-20, 2.5)),
        ("asinh", points_of(-20, 150)),
        ("log1p", torch.cat([points_of(-20, -0.01), torch.logspace(0, 300, 99).double()])),
    ],
)
def test_elementary_functions_and_their_derivatives(name, argument, monkeypatch):
    x = argument.requires_grad_()
    expected = getattr(torch, name)(x)
    (slope,) = torch.autograd.grad(expected.sum(), x)
    monkeypatch.setattr(elementary, "is_exporting", lambda: True)
    result = getattr(elementary, name)(x)
    torch.testing.assert_close(result, expected, rtol=2e-15, atol=0)
    (result_slope,) = torch.autograd.grad(result.sum(), x)
    # torch's own of expm1, that plus 1, is a rounding of 1 off where it vanishes; cosh is above 1.
    torch.testing.assert_close(result_slope, slope, rtol=4e-15, atol=2e-16)


@pytest.mark.parametrize("name", ["hypot", "atan2"])
def test_elementary_functions_of_two_numbers(name, monkeypatch):
    t = points_of(-100, 100)[::40]
    y, x = (z.flatten() for z in torch.meshgrid(t[t > 0], t, indexing="ij"))
    expected = getattr(torch, name)(y, x)
    monkeypatch.setattr(elementary, "is_exporting", lambda: True)
    torch.testing.assert_close(getattr(elementary, name)(y, x), expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_power_of_two_under_a_number(dtype, monkeypatch):
    info = torch.finfo(dtype)
    powers = 2.0 ** torch.arange(math.log2(info.tiny), math.log2(info.max), dtype=torch.float64)
    powers = powers.to(dtype)
    x = torch.cat([powers, powers * (1 + info.eps), powers * (2 - 2 * info.eps)])
    expected = elementary.floor_to_power_of_two(x)
    monkeypatch.setattr(elementary, "is_exporting", lambda: True)
    assert torch.equal(elementary.floor_to_power_of_two(x), expected)
    assert torch.equal(expected, powers.repeat(3))
