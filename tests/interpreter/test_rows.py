"""Kernels of rows of vectors: on a GPU where there is one, else in Triton's interpreter."""

import math

import oracle
import pytest
import torch
import triton
import triton.language as tl
from calls import SIGNATURES as PUBLIC
from mpmath import mp, mpf

from lorentzkit import ops
from lorentzkit._geometry import pairs as of_pairs
from lorentzkit._geometry.arguments import norm_limit
from lorentzkit.fused import traced
from lorentzkit.fused.rows import rows
from lorentzkit.fused.triton import elementary
from lorentzkit.fused.triton import rows as kernels
from lorentzkit.fused.triton.rows import OPS

pytestmark = pytest.mark.usefixtures("uninitialised_memory_is_nan")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 2.0**-23
KEYWORDS = {
    "half_aperture": {"min_radius": 0.15},
    "entailment_residual": {"min_radius": 0.15, "aperture_scale": 0.75},
}
# What a loss or a search takes of its pairs, and no op gives alone
KINDS = {"angles": "angles", "cosine": "cosine"}
SIGNATURES = PUBLIC | {kind: ["x", "y"] for kind in KINDS}
BALLS = ("to_klein", "to_poincare")
every_op = pytest.mark.parametrize("op", OPS)


@pytest.fixture(autouse=True)
def _kinds_are_ops(monkeypatch):
    for kind in KINDS:
        monkeypatch.setitem(traced._IN_TORCH, kind, exact_op(kind))


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
    if op in BALLS:  # where float64 and float32 leave the same margin to the sphere: none
        farthest = min(farthest, 7.0)
    x, y = pairs(draw, c, farthest)
    N = len(x)
    in_the_ball = draw.unit(N) * (1 - 10 ** (-5 * draw.uniform(N))) / math.sqrt(c)
    steps = draw.unit(N) * torch.linspace(0, 1.3 * farthest, N)[:, None] / math.sqrt(c)
    # A step ends within the largest radius, and rounding turns it by little.
    longest = 2.0 if op != "expmap" else torch.where(x.norm(dim=-1, keepdim=True) > 1e6, 1e-4, 2.0)
    by_name = {
        "x": x, "y": y, "k": in_the_ball, "p": in_the_ball, "g": draw.normal(N),
        "h": ops.to_halfspace(x.double(), c),
        "u": steps if op == "expmap0" else tangent(draw, x, c, longest), "v": tangent(draw, x, c),
    }  # fmt: skip
    if op == "transp0":
        by_name["u"] = draw.normal(N)
    # Between far points, for otherwise the end is beyond the largest radius.
    t, far = 3 * draw.uniform(N)[:, 0] - 1, torch.maximum(x, y).abs().amax(-1) > 20
    t[::7], t[1::7] = 0.0, 1.0
    by_name["t"] = torch.where(far, t.clamp(0, 1), t)
    return {name: by_name[name].float() for name in SIGNATURES[op]}


def numbers(op, D, *shape):
    """The shape of the op's result."""
    width = kernels.width(op, D)
    return (*shape, width) if width else shape


# --- Measures -------------------------------------------------------------------------------------


def run(op, vectors, curv, at=None):
    """The values and the gradients by name, of a random cotangent, by a kernel."""
    leaves = {name: v.clone().requires_grad_() for name, v in vectors.items()}
    c = curv.clone().requires_grad_() if isinstance(curv, torch.Tensor) else curv
    cone = tuple(KEYWORDS.get(op, {}).values())
    value = rows(op, c, **leaves, **({"cone": (*cone, 1.0)[:2]} if cone else {}))
    of = leaves | ({"curv": c} if isinstance(c, torch.Tensor) else {})
    found = torch.autograd.grad(value, list(of.values()), at)
    return {"value": value.detach(), **dict(zip(of, found, strict=True))}


def exact_op(op):
    """The op in float64, with points kept to float32's largest radius."""

    def call(*args):
        *of, c = (torch.as_tensor(t, dtype=torch.float32) for t in args)
        return exact_value(op, [t.double() for t in of], c.double()).float()

    return call


