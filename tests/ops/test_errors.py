"""Every documented error: its type, and that it names the argument, what came, what was expected
and what to do."""

import math
import re
from decimal import Decimal
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from calls import ONE_OF_EACH, SIGNATURES, arguments

from lorentzkit import ops
from lorentzkit._geometry import means
from lorentzkit.testing import assert_lorentz_invariant

every_op = pytest.mark.parametrize("op", SIGNATURES)
one_of_each = pytest.mark.parametrize("op", ONE_OF_EACH)


def says(*parts):
    """A pattern for a message with these parts, in this order."""
    return "(?s)" + ".*".join(re.escape(part) for part in parts)


def with_argument(op, i, value):
    args = arguments(op)
    args[i] = value
    return args


def vector_arguments(op):
    """Positions and names of what has a trailing dimension D; a mean's points are called x."""
    names = SIGNATURES[op]
    argument = {"points": "x", "h": "p"}
    return [(i, argument.get(n, n)) for i, n in enumerate(names) if n not in ("t", "weights")]


# --- Tensors ----------------------------------------------------------------------------------


@every_op
def test_what_is_no_vector(op):
    """In each place of each op: another type, another dtype, no components, a number."""
    for i, name in vector_arguments(op):
        good = arguments(op)[i]
        integers, empty = torch.ones(good.shape, dtype=torch.int64), good[..., :0]
        wrong = [
            ([1.0, 2.0, 3.0], TypeError, ("got list", "as_tensor")),
            (integers, TypeError, ("torch.int64", ".float()")),
            (empty, ValueError, ("D >= 1", "got", str(tuple(empty.shape)))),
        ]
        if name != "x" or "points" not in SIGNATURES[op]:
            wrong.append((torch.tensor(1.0), ValueError, ("(..., D)", "got shape ()")))
        for value, error, parts in wrong:
            with pytest.raises(error, match=says(f"{name}: expected", *parts)):
                getattr(ops, op)(*with_argument(op, i, value))


@pytest.mark.parametrize("op", [op for op in SIGNATURES if len(vector_arguments(op)) > 1])
def test_sizes_that_do_not_go_together(op):
    for i, name in vector_arguments(op):
        longer = torch.cat([arguments(op)[i], torch.ones(4, 1, dtype=torch.float64)], -1)
        parts = ("one trailing size", "got", f"{name} (4, 4)", "drop_time")
        with pytest.raises(ValueError, match=says(*parts)):
            getattr(ops, op)(*with_argument(op, i, longer))
        batch = arguments(op, batch=(5,))[i]
        with pytest.raises(ValueError, match=says("do not broadcast", f"{name} (5,)")):
            getattr(ops, op)(*with_argument(op, i, batch))


def test_parameters_of_a_geodesic_that_do_not_broadcast():
    single, four = torch.ones(3), torch.ones(4, 3)
    for x, y in ((four, four), (single, four), (four, single)):
        with pytest.raises(ValueError, match=says("t", "(5,)")):
            ops.geodesic(torch.rand(5), x, y)


# --- Curvature --------------------------------------------------------------------------------


@every_op
def test_the_curvature_is_1_where_none_is_given(op):
    args = arguments(op)
    assert torch.equal(getattr(ops, op)(*args), getattr(ops, op)(*args, 1.0))


@every_op
def test_curvatures_that_no_op_takes(op):
    """Each by its own message: where an op reads its curvature, and that it does."""
    column = ("(4,)", "got (4, 1)", "squeeze(-1)", "unsqueeze the points")
    wrong = [
        (-1.0, ValueError, ("a positive number", "got -1.0", "sectional curvature")),
        (torch.tensor([1.0, 0.5, -2.0, 3.0]), ValueError, ("a positive number", "minimum -2")),
        (torch.tensor(1), TypeError, ("got torch.int64", ".float()")),
        (torch.ones(4, 1), ValueError, column),
    ]
    for curv, error, parts in wrong:
        with pytest.raises(error, match=says("curv: expected", *parts)):
            getattr(ops, op)(*arguments(op), curv=curv)
    if "points" not in SIGNATURES[op]:
        parts = ("curv (5,)", "curv broadcasts against the leading dimensions", "no trailing 1")
        with pytest.raises(ValueError, match=says(*parts)):
            getattr(ops, op)(*arguments(op), curv=torch.ones(5))


@one_of_each
@pytest.mark.parametrize("curv", [0, 0.0, -1, math.inf, -math.inf, math.nan, 1e-30, 1e30])
def test_curvatures_that_are_not_positive_numbers(op, curv):
    parts = ("curv: expected a positive number", f"got {curv!r}", "sectional curvature")
    with pytest.raises(ValueError, match=says(*parts)):
        getattr(ops, op)(*arguments(op), curv=curv)


