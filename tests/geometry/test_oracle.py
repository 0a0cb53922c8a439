"""The oracle against other textbook definitions, the harness's derivatives against known ones."""

import condition
import oracle
import pytest
import torch
from condition import Frame, Problem, exact_dot
from mpmath import mp, mpf
from oracle import add, dist, dot, lift_point, lift_tangent, logmap, minkowski, mul, norm, sub

CURVATURES = [0.3, 1.0, 5.0]


@pytest.fixture(autouse=True)
def digits():
    with mp.workdps(60):
        yield


@pytest.fixture(params=CURVATURES)
def c(request):
    return mpf(request.param)


@pytest.fixture(params=[2, 3])
def D(request):
    return request.param


def vector(D, *seed):
    """Some vector of length about 1, the same every time."""
    return [mp.sin(100 * (i + 1) + sum(seed) * mp.e) for i in range(D)]


def close(a, b):
    a, b = (v if isinstance(v, list) else [v] for v in (a, b))
    return norm(sub(a, b)) < mpf(10) ** -50 * (1 + norm(a))


@pytest.fixture
def x(D):
    return vector(D, 1)


@pytest.fixture
def y(D):
    return mul(mpf(3), vector(D, 2))


@pytest.fixture
def u(D):
    return vector(D, 3)


def test_points_are_on_the_hyperboloid_and_tangents_are_tangent(x, y, u, c):
    assert close(oracle.inner(x, x, c), -1 / c)
    assert close(minkowski(lift_point(x, c), lift_tangent(x, u, c)), mpf(0))
    assert oracle.drop_time(oracle.add_time(x, c)) == x


def test_distance_is_the_arc_of_the_chord(x, y, c):
    chord = sub(lift_point(x, c), lift_point(y, c))
    arc = 2 / mp.sqrt(c) * mp.asinh(mp.sqrt(c * minkowski(chord, chord)) / 2)
    assert close(dist(x, y, c), arc)
    assert close(oracle.dist0(x, c), mp.asinh(mp.sqrt(c) * norm(x)) / mp.sqrt(c))


def test_law_of_cosines_and_sines(x, y, c):
    a, b, d = (mp.sqrt(c) * s for s in (oracle.dist0(x, c), oracle.dist0(y, c), dist(x, y, c)))
    at_x, at_y = oracle.interior_angle(x, y, c), oracle.interior_angle(y, x, c)
    at_0 = mp.acos(dot(x, y) / (norm(x) * norm(y)))
    assert close(mp.cosh(d), mp.cosh(a) * mp.cosh(b) - mp.sinh(a) * mp.sinh(b) * mp.cos(at_0))
    assert close(mp.cosh(b), mp.cosh(a) * mp.cosh(d) - mp.sinh(a) * mp.sinh(d) * mp.cos(at_x))
    assert close(mp.sin(at_x) / mp.sinh(b), mp.sin(at_y) / mp.sinh(a))
    assert at_x + at_y + at_0 < mp.pi()


def test_exterior_angle_is_that_of_the_entailment_cones(x, y, c):
    """MERU's formula (Desai et al., 2023, equation 7)."""
    b = c * oracle.inner(x, y, c)
    cosine = (oracle.time(y, c) + oracle.time(x, c) * b) / (norm(x) * mp.sqrt(b * b - 1))
    assert close(oracle.exterior_angle(x, y, c), mp.acos(cosine))
    assert close(oracle.exterior_angle(x, mul(mpf(0), y), c), mp.pi())


def test_the_cone_of_every_point_on_a_ray_contains_the_rest_of_it(x, c):
    far = mul(mpf(2), x)
    assert oracle.entailment_residual(x, far, c) == 0
    with mp.workdps(150):  # `acos` near -1 keeps half the digits
        residual = oracle.entailment_residual(far, x, c)
        assert close(residual, mp.pi() - mp.asin(mpf(0.1) / (mp.sqrt(c) * norm(x))))


