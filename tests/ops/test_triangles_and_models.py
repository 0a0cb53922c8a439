"""The laws of triangles and cones, and the agreement of the models, in float64.

As in `test_laws.py`, two chains of ops have to agree up to what rounding does to each.
"""

import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rounding import ROUNDINGS, UNIT, apply, assert_agree
from strategies import powers, seeds, some_points

from lorentzkit import ops
from lorentzkit.testing import boost

# --- Triangles --------------------------------------------------------------------------------


# A triangle is some twenty applications of an op and as many of its Jacobians.
fewer = settings(max_examples=settings.default.max_examples // 3)


@st.composite
def triangles(draw, largest):
    """Three points with no angle below 0.1: the sine law divides by sines."""
    s = draw(some_points(3, largest))
    sides, angles = sides_and_angles(s)
    # A short side far from the origin is known to few digits only, and so are the angles at it.
    assume(all(0.1 < a.value < 3.0 and a.blur < 1e-6 for a in angles))
    return s, sides, angles


def angle_between(u, v, w):
    """From |u|^2, <u, v> and |v|^2: well conditioned away from 0 and pi."""
    return torch.acos((v / (u * w).sqrt()).clamp(-1, 1))


def sides_and_angles(s):
    """Times sqrt(curv), each side opposite to the angle of its place; angles between logarithms."""
    sides, angles = [], []
    for i in range(3):
        x, y, z = (s.x[(i + j) % 3] for j in range(3))
        sides.append(apply(lambda d, c: d * c.sqrt(), apply(ops.dist, y, z, s.curv), s.curv))
        u, v = (apply(ops.logmap, x, p, s.curv) for p in (y, z))
        products = (apply(ops.tangent_inner, x, *pair, s.curv) for pair in ((u, u), (u, v), (v, v)))
        angles.append(apply(angle_between, *products))
    return sides, angles


@fewer
@given(triangles(largest=6.0))
def test_the_law_of_cosines(triangle):
    _, (a, b, c), (_, _, gamma) = triangle
    right = apply(
        lambda a, b, gamma: a.cosh() * b.cosh() - a.sinh() * b.sinh() * gamma.cos(), a, b, gamma
    )
    assert_agree(right, apply(torch.cosh, c))


@fewer
@given(triangles(largest=6.0))
def test_the_law_of_cosines_for_angles(triangle):
    _, (a, _, _), (alpha, beta, gamma) = triangle
    right = apply(
        lambda beta, gamma, a: beta.sin() * gamma.sin() * a.cosh() - beta.cos() * gamma.cos(),
        *(beta, gamma, a),
    )
    assert_agree(right, apply(torch.cos, alpha))


@fewer
@given(triangles(largest=6.0))
def test_the_law_of_sines(triangle):
    _, sides, angles = triangle
    ratios = [
        apply(lambda a, alpha: a.sinh() / alpha.sin(), a, alpha)
        for a, alpha in zip(sides, angles, strict=True)
    ]
    assert_agree(ratios[0], ratios[1])
    assert_agree(ratios[1], ratios[2])


@cache
def gauss_legendre(n=300):
    return np.polynomial.legendre.leggauss(n)


def area_with_apex_at_origin(y, z, curv):
    """Polar coordinates: the area is the integral of (cosh(rho) - 1) / curv over the angle.

    In the Klein model the far side is straight, so its radius tanh(rho) in each direction is found
    with ruler and pencil; the integral is Gauss's quadrature.
    """
    p, q = (v / np.sqrt(1 / curv + v @ v) for v in (y, z))
    gamma = math.acos(p @ q / np.linalg.norm(p) / np.linalg.norm(q))
    nodes, weights = gauss_legendre()
    phi = (nodes + 1) / 2 * gamma
    # Where the ray at angle phi from p meets the segment: areas of the two parts add up.
    r, s = np.linalg.norm(p), np.linalg.norm(q)
    tanh = r * s * math.sin(gamma) / (r * np.sin(phi) + s * np.sin(gamma - phi))
    return (weights * (1 / np.sqrt(1 - tanh**2) - 1)).sum() * gamma / 2 / curv


@fewer
@given(triangles(largest=2.0))
def test_the_angle_defect_is_the_area(triangle):
    """Gauss-Bonnet: pi - alpha - beta - gamma = curv * area."""
    s, _, angles = triangle
    # The area is integrated after moving the first vertex to the origin; the angles are not.
    y, z = (boost(p, -s.x[0], s.curv).numpy() for p in s.x[1:])
    defect = math.pi - sum(angle.value.item() for angle in angles)
    area = area_with_apex_at_origin(y, z, s.curv.item())
    # The quadrature is good for 1e-10 at sides up to 4, and the boost for 1e-12 of a coordinate.
    allowed = 1e-9 + ROUNDINGS * sum(angle.blur for angle in angles)
    assert abs(defect - s.curv.item() * area) <= allowed


@given(some_points(2))
def test_exterior_and_interior_angle_add_up_to_pi(s):
    x, y = s.x
    both = ops.exterior_angle(x, y, s.curv) + ops.interior_angle(x, y, s.curv)
    torch.testing.assert_close(both.item(), math.pi, rtol=1e-15, atol=0)


@fewer
@given(triangles(largest=6.0))
def test_the_angles_at_points_are_those_between_logarithms(triangle):
    s, _, _ = triangle
    x, y = s.x[:2]
    u, v = (apply(ops.logmap, x, p, s.curv) for p in (0 * x, y))
    products = (apply(ops.tangent_inner, x, *pair, s.curv) for pair in ((u, u), (u, v), (v, v)))
    between = apply(angle_between, *products)
    assume(0.1 < between.value < 3.0)
    assert_agree(between, apply(ops.interior_angle, x, y, s.curv))


# --- Cones ------------------------------------------------------------------------------------


@given(some_points(1), st.floats(0.01, 2.0))
def test_the_aperture_of_a_cone(s, k):
    (x,) = s.x
    sine = apply(
        lambda a: a.sin(), apply(lambda x, c: ops.half_aperture(x, c, min_radius=k), x, s.curv)
    )
    radius = (s.curv.sqrt() * x.norm()).item()
    # The arc sine has an infinite derivative where the sine is 1.
    assume(not 1 - 1e-6 < radius / (2 * k) < 1 + 1e-3)
    assert_agree(sine, min(1.0, 2 * k / radius))


@given(some_points(1, largest=3.0), seeds, powers(-3, 0.5), powers(-3, 0.5))
def test_cones_are_transitive(s, rng, step, next_step):
    """What is in the cone of a point has its own cone inside it (Ganea et al. 2018, cor. 2)."""
    k = 0.1
    (x,) = s.x
    assume(2 * k < s.curv.sqrt() * x.norm())

    def entailed(x, step):
        """A point in x's cone, at any angle from its axis up to the edge, `step` away."""
        radial = x / x.norm()
        across = torch.from_numpy(rng.standard_normal(len(x)))
        across = across - radial * (radial @ across)
        across = across / across.norm().clamp_min(1e-9)
        angle = rng.choice([rng.uniform(0, 1), 1 - 1e-6]) * ops.half_aperture(
            x, s.curv, min_radius=k
        )
        # In a frame at the origin: transport is an isometry, and keeps the radial direction.
        u = step / s.curv.sqrt() * (angle.cos() * radial + angle.sin() * across)
        return ops.expmap(x, ops.transp0(x, u, s.curv), s.curv)

    def outside(x, y):
        return ops.entailment_residual(x, y, s.curv, min_radius=k)

    y = entailed(x, step)
    z = entailed(y, next_step)
    assume(s.curv.sqrt() * ops.dist0(z, s.curv) < 8)
    # A millionth of the aperture is far above what rounding does at radius 8.
    assert outside(x, y) == 0
    assert outside(y, z) == 0
    assert outside(x, z) == 0


@given(some_points(2))
def test_the_residual_is_the_angle_beyond_the_cone(s):
    x, y = s.x
    for scale in (1.0, 0.5):
        beyond = ops.exterior_angle(x, y, s.curv) - scale * ops.half_aperture(x, s.curv)
        got = ops.entailment_residual(x, y, s.curv, aperture_scale=scale)
        torch.testing.assert_close(got, beyond.clamp_min(0.0), rtol=1e-14, atol=1e-15)


# --- Models -----------------------------------------------------------------------------------


def dot(k, p):
    return (k * p).sum(-1)


def klein_distance(k, p, c):
    """cosh = (1 - c k.p) / sqrt(gaps); as sinh, since acosh cancels for close points."""
    gap_k, gap_p, d = 1 - c * dot(k, k), 1 - c * dot(p, p), p - k
    squared = c * dot(d, d) * gap_k + (c * dot(k, d)) ** 2
    return torch.asinh((squared / (gap_k * gap_p)).sqrt()) / c.sqrt()


def poincare_distance(p, q, c):
    gaps = (1 - c * dot(p, p)) * (1 - c * dot(q, q))
    return 2 * torch.asinh((c * dot(p - q, p - q) / gaps).sqrt()) / c.sqrt()


def halfspace_distance(p, q, c):
    return 2 * torch.asinh((dot(p - q, p - q) / (4 * p[..., -1] * q[..., -1])).sqrt()) / c.sqrt()


MODELS = {
    "klein": klein_distance,
    "poincare": poincare_distance,
    "halfspace": halfspace_distance,
}


@pytest.mark.parametrize("model", MODELS)
def test_distances_in_another_model(model):
    @given(some_points(2, largest=3.0))
    def check(s):
        x, y = s.x
        assume(not torch.equal(x, y))  # there the textbook's roots have no derivative
        in_model = [apply(getattr(ops, f"to_{model}"), p, s.curv) for p in (x, y)]
        assert_agree(apply(MODELS[model], *in_model, s.curv), apply(ops.dist, x, y, s.curv))

    check()


@pytest.mark.parametrize("model", MODELS)
def test_there_and_back(model):
    @given(some_points(1))
    def check(s):
        (x,) = s.x
        in_model = apply(getattr(ops, f"to_{model}"), x, s.curv)
        assert_agree(apply(getattr(ops, f"from_{model}"), in_model, s.curv), x)

    check()


@pytest.mark.parametrize("model", ["klein", "poincare"])
def test_points_of_the_balls_are_inside(model):
    @given(some_points(1))
    def check(s):
        (x,) = s.x
        ball = getattr(ops, f"to_{model}")(x, s.curv)
        # tanh of the radius, or of half of it, along the ray of the point.
        radius = (s.curv.sqrt() * ops.dist0(x, s.curv)).item()
        expected = math.tanh(radius if model == "klein" else radius / 2) / s.curv.sqrt()
        torch.testing.assert_close(ball, expected * x / x.norm(), rtol=1e-13, atol=0)

    check()


@given(some_points(2), st.floats(-0.2, 1.2))
def test_geodesics_are_straight_in_the_klein_model(s, t):
    x, y = s.x
    ends = [apply(ops.to_klein, p, s.curv) for p in (x, y)]
    between = apply(ops.to_klein, apply(ops.geodesic, t, x, y, s.curv), s.curv)

    def off_line(k, p, q):
        """The component of k - p across q - p, times |q - p|^2."""
        along = q - p
        return (k - p) * dot(along, along).unsqueeze(-1) - along * dot(k - p, along).unsqueeze(-1)

    off = apply(off_line, between, *ends)
    # On the line the products that cancel in `off_line` have no condition, but are rounded.
    p, q = (end.value for end in ends)
    products = UNIT * dot(q - p, q - p).item() * (between.value - p).norm().item()
    assert off.value.norm() <= ROUNDINGS * (off.blur + products)


@given(some_points(2))
def test_the_einstein_midpoint_is_klein_s_average(s):
    x = torch.stack(s.x)
    w = torch.tensor([1.0, 3.0], dtype=torch.float64)

    def average(k, w, c):
        gamma = w * (1 - c.unsqueeze(-1) * dot(k, k)).rsqrt()
        return (gamma.unsqueeze(-1) * k).sum(-2) / gamma.sum(-1, keepdim=True)

    balls = apply(lambda x, c: ops.to_klein(x, c.unsqueeze(-1)), x, s.curv)
    midpoint = apply(ops.einstein_midpoint, x, w, s.curv)
    assert_agree(apply(ops.to_klein, midpoint, s.curv), apply(average, balls, w, s.curv))
