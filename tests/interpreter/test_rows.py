"""Kernels of rows of vectors: on a GPU where there is one, else in Triton's interpreter."""

import math

import pytest
import torch
import triton
import triton.language as tl
from calls import SIGNATURES

from lorentzkit import ops
from lorentzkit._geometry.arguments import norm_limit
from lorentzkit.fused import rows as dispatch
from lorentzkit.fused.rows import rows
from lorentzkit.fused.triton import row_formulas
from lorentzkit.fused.triton import rows as kernels
from lorentzkit.fused.triton.rows import OPS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 2.0**-23
KEYWORDS = {  # those of the op, and what the kernel takes
    "half_aperture": ({"min_radius": 0.1}, {"least": 0.2}),
    "entailment_residual": (
        {"min_radius": 0.1, "aperture_scale": 0.75},
        {"least": 0.2, "scale": 0.75},
    ),
}
every_op = pytest.mark.parametrize("op", OPS)


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan():
    """What a kernel should have written, and did not, shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _on_the_device():
    with torch.device(DEVICE):
        yield


# --- Cases ----------------------------------------------------------------------------------------


class Draw:
    """Vectors ``(..., D)`` of a generator, in float64."""

    def __init__(self, D, seed=0):
        self.D, self.generator = D, torch.Generator(DEVICE).manual_seed(seed)

    def normal(self, *shape):
        return torch.randn(*shape, self.D, generator=self.generator, dtype=torch.float64)

    def unit(self, *shape):
        return torch.nn.functional.normalize(self.normal(*shape), dim=-1)

    def uniform(self, *shape):
        return torch.rand(*shape, 1, generator=self.generator, dtype=torch.float64)


def pairs(draw, c, farthest):
    """At many radii: anywhere, close, equal, in line, opposite, and the origin."""
    found = []
    for a in (r for r in (1e-3, 0.1, 1.0, 5.0, 15.0, 30.0) if r <= farthest):
        x = (draw.unit() * math.sinh(a) / math.sqrt(c)).float().double()
        size = x.norm()
        found += [(x, draw.unit() * math.sinh(b) / math.sqrt(c)) for b in (1e-3, 1.0, 8.0, 30.0)
                  if b <= farthest]  # fmt: skip
        found += [(x, x + scale * size * draw.unit()) for scale in (1e-6, 1e-4, 1e-2)]
        found += [(x, x), (x, x / 2), (x, -x), (x, -x + 1e-5 * size * draw.unit())]
        found += [(x, 0 * x), (0 * x, x)]
    found += [(0 * x, 0 * x)]
    return [torch.stack(of).float() for of in zip(*found, strict=True)]


def tangent(draw, x, c, longest=10.0):
    """As long in every direction as the metric at x has it, of any length."""
    x = x.double()
    unit = torch.nn.functional.normalize(x, dim=-1)
    u = draw.unit(len(x))
    cosh = (1 + c * (x * x).sum(-1, keepdim=True)).sqrt()
    u = u + (cosh - 1) * (u * unit).sum(-1, keepdim=True) * unit
    u = u * longest * 10 ** (-3 * draw.uniform(len(x)))
    u[3::11] = 0
    return u.float()


def arguments(op, draw, c=0.7, farthest=30.0):
    """The op's vectors, by name."""
    if op.startswith("to_"):  # where float64 and float32 leave the same margin to the sphere: none
        farthest = min(farthest, 7.0)
    x, y = pairs(draw, c, farthest)
    N = len(x)
    in_the_ball = draw.unit(N) * (1 - 10 ** (-5 * draw.uniform(N))) / math.sqrt(c)
    steps = draw.unit(N) * torch.linspace(0, 1.3 * farthest, N)[:, None] / math.sqrt(c)
    # A step ends within the largest radius, and rounding turns it by little.
    longest = 2.0 if op != "expmap" else torch.where(x.norm(dim=-1, keepdim=True) > 1e6, 1e-4, 2.0)
    by_name = {
        "x": x, "y": y, "k": in_the_ball, "p": in_the_ball, "g": draw.normal(N),
        "u": steps if op == "expmap0" else tangent(draw, x, c, longest), "v": tangent(draw, x, c),
    }  # fmt: skip
    if op == "transp0":
        by_name["u"] = draw.normal(N)
    return {name: by_name[name].float() for name in SIGNATURES[op]}


# --- Measures -------------------------------------------------------------------------------------