def test_exp_and_log_are_inverse_and_of_unit_speed(x, y, u, c):
    assert close(oracle.expmap(x, logmap(x, y, c), c), y)
    assert close(logmap(x, oracle.expmap(x, u, c), c), u)
    assert close(oracle.tangent_norm(x, logmap(x, y, c), c), dist(x, y, c))
    third = oracle.geodesic(mpf(1) / 3, x, y, c)
    assert close(3 * dist(x, third, c), dist(x, y, c))
    assert close(3 * dist(third, y, c), 2 * dist(x, y, c))
    r = mp.sqrt(c) * norm(u)
    assert close(oracle.expmap0(u, c), mul(mp.sinh(r) / r, u))
    assert close(oracle.logmap0(oracle.expmap0(u, c), c), u)


def test_transport_is_an_isometry_along_the_geodesic(x, y, u, c):
    v = logmap(x, y, c)
    moved = oracle.transp(x, y, u, c)
    assert close(oracle.tangent_norm(y, moved, c), oracle.tangent_norm(x, u, c))
    assert close(oracle.tangent_inner(y, moved, oracle.transp(x, y, v, c), c),
                 oracle.tangent_inner(x, u, v, c))  # fmt: skip
    assert close(oracle.transp(x, y, v, c), mul(mpf(-1), logmap(y, x, c)))
    assert close(oracle.transp0back(y, oracle.transp0(y, u, c), c), u)


def test_transport_composes_along_a_geodesic(x, y, u, c):
    middle = oracle.geodesic(mpf(0.4), x, y, c)
    twice = oracle.transp(middle, y, oracle.transp(x, middle, u, c), c)
    assert close(twice, oracle.transp(x, y, u, c))


def test_riemannian_gradient_solves_the_metric(x, u, c):
    """In the chart of space components the metric is 1 - x x^T / x0^2."""
    v = oracle.egrad2rgrad(x, u, c)
    assert close(sub(v, mul(dot(x, v) / oracle.time(x, c) ** 2, x)), u)


def test_klein_geodesics_are_straight_and_distances_agree(x, y, c):
    k, q = oracle.to_klein(x, c), oracle.to_klein(y, c)
    cosh = (1 - c * dot(k, q)) / mp.sqrt((1 - c * dot(k, k)) * (1 - c * dot(q, q)))
    assert close(mp.acosh(cosh) / mp.sqrt(c), dist(x, y, c))
    between = sub(oracle.to_klein(oracle.geodesic(mpf(0.3), x, y, c), c), k)
    along = sub(q, k)
    assert close(norm(between) * norm(along), dot(between, along))
    assert close(oracle.from_klein(k, c), x)


def test_poincare_distances_agree(x, y, c):
    p, q = oracle.to_poincare(x, c), oracle.to_poincare(y, c)
    gap = dot(sub(p, q), sub(p, q)) / ((1 - c * dot(p, p)) * (1 - c * dot(q, q)))
    assert close(mp.acosh(1 + 2 * c * gap) / mp.sqrt(c), dist(x, y, c))
    assert close(oracle.from_poincare(p, c), x)


def test_halfspace_distances_agree(x, y, c):
    p, q = oracle.to_halfspace(x, c), oracle.to_halfspace(y, c)
    cosh = 1 + dot(sub(p, q), sub(p, q)) / (2 * p[-1] * q[-1])
    assert close(mp.acosh(cosh) / mp.sqrt(c), dist(x, y, c))
    assert close(oracle.from_halfspace(p, c), x)
    at_origin = oracle.to_halfspace(mul(mpf(0), x), c)
    assert close(at_origin, [mpf(0)] * (len(x) - 1) + [1 / mp.sqrt(c)])


def test_einstein_midpoint_is_the_normalised_ambient_sum(x, y, u, c):
    weights = [mpf(1), mpf(0.25), mpf(3)]
    lifted = [mul(w, lift_point(p, c)) for w, p in zip(weights, [x, y, u], strict=True)]
    mean = oracle.total(lifted)
    unit = mul(1 / mp.sqrt(-c * minkowski(mean, mean)), mean)
    assert close(oracle.einstein_midpoint([x, y, u], weights, c), unit[1:])