def exact_value(op, tensors, c):
    limit = norm_limit(c.detach().float()).double().unsqueeze(-1)
    first = op == "geodesic"  # before the points, t
    last = first + OPS[op].points
    tensors = [moved(v, limit) if first <= i < last else v for i, v in enumerate(tensors)]
    if op in KINDS:
        of = of_pairs.row_values(KINDS[op], *tensors, c.unsqueeze(-1))
        return of if op == "angles" else of.squeeze(-1)
    return getattr(ops, op)(*tensors, c, **KEYWORDS.get(op, {}))


def moved(x, limit):
    length = x.norm(dim=-1, keepdim=True)
    return torch.where(length > limit, x * limit / torch.where(length > 0, length, 1.0), x)


def exact(op, vectors, curv, at):
    leaves = [t.double().requires_grad_() for t in (*vectors.values(), curv)]
    value = exact_value(op, leaves[:-1], leaves[-1])
    found = torch.autograd.grad(value, leaves, at.double(), materialize_grads=True)
    return {"value": value.detach(), **dict(zip([*vectors, "curv"], found, strict=True))}


def lengths(t, op, name):
    one = name in ("curv", "t") or (name == "value" and OPS[op].scalar)
    return t.double().abs() if one else t.double().norm(dim=-1)


def check(op, vectors, curv, typical=0.6):
    """Off by a rounding of the result, and by what a rounding of each argument makes of it."""
    *_, last = vectors.values()
    draw = Draw(last.shape[-1], seed=1)
    leading = (v.shape if name == "t" else v.shape[:-1] for name, v in vectors.items())
    shape = torch.broadcast_shapes(*leading, curv.shape)
    at = torch.randn(numbers(op, draw.D, *shape), generator=draw.generator)
    got = run(op, vectors, curv, at)
    expected = exact(op, vectors, curv, at)

    def rounded(t):
        return t.double() * (1 + EPS * (2 * torch.rand(t.shape, dtype=torch.float64) - 1))

    elsewhere = exact(op, {name: rounded(v) for name, v in vectors.items()}, curv, at)
    errors = {}
    for name, of in expected.items():
        size = lengths(of, op, name)
        error = lengths(got[name].double() - of, op, name)
        spread = lengths(elsewhere[name] - of, op, name)
        off = error / (EPS * size + 4 * spread + 2.0**-140)
        assert (off < 1).all(), (name, off)
        errors[name] = (error / (EPS * size + 2.0**-140)).flatten()
        assert errors[name].quantile(0.6) <= typical, (name, errors[name])
    return errors


# --- Values and gradients -------------------------------------------------------------------------


@every_op
def test_values_and_gradients(op):
    draw = Draw(5)
    vectors = arguments(op, draw)
    curv = torch.full((len(next(iter(vectors.values()))),), 0.7)
    check(op, vectors, curv)


SIZES = [(op, *size) for op in OPS for size in [(7, 1), (1, 3), (2, 130)]]
SIZES += [(op, *size) for op, of in OPS.items() if of.apart or op in KINDS
          for size in [(9, 2), (33, 17), (3, 512)]]  # fmt: skip
# All ops go over their entries in the same loops.
SIZES += [("dist", 1, 2), ("dist", 7, 31), ("logmap", 3, 64), ("tangent_inner", 1, 2)]


@pytest.mark.few(op=["dist", "expmap", "geodesic", "angles"], D=130)
@pytest.mark.parametrize(("op", "N", "D"), SIZES)
def test_sizes(op, N, D):
    """One curvature for all."""
    farthest = 1.0 if D == 1 else 15.0  # on a line float64 loses digits, too
    vectors = {name: v[2 : 2 + N] for name, v in arguments(op, Draw(D, N), 0.7, farthest).items()}
    check(op, vectors, torch.tensor(0.7), typical=4.0)


def test_several_programs(monkeypatch):
    monkeypatch.setattr(kernels, "_ROWS", 32)
    check("dist", arguments("dist", Draw(3)), torch.tensor(0.7))