@one_of_each
@pytest.mark.parametrize(
    "curv",
    [
        *(True, "1.0", None, [1.0], 1j, np.bool_(True), np.str_("1"), np.complex64(1)),
        *(np.array(1j), np.array(True), np.ones(2), np.ones(0)),
    ],
    ids=repr,
)
def test_curvatures_of_a_wrong_type(op, curv):
    with pytest.raises(
        TypeError, match=says("curv: expected a float", f"got {type(curv).__name__}")
    ):
        getattr(ops, op)(*arguments(op), curv=curv)


@one_of_each
@pytest.mark.parametrize(
    "curv",
    [
        *(np.float32(0.5), np.float64(0.5), np.float16(0.5), np.array(0.5), np.array([0.5])),
        *(np.longdouble(0.5), Fraction(1, 2), Decimal("0.5"), mpmath.mpf(0.5)),
    ],
    ids=repr,
)
def test_curvatures_that_are_numbers_of_other_libraries(op, curv):
    args = [a.requires_grad_() for a in arguments(op)]
    out, expected = getattr(ops, op)(*args, curv=curv), getattr(ops, op)(*args, curv=0.5)
    assert torch.equal(out, expected)
    for a, b in zip(
        torch.autograd.grad(out.sum(), args), torch.autograd.grad(expected.sum(), args), strict=True
    ):
        assert torch.equal(a, b)


@one_of_each
@pytest.mark.parametrize("far", [False, True])  # near points are checked elsewhere
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_column_of_curvatures(op, far, dtype):
    """It would give (N, N) results of N points: every curvature with every point."""
    args = arguments(op, radius=50.0 if far else 0.1, dtype=dtype)
    parts = ("curv: expected", "(4,)", "got (4, 1)", "squeeze(-1)", "unsqueeze the points")
    with pytest.raises(ValueError, match=says(*parts)):
        getattr(ops, op)(*args, curv=torch.ones(4, 1))
    with pytest.raises(ValueError, match=says("curv: expected", "(2, 3)", "got (2, 3, 1)")):
        getattr(ops, op)(*arguments(op, batch=(2, 3)), curv=torch.ones(2, 3, 1))


@every_op
def test_tables_of_curvatures_and_points(op):
    """What the error names as the way, and a table that cannot be meant otherwise."""
    args, curv = arguments(op), torch.tensor([0.2, 0.3, 0.5, 0.7])
    rows = torch.stack([getattr(ops, op)(*args, curv=c) for c in curv])
    lifted = [a.unsqueeze(0) for a in args]
    torch.testing.assert_close(getattr(ops, op)(*lifted, curv=curv[:, None]), rows)
    torch.testing.assert_close(getattr(ops, op)(*args, curv=curv[:3, None]), rows[:3])


@pytest.mark.parametrize("mean", [ops.einstein_midpoint, ops.frechet_mean])
def test_means_of_one_cloud_under_as_many_curvatures_as_points(mean):
    """One mean for each curvature, with weights too."""
    x, weights = arguments("einstein_midpoint", batch=())
    curv = torch.tensor([0.2, 0.5, 0.7], dtype=x.dtype)
    expected = torch.stack([mean(x, weights, c) for c in curv])
    torch.testing.assert_close(mean(x, weights, curv), expected)


def test_columns_of_curvatures_for_points_that_broadcast():
    x, y = torch.rand(4, 1, 3), torch.rand(1, 5, 3)
    assert ops.dist(x, y, torch.ones(4, 1)).shape == (4, 5)
    for curv in (torch.ones(4, 1, 1), torch.ones(4, 5, 1)):
        with pytest.raises(ValueError, match=says("curv: expected", f"got {tuple(curv.shape)}")):
            ops.dist(x, y, curv)
    assert ops.dist(x[0], y[0, :1], torch.ones(1, 1)).shape == (1, 1)


@pytest.mark.parametrize("curv", [torch.ones(4, 1), torch.ones(0, 1)])
def test_a_column_of_curvatures_compiled(curv):
    x = torch.rand(len(curv), 3)
    with pytest.raises(ValueError, match=says("curv: expected", "squeeze(-1)")):
        torch.compile(ops.dist, backend="eager")(x, x, curv)


# --- Domains ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("op", "name"), [("from_klein", "k"), ("from_poincare", "p")])
@pytest.mark.parametrize("size", [0.5, 0.5 + 1e-6, 1.0, 100.0])  # the ball has radius 1/2
def test_points_on_or_outside_the_ball(op, name, size):
    points = torch.tensor([[0.1, 0.1], [0.0, size]])
    parts = (f"{name}: expected points inside the ball of radius 1/sqrt(curv)", "got", "check")
    with pytest.raises(ValueError, match=says(*parts)):
        getattr(ops, op)(points, 4.0)