def run(op, vectors, curv, at=None):
    """The values and the gradients by name, of a random cotangent, by a kernel."""
    leaves = {name: v.clone().requires_grad_() for name, v in vectors.items()}
    c = curv.clone().requires_grad_() if isinstance(curv, torch.Tensor) else curv
    value = rows(op, exact_op(op), c, **leaves, **KEYWORDS.get(op, ({}, {}))[1])
    of = leaves | ({"curv": c} if isinstance(c, torch.Tensor) else {})
    found = torch.autograd.grad(value, list(of.values()), at)
    return {"value": value.detach(), **dict(zip(of, found, strict=True))}


def exact_op(op):
    """The op in float64, with points kept to float32's largest radius."""

    def call(*args):
        *vectors, c = (torch.as_tensor(t, dtype=torch.float32) for t in args)
        limit = norm_limit(c.detach()).double().unsqueeze(-1)
        vectors, c = [v.double() for v in vectors], c.double()
        vectors[: OPS[op].points] = (moved(v, limit) for v in vectors[: OPS[op].points])
        return getattr(ops, op)(*vectors, c, **KEYWORDS.get(op, ({}, {}))[0]).float()

    return call


def moved(x, limit):
    length = x.norm(dim=-1, keepdim=True)
    return torch.where(length > limit, x * limit / torch.where(length > 0, length, 1.0), x)


def exact(op, vectors, curv, at):
    names = [*vectors, "curv"]
    leaves = [t.double().requires_grad_() for t in (*vectors.values(), curv)]
    *of, c = leaves
    limit = norm_limit(curv.detach()).double().unsqueeze(-1)
    of = [moved(v, limit) if i < OPS[op].points else v for i, v in enumerate(of)]
    value = getattr(ops, op)(*of, c, **KEYWORDS.get(op, ({}, {}))[0])
    found = torch.autograd.grad(value, leaves, at.double(), materialize_grads=True)
    return {"value": value.detach(), **dict(zip(names, found, strict=True))}


def lengths(t, op, name):
    one = name == "curv" or (name == "value" and OPS[op].scalar)
    return t.double().abs() if one else t.double().norm(dim=-1)


def check(op, vectors, curv, typical=0.6):
    """Off by a rounding of the result, and by what a rounding of each argument makes of it."""
    draw = Draw(vectors[next(iter(vectors))].shape[-1], seed=1)
    shape = torch.broadcast_shapes(*(v.shape[:-1] for v in vectors.values()), curv.shape)
    at = torch.randn(shape) if OPS[op].scalar else draw.normal(*shape).float()
    got = run(op, vectors, curv, at)
    expected = exact(op, vectors, curv, at)

    def rounded(t):
        return t.double() * (1 + EPS * (2 * torch.rand(t.shape, dtype=torch.float64) - 1))

    elsewhere = [
        exact(op, {name: rounded(v) for name, v in vectors.items()}, curv, at) for _ in range(2)
    ]
    errors = {}
    for name, of in expected.items():
        size = lengths(of, op, name)
        error = lengths(got[name].double() - of, op, name)
        spread = sum(lengths(other[name] - of, op, name) for other in elsewhere)
        off = error / (EPS * size + 2 * spread + 2.0**-140)
        assert not off.isnan().any() and off.max() < 1, (op, name, off.argmax(), off.max())
        errors[name] = (error / (EPS * size + 2.0**-140)).flatten()
        assert errors[name].quantile(0.6) <= typical, (op, name, errors[name])
    return errors


# --- Values and gradients -------------------------------------------------------------------------


@every_op
def test_values_and_gradients(op):
    draw = Draw(5)
    vectors = arguments(op, draw)
    curv = torch.full((len(next(iter(vectors.values()))),), 0.7)
    check(op, vectors, curv)


@every_op
@pytest.mark.parametrize(("N", "D"), [(7, 1), (1, 2), (7, 3), (1, 31), (7, 64), (2, 130)])
def test_sizes(op, N, D):
    """One curvature for all."""
    farthest = 1.0 if D == 1 else 15.0  # on a line float64 loses digits, too
    vectors = {name: v[2 : 2 + N] for name, v in arguments(op, Draw(D, N), 0.7, farthest).items()}
    check(op, vectors, torch.tensor(0.7), typical=4.0)
    if N > 1:
        check(op, vectors, torch.linspace(0.5, 0.7, N), typical=4.0)