@pytest.mark.few(op=["dist", "logmap", "geodesic"])
@pytest.mark.parametrize(
    "op", [op for op, of in OPS.items() if of.points and op not in (*BALLS, "expmap")]
)
def test_points_beyond_the_largest_radius(op):
    vectors = arguments(op, Draw(6), farthest=1.0)
    for i, name in enumerate([name for name in vectors if name != "t"][: OPS[op].points]):
        vectors[name][i::3] *= 1e25
    if "t" in vectors:
        vectors["t"].clamp_(0, 1)
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
                torch.testing.assert_close(
                    got[name].double(), of, rtol=1e-4, atol=1e-4 * of.abs().max()
                )


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
    x = (
        Draw(5).unit(9) * torch.sinh(torch.linspace(5, 40, 9, dtype=torch.float64))[:, None]
    ).float()
    ball = run(op, {"x": x}, torch.tensor(1.0), torch.ones_like(x))["value"].double()
    assert (ball.norm(dim=-1) < 1).all()
    torch.testing.assert_close(ball, getattr(ops, op)(x.double(), 1.0), rtol=5 * EPS, atol=0.0)


@pytest.mark.parametrize("op", ["from_klein", "from_poincare"])
def test_points_outside_the_ball_are_nan(op):
    name = SIGNATURES[op][0]
    found = run(op, {name: torch.tensor([[0.6, 0.0], [1.0, 0.0]])}, 1.0, torch.ones(2, 2))
    assert found["value"][0].isfinite().all()
    assert found["value"][1].isnan().all()


def exact_from_halfspace(h, c):
    """Of lists of mpf; kept to float32's largest radius."""
    limit = min(mp.sinh(40) * (1 + mpf(2) ** -12) / mp.sqrt(c), 2**62 * mp.root(c, 4))
    high = min(1, 2 * limit / mp.norm(h))
    x = oracle.from_halfspace([high * z for z in h], c)
    return [min(1, limit / mp.norm(x)) * z for z in x]


def slope(function, numbers, k):
    """The derivative by the k-th of them, of a function that gives a list."""
    step = mpf(10) ** -60 * (abs(numbers[k]) or 1)
    moved = [z + step * (i == k) for i, z in enumerate(numbers)]
    return [(a - b) / step for a, b in zip(function(moved), function(numbers), strict=True)]


@pytest.mark.parametrize("curv", [1.0, 2.0**-10])
def test_half_space_coordinates_beyond_the_largest_radius(curv):
    """Near the boundary, aside, high up and too high up; inside last."""
    s = 1 / math.sqrt(curv)
    z = torch.tensor([[0.0, 0.0], [0.6, 0.8], [3e8, 4e8], [1e3, 0.0], [0.0, 0.0], [3e10, -4e10],
                      [1.0, 0.0], [3e19, 4e19], [1e17, 0.0], [0.0, 0.0], [6.0, 8.0]])  # fmt: skip
    t = torch.tensor([1e-19, 1e-19, 1e-3, 1e-14, 4e17, 1e17, 1e19, 2e19, 1e-30, 1e-37, 1e-9])
    h, at = s * torch.cat([z, t[:, None]], 1), Draw(3).normal(len(t)).float()
    got = run("from_halfspace", {"h": h}, torch.tensor([curv]).expand(len(t)), at)
    with mp.workdps(200):
        for i, (row, weights) in enumerate(zip(h.tolist(), at.tolist(), strict=True)):
            arguments = [mpf(z) for z in (*row, curv)]

            def value(arguments):
                return exact_from_halfspace(arguments[:-1], arguments[-1])

            slopes = [slope(value, arguments, k) for k in range(4)]
            by = [float(sum(w * d for w, d in zip(weights, of, strict=True))) for of in slopes]
            expected = {"value": [float(z) for z in value(arguments)], "h": by[:3], "curv": by[3]}
            for name, of in expected.items():
                of = torch.tensor(of, dtype=torch.float64)
                # Straight up all is radial, and a float64 rounding is left of what is taken off.
                size, upright = h[i].double().norm(), h[i, :2].norm() < 1e-9 * h[i, 2]
                scale = float(got["value"][i].double().norm() / size)
                noise = 1e-15 * scale if upright and name == "h" else 0.0
                error = (got[name][i].double() - of).norm()
                assert error <= 1e-6 * of.norm() + noise, (i, name)


def test_heights_that_are_not_positive_are_nan():
    found = run("from_halfspace", {"h": torch.tensor([[0.6, 1.0], [0.6, 0.0], [0.6, -1.0]])},
                1.0, torch.ones(3, 2))  # fmt: skip
    assert found["value"][0].isfinite().all()
    assert found["value"][1:].isnan().all()


