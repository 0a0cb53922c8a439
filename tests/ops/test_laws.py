"""The laws of distance, maps, transport and means, at radii up to 6, in float64.

What is computed by two chains of ops has to agree up to what rounding does to each: `rounding.py`.
Further out, and op by op, `test_exactness.py` compares with multi-precision arithmetic.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rounding import ROUNDINGS, UNIT, apply, assert_agree, exact
from strategies import powers, seeds, some_points

from lorentzkit import ops
from lorentzkit.testing import assert_lorentz_invariant


def into_reach(s):
    """The vector u as a tangent vector at the first point, of length up to 2 / sqrt(curv)."""
    return apply(ops.transp0, s.x[0], s.u, s.curv)


# --- Distance ---------------------------------------------------------------------------------


@given(some_points(2))
def test_the_distance_is_symmetric(s):
    x, y = s.x
    assert_agree(apply(ops.dist, x, y, s.curv), apply(ops.dist, y, x, s.curv))
    assert_agree(apply(ops.dist, x, 0 * x, s.curv), apply(ops.dist0, x, s.curv))


@given(some_points(3))
def test_the_triangle_inequality(s):
    x, y, z = s.x
    long, *short = (apply(ops.dist, *pair, s.curv) for pair in ((x, z), (x, y), (y, z)))
    slack = ROUNDINGS * sum(d.blur for d in (long, *short))
    assert long.value <= short[0].value + short[1].value + slack


@given(some_points(3), st.integers(0, 99))
def test_what_is_invariant_under_isometries(s, seed):
    def angle(x, y, z):
        u, v = ops.logmap(x, y, s.curv), ops.logmap(x, z, s.curv)
        return ops.tangent_inner(x, u, v, s.curv)

    def of_mean(mean):
        return lambda *points: ops.dist(mean(torch.stack(points), None, s.curv), points[0], s.curv)

    x, y, z = s.x
    # A point at radius 7, where the boost may move it, is rounded by e^7 units of 1e-16.
    scale = 1 / s.curv.item()
    limits = {"curv": s.curv, "seed": seed, "rtol": 1e-9}
    assert_lorentz_invariant(
        lambda *p: ops.dist(*p, s.curv), x, y, atol=1e-11 * math.sqrt(scale), **limits
    )
    assert_lorentz_invariant(angle, x, y, z, atol=1e-11 * scale, **limits)
    assert_lorentz_invariant(
        of_mean(ops.einstein_midpoint), x, y, z, atol=1e-10 * math.sqrt(scale), **limits
    )
    for op in (ops.exterior_angle, ops.interior_angle):
        assert_lorentz_invariant(
            lambda *p, op=op: op(*p, s.curv).cos(), x, y, rotations_only=True, atol=1e-9, **limits
        )


# --- Exponential and logarithmic map, geodesics -------------------------------------------------


@given(some_points(2))
def test_exp_undoes_log(s):
    x, y = s.x
    assert_agree(apply(ops.expmap, x, apply(ops.logmap, x, y, s.curv), s.curv), y)
    assert_agree(apply(ops.expmap0, apply(ops.logmap0, x, s.curv), s.curv), x)


@given(some_points(1, largest=3.0))
def test_log_undoes_exp(s):
    (x,), u = s.x, into_reach(s)
    assert_agree(apply(ops.logmap, x, apply(ops.expmap, x, u, s.curv), s.curv), u)
    assert_agree(apply(ops.logmap0, apply(ops.expmap0, s.u, s.curv), s.curv), s.u)


@given(some_points(2))
def test_the_maps_at_the_origin_are_the_general_ones(s):
    x, origin = s.x[0], 0 * s.x[0]
    assert_agree(apply(ops.logmap, origin, x, s.curv), apply(ops.logmap0, x, s.curv))
    assert_agree(apply(ops.expmap, origin, s.u, s.curv), apply(ops.expmap0, s.u, s.curv))
    assert_agree(apply(ops.transp, origin, x, s.u, s.curv), apply(ops.transp0, x, s.u, s.curv))
    u = into_reach(s)
    assert_agree(apply(ops.transp, x, origin, u, s.curv), apply(ops.transp0back, x, u, s.curv))


@given(some_points(2))
def test_the_logarithm_is_as_long_as_the_distance(s):
    x, y = s.x
    length = apply(ops.tangent_norm, x, apply(ops.logmap, x, y, s.curv), s.curv)
    assert_agree(length, apply(ops.dist, x, y, s.curv))


@given(some_points(1, largest=3.0))
def test_a_velocity_is_as_long_as_the_way(s):
    (x,), u = s.x, into_reach(s)
    length = apply(ops.dist, x, apply(ops.expmap, x, u, s.curv), s.curv)
    assert_agree(length, apply(ops.tangent_norm, x, u, s.curv))


thousandths = st.integers(0, 1000).map(lambda n: n / 1000)


@given(some_points(2), thousandths, thousandths)
def test_geodesics_have_constant_speed(s, t1, t2):
    x, y = s.x
    length = apply(ops.dist, *(apply(ops.geodesic, t, x, y, s.curv) for t in (t1, t2)), s.curv)
    expected = apply(lambda a, b, d: (a - b).abs() * d, t1, t2, apply(ops.dist, x, y, s.curv))
    assert_agree(length, expected)


@given(some_points(2))
def test_geodesics_end_at_their_ends(s):
    x, y = s.x
    leaves = [p.clone().requires_grad_() for p in (x, y, s.curv)]
    for t in (0, 1):
        end = ops.geodesic(float(t), *leaves)
        assert torch.equal(end, (x, y)[t])
        gradients = torch.autograd.grad(end, leaves, torch.ones_like(x))
        # Whatever the rounding, an end moves with itself, and with nothing else.
        assert torch.equal(gradients[t], torch.ones_like(x))
        assert not gradients[1 - t].any()
        assert gradients[2] == 0


@given(some_points(2), st.floats(-0.5, 1.5))
def test_geodesics_are_exponentials(s, t):
    x, y = s.x
    u = apply(lambda t, v: t.unsqueeze(-1) * v, t, apply(ops.logmap, x, y, s.curv))
    assert_agree(apply(ops.expmap, x, u, s.curv), apply(ops.geodesic, t, x, y, s.curv))


@given(some_points(2))
def test_the_midpoint_is_equidistant(s):
    x, y = s.x
    for half in (
        apply(ops.geodesic, 0.5, x, y, s.curv),
        apply(ops.einstein_midpoint, torch.stack([x, y]), torch.ones(2).double(), s.curv),
    ):
        d = apply(lambda d: d / 2, apply(ops.dist, x, y, s.curv))
        assert_agree(apply(ops.dist, x, half, s.curv), d)
        assert_agree(apply(ops.dist, half, y, s.curv), d)


# --- Transport --------------------------------------------------------------------------------


@given(some_points(2))
def test_transport_keeps_inner_products(s):
    x, y = s.x
    u, v = into_reach(s), apply(ops.logmap, x, y, s.curv)
    transported = [apply(ops.transp, x, y, w, s.curv) for w in (u, v)]
    for i, j in ((0, 0), (0, 1), (1, 1)):
        before = apply(ops.tangent_inner, x, (u, v)[i], (u, v)[j], s.curv)
        assert_agree(apply(ops.tangent_inner, y, transported[i], transported[j], s.curv), before)


@given(some_points(2))
def test_transport_there_and_back(s):
    x, y = s.x
    u = into_reach(s)
    transported = apply(ops.transp, x, y, u, s.curv)
    assert_agree(apply(ops.transp, y, x, transported, s.curv), u)
    assert_agree(apply(ops.transp0back, x, u, s.curv), s.u)
    assert_agree(apply(ops.transp, x, x, u, s.curv), u)


@given(some_points(2), st.floats(0, 1))
def test_transport_carries_a_geodesic_s_velocity_along(s, t):
    x, y = s.x
    on_the_way = apply(ops.geodesic, t, x, y, s.curv)
    velocity = apply(ops.transp, x, on_the_way, apply(ops.logmap, x, y, s.curv), s.curv)
    # What is left of the way takes 1 - t of the time.
    rest = apply(lambda t, v: (1 - t).unsqueeze(-1) * v, t, velocity)
    assert_agree(rest, apply(ops.logmap, on_the_way, y, s.curv))


# --- The metric -------------------------------------------------------------------------------


@given(some_points(2))
def test_the_metric_is_the_minkowski_form_on_lifted_vectors(s):
    """Pulled back by the lift's Jacobian, which autograd takes of its definition."""
    x, v = s.x

    def pulled_back(x, u, v, c):
        def lift(x):
            return torch.cat([(1 / c.unsqueeze(-1) + x.square().sum(-1, True)).sqrt(), x], -1)

        _, du = torch.func.jvp(lift, (x,), (u,))
        _, dv = torch.func.jvp(lift, (x,), (v,))
        return (du[..., 1:] * dv[..., 1:]).sum(-1) - du[..., 0] * dv[..., 0]

    u = into_reach(s)
    assert_agree(apply(ops.tangent_inner, x, u, v, s.curv), apply(pulled_back, x, u, v, s.curv))