@every_op
def test_points_beyond_the_largest_radius(op):
    draw = Draw(6)
    vectors = arguments(op, draw, farthest=1.0)
    for i, name in enumerate(list(vectors)[: OPS[op].points]):
        vectors[name][i::3] *= 1e25
    if OPS[op].points and not op.startswith("to_"):
        check(op, vectors, torch.tensor(0.7), typical=1.0)


@pytest.mark.parametrize("curv", [1.0, 1e-3])
def test_results_beyond_the_largest_radius(curv):
    """For small curvature, the bound is another power of it."""
    draw, c = Draw(4), torch.tensor(curv)
    limit = norm_limit(c.detach().requires_grad_()).item()
    x = (draw.unit(6) * math.sinh(39) / math.sqrt(curv)).float()
    x = moved(x.double(), torch.tensor(limit)).float()
    for u in (3 * x, 1e3 * x, 0.5 * x + draw.normal(6).float() * x.norm(dim=-1, keepdim=True) / 9):
        got = run("expmap", {"x": x, "u": u}, c, torch.ones_like(x))
        leaves = [t.double().requires_grad_() for t in (x, u, c)]
        z = ops.expmap(*leaves)
        z = z / z.norm(dim=-1, keepdim=True) * norm_limit(leaves[2].float()).double()
        torch.testing.assert_close(got["value"].double(), z, rtol=1e-5, atol=0.0)
        length = ops.tangent_norm(x.double(), u.double(), c.double()) * math.sqrt(curv)
        expected = torch.autograd.grad(z, leaves, torch.ones_like(z))
        if (length > 81).all():
            assert not any(got[name].any() for name in ("x", "u", "curv"))
        else:
            for name, of in zip(["x", "u", "curv"], expected, strict=True):
                torch.testing.assert_close(got[name].double(), of, rtol=1e-4, atol=1e-4 * of.abs().max())


@pytest.mark.parametrize("curv", [1.0, 1e-3])
def test_expmap0_beyond_the_largest_radius(curv):
    u = (Draw(4).unit(5) * torch.tensor([[30.0], [38.0], [39.5], [45.0], [300.0]])).float()
    u = u / math.sqrt(curv)
    c, at = torch.tensor(curv), torch.randn(5, 4)
    got = run("expmap0", {"u": u}, c, at)
    leaves = [t.double().requires_grad_() for t in (u, c)]
    longest = 40 / leaves[1].sqrt()
    z = ops.expmap0(moved(leaves[0], longest), leaves[1])
    z = moved(z, norm_limit(leaves[1].float()).double())
    expected = torch.autograd.grad(z, leaves, at.double())
    torch.testing.assert_close(got["value"].double(), z, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(got["u"].double(), expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got["curv"].double(), expected[1], rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("op", ["to_klein", "to_poincare"])
def test_points_of_a_ball_stay_inside(op):
    x = (Draw(5).unit(9) * torch.sinh(torch.linspace(5, 40, 9, dtype=torch.float64))[:, None]).float()
    ball = run(op, {"x": x}, torch.tensor(1.0), torch.ones_like(x))["value"].double()
    assert (ball.norm(dim=-1) < 1).all()
    torch.testing.assert_close(ball, getattr(ops, op)(x.double(), 1.0), rtol=5 * EPS, atol=0.0)


@pytest.mark.parametrize("op", ["from_klein", "from_poincare"])
def test_points_outside_the_ball_are_nan(op):
    name = SIGNATURES[op][0]
    found = run(op, {name: torch.tensor([[0.6, 0.0], [1.0, 0.0]])}, 1.0, torch.ones(2, 2))
    assert found["value"][0].isfinite().all() and found["value"][1].isnan().all()


@every_op
def test_nan_stays_in_its_row(op):
    vectors = {name: v[:4].clone() for name, v in arguments(op, Draw(5)).items()}
    at = torch.ones(4) if OPS[op].scalar else torch.ones(4, 5)
    for name in vectors:
        for value in (math.nan, math.inf):
            broken = {n: v.clone() for n, v in vectors.items()}
            broken[name][1, 2] = value
            found = run(op, broken, torch.full((4,), 0.7), at)
            for of in found.values():
                assert of[1].isnan().any() and of[[0, 2, 3]].isfinite().all()


@every_op
def test_invalid_curvature_is_nan(op):
    vectors = {name: v[:3] for name, v in arguments(op, Draw(2)).items()}
    at = torch.ones(3) if OPS[op].scalar else torch.ones(3, 2)
    found = run(op, vectors, torch.tensor([1.0, -1.0, 0.0]), at)
    assert found["value"][0].isfinite().all() and found["value"][1:].isnan().all()