def test_the_vector_with_its_time_is_the_vector():
    x = Draw(5).normal(7).float()
    found = rows("add_time", 0.7, x=x)
    assert torch.equal(found[:, 1:], x)
    assert torch.equal(found[:, 0], rows("time", 0.7, x=x))


@pytest.mark.few(op=["dist", "expmap", "geodesic"])
@every_op
def test_nan_stays_in_its_row(op):
    """NaN in each vector's own row; infinity in the row after them."""
    vectors = {name: v[:6].clone() for name, v in arguments(op, Draw(5)).items()}
    count = len(vectors)
    for i, v in enumerate(vectors.values()):
        entries = v.view(6, -1)
        entries[i, -1], entries[count, 0] = math.nan, math.inf
    at = torch.ones(numbers(op, 5, 6))
    found = run(op, vectors, torch.full((6,), 0.7), at)
    assert found["value"][: count + 1].reshape(count + 1, -1).isnan().any(1).all()
    for of in found.values():
        assert of[count + 1 :].isfinite().all()


@pytest.mark.few(op=["dist", "expmap", "geodesic"])
@every_op
def test_invalid_curvature_is_nan(op):
    vectors = {name: v[:3] for name, v in arguments(op, Draw(2)).items()}
    at = torch.ones(numbers(op, 2, 3))
    found = run(op, vectors, torch.tensor([0.5, -1.0, 0.0]), at)
    assert found["value"][0].isfinite().all()
    assert found["value"][1:].isnan().all()


# --- Shapes, dtypes, derivatives ------------------------------------------------------------------


def test_broadcasting():
    draw = Draw(3)
    vectors = {"x": draw.normal(3, 1).float(), "y": draw.normal(4).float()}
    for curv in (torch.tensor(0.7), torch.rand(3, 1) + 0.5, torch.rand(2, 1, 1) + 0.5):
        check("logmap", vectors, curv, typical=100.0)  # of a sum, of its terms
    row = {"x": draw.normal().float(), "y": draw.normal().float()}
    assert rows("dist", 0.7, **row).shape == ()
    check("logmap", row, torch.tensor(0.7), typical=4.0)


@pytest.mark.few(op=["dist", "expmap"])
@pytest.mark.parametrize("op", ["dist", "expmap", "angles", *(op for op in OPS if OPS[op].apart)])
def test_rows_of_any_strides(op):
    draw = Draw(8)
    x, y = draw.normal(5).float(), draw.normal(5).abs().float()
    at = torch.ones(()).expand(numbers(op, 8, 5))
    turned = x.mT.contiguous().mT, y.repeat_interleave(2, dim=1)[:, ::2]
    names = SIGNATURES[op]
    expected, got = (
        run(op, dict(zip(names, of[-len(names) :], strict=True)), 0.7, at)
        for of in ((x, y), turned)
    )
    for name, of in expected.items():
        assert torch.equal(got[name], of)


@pytest.mark.few(dtype=torch.bfloat16)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "op", ["dist", "logmap", "tangent_inner", "angles", *(op for op in OPS if OPS[op].apart)]
)
def test_half_precision_is_computed_in_float32(op, dtype):
    vectors = {name: v[:9].to(dtype) for name, v in arguments(op, Draw(5), farthest=1.0).items()}
    wide = {name: v.float() for name, v in vectors.items()}
    at = torch.ones(numbers(op, 5, 9))
    got, expected = (run(op, v, torch.tensor(0.7), at) for v in (vectors, wide))
    assert got["value"].dtype == torch.float32
    assert torch.equal(got["value"], expected["value"])
    for name in vectors:
        assert got[name].dtype == dtype  # the interpreter does not round bfloat16 to nearest
        rtol = 2.0**-7 if dtype == torch.bfloat16 else 2.0**-10
        torch.testing.assert_close(got[name].float(), expected[name], rtol=rtol, atol=1e-6)


def test_a_number_is_rounded_like_a_tensor():
    vectors = arguments("dist", Draw(2))
    at = torch.ones(len(vectors["x"]))
    got, expected = (run("dist", vectors, c, at) for c in (0.7, torch.tensor(0.7).double()))
    assert all(torch.equal(got[name], expected[name]) for name in got)
    assert expected["curv"].dtype == torch.float64