def test_frechet_mean_of_two_points_is_on_their_geodesic(x, y, c):
    mean = oracle.frechet_mean([x, y], [mpf(3), mpf(1)], c)
    assert close(mean, oracle.geodesic(mpf(0.25), x, y, c))


def test_frechet_mean_minimises_the_squared_distances(x, y, u, c):
    points, weights = [x, y, mul(mpf(1000), u)], [mpf(1), mpf(0.25), mpf(3)]

    def spread(m):
        return mp.fsum(w * dist(m, p, c) ** 2 for w, p in zip(weights, points, strict=True))

    mean = oracle.frechet_mean(points, weights, c)
    for i in range(len(x)):
        aside = [mpf(0.01) * (i == j) for j in range(len(x))]
        assert spread(mean) < min(spread(add(mean, aside)), spread(sub(mean, aside)))


# --- The harness ------------------------------------------------------------------------------


def test_frame_keeps_inner_products_in_any_dimension():
    x, y, z = torch.randn(3, 1024, dtype=torch.float64)
    frame = Frame([x, y, 2 * x, y - x * 1e-20])
    assert (frame.rank, frame.dim) == (2, 3)
    assert close(dot(frame.place(x), frame.place(y)), exact_dot(x, y))
    squared = exact_dot(x, x) - 2 * exact_dot(x, y) + exact_dot(y, y)
    assert close(frame.distance(y, frame.place(x)), mp.sqrt(squared))
    assert frame.distance(z, frame.place(x)) > 1


def test_exact_dot_of_subnormals():
    tiny = torch.tensor([5e-324, -1e-310], dtype=torch.float64)
    with mp.workdps(1000):
        assert exact_dot(tiny, tiny) == mp.fdot(tiny.tolist(), tiny.tolist())


def test_derivatives_of_the_time():
    x, curv = torch.tensor([3.0, 4.0]), torch.tensor(2.0)
    problem = Problem("time", [x], curv, None, {})
    with mp.workdps(problem.digits):
        x0 = mp.sqrt(mpf(25.5))
        (radial,) = problem.jacobian(0)[-1]
        assert abs(radial - 5 / x0) < 1e-30
        assert abs(problem.jacobian(1)[0][0] + 1 / (8 * x0)) < 1e-30
        across, along = problem.hessian(0, 0)[0][0], problem.hessian(0, 0)[1][1]
        assert abs(across - 1 / x0) < 1e-30
        assert abs(along - mpf(0.5) / x0**3) < 1e-30
        assert abs(problem.hessian(0, 1)[1][0] - 5 / (8 * x0**3)) < 1e-30


@pytest.mark.parametrize("op", ["dist", "exterior_angle", "logmap"])
@pytest.mark.parametrize("a", [1e-6, 1.0, 30.0, 299.0])
@pytest.mark.parametrize("theta", [1e-7, 1.0])
def test_more_digits_change_nothing(op, a, theta, monkeypatch):
    """Values and derivatives are converged: exact, as far as the measure can tell."""
    radius = mp.sinh(a)
    x = torch.tensor([float(radius), 0.0], dtype=torch.float64)
    y = torch.tensor([float(radius), float(radius * theta)], dtype=torch.float64)
    w = torch.tensor([0.6, 0.8], dtype=torch.float64) if op == "logmap" else None

    def derivatives():
        problem = Problem(op, [x, y], torch.tensor(0.7, dtype=torch.float64), w, {})
        with mp.workdps(problem.digits):
            return [
                *(norm(problem.jacobian(j)[i]) for j in (0, 1, 2) for i in (-1,)),
                *(norm(problem.hessian(j, k)[-1]) for j in (0, 1) for k in (0, 1, 2)),
            ]

    usual = derivatives()
    monkeypatch.setattr(condition, "STEP_DIGITS", 2 * condition.STEP_DIGITS)
    for got, better in zip(usual, derivatives(), strict=True):
        assert abs(got - better) <= 1e-15 * abs(better)