@given(some_points(2))
def test_the_riemannian_gradient_represents_the_differential(s):
    """<egrad2rgrad(x, g), v>_x = g.v for every v: the inverse of the metric, by its definition."""
    x, v = s.x
    gradient = apply(ops.egrad2rgrad, x, s.u, s.curv)
    product = apply(lambda g, v: (g * v).sum(-1), s.u, v)
    assert_agree(apply(ops.tangent_inner, x, gradient, v, s.curv), product)


@given(some_points(2))
def test_inner_is_minus_cosh_of_the_distance(s):
    x, y = s.x
    d = apply(ops.dist, x, y, s.curv)
    expected = apply(lambda d, c: -(c.sqrt() * d).cosh() / c, d, s.curv)
    assert_agree(apply(ops.inner, x, y, s.curv), expected)


# --- Means ------------------------------------------------------------------------------------


def cosh_objective(m, x, w, c):
    d = ops.dist(m.unsqueeze(-2), x, c.unsqueeze(-1))
    return (w * ((c.unsqueeze(-1).sqrt() * d).cosh() - 1)).sum(-1)


def square_objective(m, x, w, c):
    return (w * ops.dist(m.unsqueeze(-2), x, c.unsqueeze(-1)).square()).sum(-1)


MEANS = [(ops.einstein_midpoint, cosh_objective), (ops.frechet_mean, square_objective)]
each_mean = pytest.mark.parametrize(("mean", "objective"), MEANS, ids=["einstein", "frechet"])