def test_a_number_as_parameter_of_a_geodesic():
    x, y = Draw(3).normal(4).float(), Draw(3, 1).normal(4).float()
    got = rows("geodesic", 0.7, t=0.25, x=x, y=y)
    assert torch.equal(got, run("geodesic", {"t": torch.full((4,), 0.25), "x": x, "y": y}, 0.7,
                                torch.ones(4, 3))["value"])  # fmt: skip
    check("geodesic", {"t": torch.tensor(0.25), "x": x, "y": y}, torch.tensor(0.7), typical=100.0)


def test_the_dtype_is_that_of_the_vectors():
    torch.set_default_dtype(torch.float64)
    try:
        found = run("dist", {"x": torch.ones(2, 3).float(), "y": torch.zeros(2, 3).float()}, 1.0,
                    torch.ones(2).float())  # fmt: skip
        assert all(of.dtype == torch.float32 for of in found.values())
    finally:
        torch.set_default_dtype(torch.float32)


def test_frozen_inputs():
    draw = Draw(3)
    x, y = draw.normal(4).float(), draw.normal(4).float()
    expected = run("logmap", {"x": x, "y": y}, torch.tensor(1.0), torch.ones(4, 3))
    for name in ("x", "y", "curv"):
        of = {"x": x, "y": y, "curv": torch.tensor(1.0)}
        of[name] = of[name].clone().requires_grad_()
        curv = of.pop("curv")
        rows("logmap", curv, **of).sum().backward()
        leaf = {**of, "curv": curv}[name]
        assert torch.equal(leaf.grad, expected[name])