@pytest.mark.parametrize("height", [0.0, -0.0, -1e-30, -1.0])
def test_points_on_or_below_the_boundary(height):
    points = torch.tensor([[0.1, 1.0], [0.0, height]])
    with pytest.raises(ValueError, match=says("p: expected heights", "> 0", "got")):
        ops.from_halfspace(points)


@pytest.mark.parametrize("op", ["half_aperture", "entailment_residual"])
@pytest.mark.parametrize("min_radius", [0.0, -0.1, math.nan])
def test_cones_without_radius(op, min_radius):
    parts = ("min_radius: expected a positive number", f"got {min_radius}")
    with pytest.raises(ValueError, match=says(*parts)):
        getattr(ops, op)(*arguments(op), min_radius=min_radius)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_cones_without_aperture(scale):
    x, y = arguments("entailment_residual")
    with pytest.raises(ValueError, match=says("aperture_scale: expected a positive", f"{scale}")):
        ops.entailment_residual(x, y, aperture_scale=scale)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, "float32", 32, float])
def test_the_largest_radius_of_no_floating_dtype(dtype):
    with pytest.raises(TypeError, match=says("dtype: expected a floating-point", repr(dtype))):
        ops.max_radius(dtype)


@pytest.mark.parametrize("p", [torch.ones(1), torch.ones(4, 1), torch.tensor(1.0)])
def test_full_vectors_without_space(p):
    with pytest.raises(ValueError, match=says("p: expected", "D >= 1", f"{tuple(p.shape)}")):
        ops.drop_time(p)


# --- Means ------------------------------------------------------------------------------------

both_means = pytest.mark.parametrize("mean", [ops.einstein_midpoint, ops.frechet_mean])


@both_means
@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        ([1.0, -1e-30, 1.0], ("non-negative", "got a negative one")),
        ([0.0, 0.0, 0.0], ("at least one positive", "got all zero")),
        ([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]], ("at least one positive", "got all zero")),
        ([1.0, 2.0], ("expands to (2, 3)", "got (2,)")),
        ([[1.0, 2.0, 3.0]] * 4, ("expands to (2, 3)", "got (4, 3)")),
    ],
)
def test_weights(mean, weights, parts):
    with pytest.raises(ValueError, match=says("weights: expected", *parts)):
        mean(torch.randn(2, 3, 4), torch.tensor(weights))


@both_means
@pytest.mark.parametrize(
    ("weights", "got"), [([1.0, 1.0, 1.0], "list"), (torch.tensor([1, 1, 1]), "torch.int64")]
)
def test_weights_of_a_wrong_type(mean, weights, got):
    with pytest.raises(TypeError, match=says("weights: expected a floating-point", f"got {got}")):
        mean(torch.randn(3, 4), weights)


@both_means
@pytest.mark.parametrize("dim", [-1, 2, 3, -4])
def test_dimensions_that_cannot_be_reduced(mean, dim):
    parts = ("dim: expected a dimension of x other than the last", f"got {dim}", "(2, 3, 4)")
    with pytest.raises(ValueError, match=says(*parts)):
        mean(torch.randn(2, 3, 4), dim=dim)


@both_means
def test_one_vector_has_no_dimension_to_reduce(mean):
    with pytest.raises(ValueError, match=says("dim: expected", "(4,)")):
        mean(torch.randn(4))


@both_means
def test_no_points(mean):
    with pytest.raises(ValueError, match=says("x: expected at least one point", "(2, 0, 4)")):
        mean(torch.zeros(2, 0, 4))


def test_a_mean_that_is_not_found(monkeypatch):
    """No points are known for which it takes a hundred steps; here the first one is the last."""
    monkeypatch.setattr(means, "_STEPS", 1)
    x = torch.tensor([[3.0, 0.0], [0.0, 5.0], [-1.0, 0.0]], dtype=torch.float64)
    parts = ("frechet_mean: not converged in 1 steps", "residual", "expected at most", "einstein")
    with pytest.raises(RuntimeError, match=says(*parts)):
        ops.frechet_mean(x)


# --- testing ----------------------------------------------------------------------------------


def test_invariance_is_asserted_of_points():
    with pytest.raises(ValueError, match=says("points: expected at least one")):
        assert_lorentz_invariant(ops.dist)


def test_what_is_not_invariant_is_noticed():
    x, y = torch.randn(2, 8, 3, dtype=torch.float64)
    with pytest.raises(AssertionError, match="not invariant under a rotation and boost"):
        assert_lorentz_invariant(lambda x, y: (x - y).norm(dim=-1), x, y)
    with pytest.raises(AssertionError, match="not invariant under a rotation "):
        assert_lorentz_invariant(lambda x: x[..., 0], x, rotations_only=True)