def cloud(s, rng):
    return torch.stack(s.x), torch.from_numpy(rng.uniform(0.1, 2.0, len(s.x)))


@each_mean
def test_means_minimise_what_they_should(mean, objective):
    @given(some_points(4, largest=4.0), seeds)
    def check(s, rng):
        x, w = cloud(s, rng)
        m = apply(mean, x, w, s.curv)

        def pull(m, x, w, c):
            return torch.func.grad(lambda m: objective(m, x, w, c).sum())(m)

        assert_agree(apply(pull, m, x, w, s.curv), 0 * m.value)  # stationary
        least = objective(m.value, x, w, s.curv)
        steps = torch.from_numpy(rng.standard_normal((20, x.shape[-1])))
        for size in (1e-2, 1.0, 10.0):
            u = ops.transp0(m.value, size * steps / s.curv.sqrt(), s.curv)
            neighbours = ops.expmap(m.value, u, s.curv)
            assert (objective(neighbours, x, w, s.curv.expand(20)) > least).all()

    check()


@each_mean
def test_means_do_not_depend_on_order_or_on_the_sum_of_weights(mean, objective):
    @given(some_points(4, largest=4.0), seeds, powers(-6, 6))
    def check(s, rng, factor):
        x, w = cloud(s, rng)
        m = apply(mean, x, w, s.curv)
        order = torch.from_numpy(rng.permutation(len(x)))
        assert_agree(apply(mean, x[order], w[order], s.curv), m)
        assert_agree(apply(mean, x, factor * w, s.curv), m)
        assert_agree(apply(mean, torch.cat([x, x]), torch.cat([w, 2 * w]), s.curv), m)

    check()


@each_mean
def test_the_mean_of_equal_points_is_the_point(mean, objective):
    @given(some_points(1))
    def check(s):
        x = s.x[0].repeat(5, 1)
        assert_agree(apply(mean, x, torch.ones(5).double(), s.curv), s.x[0])

    check()


