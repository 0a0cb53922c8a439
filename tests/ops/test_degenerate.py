"""No finite input gives NaN or infinity, forward or backward; and what is promised where points
coincide, lie at the origin or in line, or are beyond the dtype's range.

What cannot be promised is kept out: a true result too large for its dtype. `largest_linear` and
`corpus` say where that would be.
"""

import math

import pytest
import torch
from calls import DTYPES, ONE_OF_EACH, SIGNATURES, arguments
from corpus import LINEAR, assert_finite, corpus, largest_linear
from hypothesis import given
from hypothesis import strategies as st

from lorentzkit import ops

F32, F64 = DTYPES
every_op = pytest.mark.parametrize("op", SIGNATURES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


@pytest.mark.few(D=3)
@every_dtype
@every_op
@pytest.mark.parametrize("D", [1, 3])
@pytest.mark.parametrize("curv", [1.0, 1e-2, 1e2])
def test_the_corpus_gives_finite_values_and_gradients(op, dtype, D, curv):
    assert_finite(op, corpus(op, dtype, D, curv), curv)


# In float32 their derivatives in curv are as large as 1/curv^2.
STEEP_IN_CURV = {"inner", "from_klein", "from_poincare"}


@pytest.mark.few(op=ONE_OF_EACH)
@every_dtype
@every_op
@pytest.mark.parametrize("curv", [1e-8, 1e8])
def test_the_most_extreme_curvatures_do_too(op, dtype, curv):
    """At points of size up to 1/sqrt(curv) and up to 1, and tangent vectors up to 1."""
    if dtype == F32 and curv < 1 and op in STEEP_IN_CURV:
        args = [a.double() for a in corpus(op, dtype, 3, curv)]
    else:
        args = corpus(op, dtype, 3, curv)
    bounded = [
        a.clamp(-1, 1) if name in ("u", "v", "g") else a
        for name, a in zip(SIGNATURES[op], args, strict=True)
    ]
    assert_finite(op, bounded, curv)


# --- Any finite floats ------------------------------------------------------------------------


def floats(dtype, low=None, high=None):
    return st.floats(
        low, high, width=32 if dtype == F32 else 64, allow_nan=False, allow_infinity=False
    )


@st.composite
def any_arguments(draw, op, dtype):
    info, D = torch.finfo(dtype), draw(st.integers(1, 4))

    def vector(size, low=None, high=None):
        entries = st.lists(floats(dtype, low, high), min_size=size, max_size=size)
        return torch.tensor(draw(entries), dtype=dtype)

    def argument(name):
        if name == "t":
            return vector(1)[0]
        if name == "points":
            return vector(3 * D).reshape(3, D)
        if name == "weights":
            return vector(3, 2.0**-10, 2.0**10)
        if name in ("k", "p"):
            v = vector(D, -1.0, 1.0).double()
            inside = v * min(1.0, (1 - 4 * info.eps) / max(v.norm().item(), 1e-300))
            return inside.to(dtype)
        if name == "h":
            return torch.cat([vector(D - 1), vector(1, info.tiny)])
        bounded = op in LINEAR and name in ("u", "v", "g")
        largest = 2.0 ** math.floor(math.log2(largest_linear(op, dtype))) if bounded else None
        return vector(D, -largest, largest) if bounded else vector(D)

    return [argument(name)[None] for name in SIGNATURES[op]]


@every_dtype
@every_op
def test_any_finite_floats_give_finite_values_and_gradients(op, dtype):
    @given(any_arguments(op, dtype), st.sampled_from([1.0, 0.01, 100.0]))
    def check(args, curv):
        if SIGNATURES[op][0] in ("k", "p"):
            args = [args[0] / math.sqrt(curv) * (1 - torch.finfo(dtype).eps)]
        assert_finite(op, args, curv)

    check()


# --- The conventions --------------------------------------------------------------------------

CURV = 0.5


def gradients_at(function, *args, **kw):
    leaves = [a.clone().requires_grad_() for a in args]
    value = function(*leaves, CURV, **kw)
    return value.detach(), torch.autograd.grad(value, leaves)


def line(dtype):
    """x, and a unit vector across it."""
    x, across = torch.tensor([0.6, -0.8, 1.2]), torch.tensor([0.8, 0.6, 0.0])
    return x.to(dtype), across.to(dtype)


@every_dtype
@pytest.mark.parametrize(
    ("op", "value"),
    [
        ("dist", 0.0),
        ("exterior_angle", 0.0),
        ("interior_angle", torch.pi),
        ("entailment_residual", 0.0),
    ],
)
@pytest.mark.parametrize("size", [1.0, 0.0, 1e-30, 1e15])
def test_equal_points(op, value, size, dtype):
    x = size * line(dtype)[0]
    got, gradients = gradients_at(getattr(ops, op), x, x)
    assert got == torch.tensor(value, dtype=dtype)
    assert all((g == 0).all() for g in gradients)


@every_dtype
@pytest.mark.parametrize(("op", "value"), [("exterior_angle", 0.0), ("interior_angle", torch.pi)])
def test_the_origin_entails_everything(op, value, dtype):
    y = line(dtype)[0]
    got, gradients = gradients_at(getattr(ops, op), 0 * y, y)
    assert got == torch.tensor(value, dtype=dtype)
    assert all((g == 0).all() for g in gradients)


@every_dtype
@pytest.mark.parametrize(
    ("multiple", "exterior"), [(2.0, 0.0), (0.5, torch.pi), (0.0, torch.pi), (-1.0, torch.pi)]
)
def test_aligned_points(multiple, exterior, dtype):
    x, across = line(dtype)
    pi = torch.tensor(torch.pi, dtype=dtype)
    outer, gradients = gradients_at(ops.exterior_angle, x, multiple * x)
    inner, _ = gradients_at(ops.interior_angle, x, multiple * x)
    assert outer == torch.tensor(exterior, dtype=dtype)
    assert inner == pi - outer
    assert all((g @ across).abs() <= torch.finfo(dtype).eps for g in gradients)


@every_dtype
@pytest.mark.parametrize("multiple", [2.0, 0.5, 0.0, -1.0])
def test_the_distance_of_aligned_points_is_that_of_their_radii(multiple, dtype):
    x, across = line(dtype)
    d, gradients = gradients_at(ops.dist, x, multiple * x)
    radii = [math.asinh(math.sqrt(CURV) * m * x.double().norm().item()) for m in (1.0, multiple)]
    expected = torch.tensor(abs(radii[0] - radii[1]) / math.sqrt(CURV), dtype=dtype)
    torch.testing.assert_close(d, expected)
    assert all((g @ across).abs() <= torch.finfo(dtype).eps for g in gradients)


@every_dtype
@pytest.mark.parametrize("size", [0.0, 0.1, 1 - 1e-3, 1.0])
def test_the_aperture_inside_its_ball(size, dtype):
    x = torch.tensor([size * 0.25 / math.sqrt(CURV), 0.0], dtype=dtype)
    value, (gradient,) = gradients_at(ops.half_aperture, x, min_radius=0.125 * (1 + 1e-6))
    assert value == torch.tensor(torch.pi / 2, dtype=dtype)
    assert (gradient == 0).all()


@every_dtype
def test_zero_distance_and_length_have_gradient_zero(dtype):
    x, zero = line(dtype)[0], torch.zeros(3, dtype=dtype)
    for function, args in [
        (ops.dist0, [zero]),
        (ops.tangent_norm, [x, zero]),
        (ops.dist, [zero] * 2),
    ]:
        value, gradients = gradients_at(function, *args)
        assert value == 0
        assert all((g == 0).all() for g in gradients)


@every_dtype
@pytest.mark.parametrize("size", [1e25, 1e38])
def test_beyond_the_range_points_are_moved_to_it(size, dtype):
    x = line(dtype)[0] * (size if dtype == F32 else size**8)
    value, (gradient,) = gradients_at(ops.dist0, x)
    torch.testing.assert_close(
        value * math.sqrt(CURV), torch.tensor(ops.max_radius(dtype), dtype=dtype), rtol=1e-5, atol=0
    )
    # Radially 0: of two terms of size 1/|x| that cancel.
    assert abs((x / x.norm() @ gradient).item()) <= 8 * torch.finfo(dtype).eps / x.norm().item()


@every_dtype
def test_exponential_maps_end_at_the_range(dtype):
    x, u = line(dtype)
    for p in (ops.expmap0(1e30 * u, CURV), ops.expmap(x, 1e30 * u, CURV)):
        radius = math.sqrt(CURV) * ops.dist0(p, CURV).double()
        torch.testing.assert_close(radius.item(), ops.max_radius(dtype), rtol=1e-5, atol=0)


@every_dtype
@pytest.mark.parametrize("model", ["klein", "poincare"])
@pytest.mark.parametrize("curv", [1.0, 0.3, 70.0])
def test_far_points_stay_inside_the_balls(model, curv, dtype):
    """Where their coordinates round to the sphere itself; from there nothing comes back."""
    directions = torch.randn(100, 8, generator=torch.Generator().manual_seed(0), dtype=F64)
    radii = torch.linspace(8, ops.max_radius(dtype), 100, dtype=F64)[:, None] / math.sqrt(curv)
    x = ops.expmap0((radii * torch.nn.functional.normalize(directions, dim=-1)).to(dtype), curv)
    ball = getattr(ops, f"to_{model}")(x, curv)
    back = getattr(ops, f"from_{model}")(ball, curv)  # raises for a point on the sphere
    assert back.isfinite().all()
    torch.testing.assert_close(
        ball * math.sqrt(curv), x / x.norm(dim=-1, keepdim=True), rtol=1e-2, atol=1e-3
    )


# --- What is not finite stays visible; half precision ------------------------------------------


@every_op
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_hidden(op, bad):
    """And spoils its own row of the batch alone."""
    clean = arguments(op, dtype=F32)
    expected = getattr(ops, op)(*clean, CURV)
    for i, name in enumerate(SIGNATURES[op]):
        if (name in ("k", "p", "h") and not math.isnan(bad)) or (name == "weights" and bad < 0):
            continue  # these raise: outside the ball, below the boundary, negative
        args = [a.clone() for a in clean]
        args[i][1].view(-1)[-1] = bad
        got = getattr(ops, op)(*args, CURV)
        assert not got[1].isfinite().all(), f"{bad} in {name} gave {got[1]}"
        torch.testing.assert_close(got[[0, 2, 3]], expected[[0, 2, 3]])


@every_op
def test_a_curvature_that_is_nan_is_not_hidden(op):
    got = getattr(ops, op)(*arguments(op, dtype=F32), torch.tensor(math.nan))
    assert not (got.isfinite().all(-1) if got.dim() > 1 else got.isfinite()).any()


@every_op
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(op, half):
    args = [a.to(half).requires_grad_() for a in arguments(op, dtype=F32)]
    got = getattr(ops, op)(*args, CURV)
    assert got.dtype == F32
    torch.testing.assert_close(
        got, getattr(ops, op)(*(a.float() for a in args), CURV), rtol=0, atol=0
    )
    got.sum().backward()
    assert all(a.grad.dtype == half for a in args)