def test_second_derivatives_are_those_of_the_torch_function():
    draw = Draw(3)
    leaves = [draw.normal(4).float().requires_grad_() for _ in range(2)]
    c = torch.tensor(0.7, requires_grad=True)

    def second(of, x, y, c):
        first = torch.autograd.grad(of(x, y, c).square().sum(), (x, y, c), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), (x, y, c))

    got = second(lambda x, y, c: rows("logmap", c, x=x, y=y), *leaves, c)
    wide = [t.detach().double().requires_grad_() for t in (*leaves, c)]
    for a, b in zip(got, second(ops.logmap, *wide), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


# --- Dispatch -------------------------------------------------------------------------------------


def count_launches(monkeypatch, kernels_of):
    """Names of the kernels that are launched, by module; they do not run."""
    names = []

    class Counted:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            assert grid[0] < 2**31, "more programs than CUDA has"
            assert max(grid[1:], default=0) < 2**16, "more programs than CUDA has on this axis"
            return lambda *args, **kwargs: names.append(self.name)

    for module, kernel_names in kernels_of.items():
        for name in kernel_names:
            monkeypatch.setattr(module, name, Counted(name))
    return names


@pytest.fixture
def launches(monkeypatch):
    kernel_names = ("rows_kernel", "rows_vjp_kernel", "apart_kernel", "apart_vjp_kernel")
    return count_launches(monkeypatch, {kernels: kernel_names})


NO_LAUNCH = {
    "aten::_reshape_alias", "aten::_unsafe_view", "aten::alias", "aten::as_strided", "aten::detach",
    "aten::empty", "aten::empty_like", "aten::empty_strided", "aten::expand", "aten::new_empty",
    "aten::promote_types", "aten::reshape", "aten::result_type", "aten::select", "aten::to",
    "aten::view", "aten::_to_copy",
}  # fmt: skip


def launched_by_torch(call):
    """Its operations but for views and allocations, and for those that others are parts of."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        result = call()

    def launches(event):
        return event.name.startswith("aten::") and event.name not in NO_LAUNCH

    def whole(event):
        parent = event.cpu_parent
        return parent is None or (not launches(parent) and whole(parent))

    return result, [e.name for e in profile.events() if launches(e) and whole(e)]


@every_op
def test_launches(op, launches):
    """One kernel forward and one backward; for one curvature a sum and its rounding, too."""
    torch.use_deterministic_algorithms(False)  # which fills what is allocated
    vectors = {name: v[:2].requires_grad_() for name, v in arguments(op, Draw(2)).items()}
    curv = torch.tensor(0.7, requires_grad=True)
    at, kind = torch.ones(numbers(op, 2, 2)), "apart" if OPS[op].apart else "rows"
    value, others = launched_by_torch(lambda: rows(op, curv, **vectors))
    assert (launches, others) == ([f"{kind}_kernel"], [])
    launches.clear()
    of = [*vectors.values(), curv]
    _, others = launched_by_torch(lambda: torch.autograd.grad(value, of, at))
    assert (launches, others) == ([f"{kind}_vjp_kernel"], ["aten::sum", "aten::copy_"])


@pytest.mark.parametrize(
    ("number", "others"),
    [
        (torch.float32, ["aten::sum", "aten::copy_"]),
        (torch.float64, ["aten::sum", "aten::sum", "aten::copy_"]),
    ],
)
def test_launches_of_a_learned_parameter(number, others, launches):
    """Sums for t and curv in one, if they are of one dtype."""
    torch.use_deterministic_algorithms(False)
    leaves = [torch.tensor(0.5, requires_grad=True), *torch.ones(2, 3, 4, requires_grad=True),
              torch.tensor(0.7, dtype=number, requires_grad=True)]  # fmt: skip
    t, x, y, curv = leaves
    value = rows("geodesic", curv, t=t, x=x, y=y)
    launches.clear()
    at = torch.ones(3, 4)
    _, found = launched_by_torch(lambda: torch.autograd.grad(value, leaves, at))
    assert (launches, found) == (["rows_vjp_kernel"], others)


@pytest.mark.parametrize("change", ["float64", "empty", "curvature", "torch.func"])
def test_others_take_the_torch_function(change, launches):
    x, y, curv = torch.ones(2, 3), torch.zeros(2, 3), 1.0
    if change == "float64":
        x, y = x.double(), y.double()
    elif change == "empty":
        x, y = x[:0], y[:0]
    elif change == "curvature":
        curv = torch.ones(2, dtype=torch.float64)
    if change == "torch.func":
        of = torch.func.vmap(lambda x, y: rows("dist", curv, x=x, y=y))(x, y)
    else:
        of = rows("dist", curv, x=x, y=y)
    torch.testing.assert_close(of, traced.plain("dist", None)(x, y, curv))
    assert not launches


def test_errors_name_the_argument():
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match="x, y: expected one trailing size D"):
        rows("dist", 1.0, x=x, y=x[:, :2])
    with pytest.raises(ValueError, match="leading dimensions do not broadcast"):
        rows("dist", torch.ones(3), x=x, y=x)
    with pytest.raises(ValueError, match="curv: expected a positive number"):
        rows("dist", -1.0, x=x, y=x)


# --- Elementary functions -------------------------------------------------------------------------


@triton.jit
def elementary_kernel(z, out, N, OF: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(z + i, mask=i < N, other=1.0)
    if OF == "log1p":
        of = elementary.log1p(x)
    elif OF == "expm1":
        of = elementary.expm1(x)
    elif OF == "asinh":
        of = elementary.asinh(x)
    elif OF == "sinh":
        of = elementary.sinh(x)
    elif OF == "atan":
        of = elementary.angle_of(x, tl.zeros_like(x) + 1)
    elif OF == "obtuse":
        of = elementary.angle_of(x, tl.zeros_like(x) - 1)
    elif OF == "excess":
        of = elementary.arc_excess(2 / (1 + tl.exp(-2 * x)) - 1, x)
    else:
        of = elementary.coth_excess(x)
    tl.store(out + i, of, mask=i < N)


@pytest.mark.parametrize(
    "of", ["log1p", "expm1", "asinh", "sinh", "atan", "obtuse", "excess", "coth_excess"]
)
def test_elementary_functions(of):
    """To 1e-12, small arguments included."""
    powers = torch.logspace(-30 if of not in ("excess",) else -2, 1.7, 200, dtype=torch.float64)
    x = torch.cat([powers, torch.linspace(0.01, 3, 300, dtype=torch.float64)])
    out = torch.empty_like(x)
    elementary_kernel[(1,)](x, out, len(x), OF=of, BLOCK=512)
    with mp.workdps(100):
        exact = {
            "log1p": mp.log1p, "expm1": mp.expm1, "asinh": mp.asinh, "sinh": mp.sinh,
            "atan": mp.atan, "obtuse": lambda x: mp.pi - mp.atan(x),
            "excess": lambda x: x - mp.tanh(x),
            "coth_excess": lambda x: (x * mp.coth(x) - 1) / x**2,
        }[of]  # fmt: skip
        expected = torch.tensor([float(exact(mpf(z))) for z in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(out, expected, rtol=2e-12, atol=0.0)