@each_mean
def test_dim_says_what_is_reduced(mean, objective):
    x = torch.randn(4, 3, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w = torch.rand(4, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for dim in (0, 1, -2):
        expected = mean(x.movedim(dim, -2), w.movedim(dim if dim >= 0 else dim + 1, -1))
        torch.testing.assert_close(mean(x, w, dim=dim), expected, rtol=1e-13, atol=1e-14)


@each_mean
def test_a_batch_of_means_of_many_points(mean, objective):
    """Of so many, and of so many dimensions, that their angles come from a product."""
    x = torch.randn(2, 40, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w = torch.rand(2, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.stack([mean(*point_set) for point_set in zip(x, w, strict=True)])
    torch.testing.assert_close(mean(x, w), expected, rtol=1e-12, atol=1e-13)


# --- Curvature --------------------------------------------------------------------------------


@given(some_points(2, largest=1.0))
def test_the_flat_limit(s):
    """At curvature 1e-8 the space is flat up to 1e-8 times the square of its lengths."""
    x, y = (2 * p / (p.norm() + 1e-3) for p in s.x)  # of length up to 2
    u, curv = s.u / (s.u.norm() + 1e-3), 1e-8
    to_origin, to_y = -x, y - x
    across = x[..., :1] * y[..., 1:2] - x[..., 1:2] * y[..., :1] if len(x) == 2 else None

    def flat(got, expected):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)

    flat(ops.dist(x, y, curv), to_y.norm())
    flat(ops.dist0(x, curv), x.norm())
    flat(ops.logmap(x, y, curv), to_y)
    flat(ops.expmap(x, u, curv), x + u)
    flat(ops.expmap0(u, curv), u)
    flat(ops.geodesic(0.3, x, y, curv), x + 0.3 * to_y)
    flat(ops.transp(x, y, u, curv), u)
    flat(ops.tangent_inner(x, u, y, curv), u @ y)
    flat(ops.egrad2rgrad(x, u, curv), u)
    flat(ops.to_klein(x, curv), x)
    flat(2 * ops.to_poincare(x, curv), x)
    flat(ops.einstein_midpoint(torch.stack([x, y]), curv=curv), (x + y) / 2)
    flat(ops.frechet_mean(torch.stack([x, y]), curv=curv), (x + y) / 2)
    if across is not None and to_y.norm() > 1e-3:
        angle = torch.atan2(across.abs().squeeze(), to_origin @ to_y)
        flat(ops.interior_angle(x, y, curv), angle)
        flat(ops.exterior_angle(x, y, curv), math.pi - angle)


LENGTH, AREA, ANGLE = 1, 2, 0
DIMENSION_OF = {"inner": AREA, "tangent_inner": AREA, "half_aperture": ANGLE} | dict.fromkeys(
    ["exterior_angle", "interior_angle", "entailment_residual"], ANGLE
)


@pytest.mark.parametrize(
    ("op", "vectors"),
    [(op, 1) for op in ("time", "dist0", "half_aperture", "logmap0", "to_halfspace")]
    + [(op, 1) for op in ("to_klein", "to_poincare")]
    + [(op, 2) for op in ("inner", "dist", "exterior_angle", "interior_angle", "logmap")]
    + [(op, 2) for op in ("entailment_residual",)]
    + [(op, "u") for op in ("tangent_norm", "expmap", "transp0", "transp0back", "egrad2rgrad")],
)
def test_lengths_scale_with_the_radius_of_curvature(op, vectors):
    """`op(x, c)` at curvature c is `op(sqrt(c) x, 1)` in other units."""

    @given(some_points(2))
    def check(s):
        args = [s.x[0], s.u] if vectors == "u" else s.x[:vectors]
        unit = [apply(lambda v, c: c.sqrt().unsqueeze(-1) * v, v, s.curv) for v in args]
        power = DIMENSION_OF.get(op, LENGTH)

        def in_units(out, c):
            c = c.reshape(c.shape + (1,) * (out.dim() - c.dim()))
            return out * c.sqrt() ** power

        function = getattr(ops, op)
        got = apply(in_units, apply(function, *args, s.curv), s.curv)
        assert_agree(got, apply(function, *unit, exact(1.0)))

    check()


def test_the_unit_is_that_of_float64():
    """What the tolerances are made of; were it larger, the laws would say less."""
    assert 1 + 2 * UNIT > 1
    assert 1 + UNIT == 1
