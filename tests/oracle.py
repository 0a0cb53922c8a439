"""Every op of `lorentzkit.ops` once more, from its textbook definition, in mpmath.

Nothing here is clever, and nothing is shared with the library: points are lifted to the ambient
hyperboloid `<p, p> = -p0^2 + |p|^2 = -1/c`, distances are `acosh(-c <x, y>) / sqrt(c)`, angles are
`acos` of a ratio of inner products. These forms cancel catastrophically; digits pay for it. The
caller sets `mp.workdps` so high that what is left is exact (`condition.py` chooses how high).

Vectors are lists of `mpf`: the space components of a point, or of a tangent vector `u` at `x`,
whose time component is `x.u / x0`. Arguments come in the order of the ops, the curvature `c` last.
"""

from __future__ import annotations

from mpmath import mp, mpf

Vector = list[mpf]

MIN_RADIUS = mpf(0.1)  # the double, as the ops have it

# --- Vectors, and the lift to the ambient space -----------------------------------------------


def add(x: Vector, y: Vector) -> Vector:
    return [a + b for a, b in zip(x, y, strict=True)]


def sub(x: Vector, y: Vector) -> Vector:
    return [a - b for a, b in zip(x, y, strict=True)]


def mul(s: mpf, x: Vector) -> Vector:
    return [s * a for a in x]


def dot(x: Vector, y: Vector) -> mpf:
    return mp.fdot(x, y)


def norm(x: Vector) -> mpf:
    return mp.sqrt(dot(x, x))


def minkowski(p: Vector, q: Vector) -> mpf:
    """The Lorentzian inner product of two ambient vectors, time first."""
    return dot(p[1:], q[1:]) - p[0] * q[0]


def length(u: Vector) -> mpf:
    """The norm of an ambient tangent vector (space-like; noise may make a null one negative)."""
    return mp.sqrt(max(minkowski(u, u), mpf(0)))


def lift_point(x: Vector, c: mpf) -> Vector:
    return [mp.sqrt(1 / c + dot(x, x)), *x]


def lift_tangent(x: Vector, u: Vector, c: mpf) -> Vector:
    return [dot(x, u) / time(x, c), *u]


def origin(x: Vector) -> Vector:
    return [mpf(0)] * len(x)


# --- Points -----------------------------------------------------------------------------------


def time(x: Vector, c: mpf) -> mpf:
    return lift_point(x, c)[0]


def add_time(x: Vector, c: mpf) -> Vector:
    return lift_point(x, c)


def drop_time(p: Vector) -> Vector:
    return p[1:]


def inner(x: Vector, y: Vector, c: mpf) -> mpf:
    return minkowski(lift_point(x, c), lift_point(y, c))


def tangent_inner(x: Vector, u: Vector, v: Vector, c: mpf) -> mpf:
    return minkowski(lift_tangent(x, u, c), lift_tangent(x, v, c))


def tangent_norm(x: Vector, u: Vector, c: mpf) -> mpf:
    return length(lift_tangent(x, u, c))


# --- Distance and angles ----------------------------------------------------------------------


def dist(x: Vector, y: Vector, c: mpf) -> mpf:
    if x == y:
        return mpf(0)
    return mp.acosh(max(-c * inner(x, y, c), mpf(1))) / mp.sqrt(c)


def dist0(x: Vector, c: mpf) -> mpf:
    return dist(origin(x), x, c)


def interior_angle(x: Vector, y: Vector, c: mpf) -> mpf:
    """The Riemannian angle at x between the geodesics to the origin and to y."""
    if x == y or not any(x):
        return (
            mp.pi()
        )  # the conventions: entailment is reflexive, and the origin entails everything
    to_origin = lift_tangent(x, logmap(x, origin(x), c), c)
    to_y = lift_tangent(x, logmap(x, y, c), c)
    cosine = minkowski(to_origin, to_y) / (length(to_origin) * length(to_y))
    return mp.acos(min(max(cosine, mpf(-1)), mpf(1)))


def exterior_angle(x: Vector, y: Vector, c: mpf) -> mpf:
    return mp.pi() - interior_angle(x, y, c)


def half_aperture(x: Vector, c: mpf, min_radius: mpf = MIN_RADIUS) -> mpf:
    s = mp.sqrt(c) * norm(x)
    return mp.pi() / 2 if s <= 2 * min_radius else mp.asin(2 * min_radius / s)


def entailment_residual(
    x: Vector, y: Vector, c: mpf, min_radius: mpf = MIN_RADIUS, aperture_scale: mpf = mp.one
) -> mpf:
    cone = aperture_scale * half_aperture(x, c, min_radius)
    return max(mpf(0), exterior_angle(x, y, c) - cone)


# --- Maps -------------------------------------------------------------------------------------


def expmap(x: Vector, u: Vector, c: mpf) -> Vector:
    """cosh(sqrt(c) |u|) x + sinh(sqrt(c) |u|) / (sqrt(c) |u|) u."""
    n = mp.sqrt(c) * tangent_norm(x, u, c)
    return add(mul(mp.cosh(n), x), mul(mp.sinh(n) / n, u)) if n else list(x)


def logmap(x: Vector, y: Vector, c: mpf) -> Vector:
    """acosh(b) / sqrt(b^2 - 1) (y - b x), with b = -c <x, y>."""
    b = -c * inner(x, y, c)
    if x == y or b <= 1:
        return sub(y, x)
    return mul(mp.acosh(b) / mp.sqrt(b * b - 1), sub(y, mul(b, x)))


def expmap0(u: Vector, c: mpf) -> Vector:
    return expmap(origin(u), u, c)


def logmap0(x: Vector, c: mpf) -> Vector:
    return logmap(origin(x), x, c)


def geodesic(t: mpf, x: Vector, y: Vector, c: mpf) -> Vector:
    return expmap(x, mul(t, logmap(x, y, c)), c)


def transp(x: Vector, y: Vector, u: Vector, c: mpf) -> Vector:
    """u + <y, u> / (1/c - <x, y>) (x + y)."""
    along = minkowski(lift_point(y, c), lift_tangent(x, u, c)) / (1 / c - inner(x, y, c))
    return add(u, mul(along, add(x, y)))


def transp0(y: Vector, u: Vector, c: mpf) -> Vector:
    return transp(origin(y), y, u, c)


def transp0back(x: Vector, u: Vector, c: mpf) -> Vector:
    return transp(x, origin(x), u, c)


def egrad2rgrad(x: Vector, g: Vector, c: mpf) -> Vector:
    """The ambient gradient (0, g), its time flipped, projected: h + c <x, h> x."""
    return add(g, mul(c * minkowski(lift_point(x, c), [mpf(0), *g]), x))


# --- Models -----------------------------------------------------------------------------------


def to_klein(x: Vector, c: mpf) -> Vector:
    return mul(1 / (mp.sqrt(c) * time(x, c)), x)


def from_klein(k: Vector, c: mpf) -> Vector:
    return mul(1 / mp.sqrt(1 - c * dot(k, k)), k)


def to_poincare(x: Vector, c: mpf) -> Vector:
    return mul(1 / (1 + mp.sqrt(c) * time(x, c)), x)


def from_poincare(p: Vector, c: mpf) -> Vector:
    return mul(2 / (1 - c * dot(p, p)), p)


def to_halfspace(x: Vector, c: mpf) -> Vector:
    """The height is the last coordinate; the origin goes to height 1 / sqrt(c)."""
    unit = mul(mp.sqrt(c), lift_point(x, c))
    null = unit[0] - unit[-1]
    return mul(1 / (mp.sqrt(c) * null), [*unit[1:-1], mpf(1)])


def from_halfspace(h: Vector, c: mpf) -> Vector:
    *z, t = mul(mp.sqrt(c), h)
    last = (dot(z, z) + t * t - 1) / (2 * t)
    return mul(1 / mp.sqrt(c), [*mul(1 / t, z), last])


# --- Means ------------------------------------------------------------------------------------


def total(vectors: list[Vector]) -> Vector:
    return [mp.fsum(column) for column in zip(*vectors, strict=True)]


def einstein_midpoint(points: list[Vector], weights: Vector, c: mpf) -> Vector:
    """The mean in the Klein ball with weights w gamma(k)."""
    balls = [to_klein(x, c) for x in points]
    mass = [w / mp.sqrt(1 - c * dot(k, k)) for w, k in zip(weights, balls, strict=True)]
    mean = total([mul(m, k) for m, k in zip(mass, balls, strict=True)])
    return from_klein(mul(1 / mp.fsum(mass), mean), c)


def frechet_mean(
    points: list[Vector], weights: Vector, c: mpf, start: Vector | None = None
) -> Vector:
    """The minimiser of sum w d(x, m)^2: Newton's method on the manifold, to the last digit."""
    m = einstein_midpoint(points, weights, c) if start is None else start
    # Convergence is quadratic: the step after one of half the digits has them all.
    accuracy = mpf(10) ** (-mp.dps // 2)
    for _ in range(500):
        pull = _mean_pull(points, weights, m, c)
        step = _newton_step(points, weights, m, pull, c)
        size, merit = tangent_norm(m, step, c), tangent_norm(m, pull, c)
        if mp.sqrt(c) * size < accuracy:
            return expmap(m, step, c)
        m = _damped(points, weights, m, step, merit, c)
    raise ArithmeticError(f"Newton's method did not converge: the last step was {mp.nstr(size)}")


def _mean_pull(points: list[Vector], weights: Vector, m: Vector, c: mpf) -> Vector:
    """sum w log_m(x): minus half the gradient; zero exactly at the mean."""
    return total([mul(w, logmap(m, x, c)) for w, x in zip(weights, points, strict=True)])


def _damped(points, weights, m: Vector, step: Vector, merit: mpf, c: mpf) -> Vector:
    """The longest of the steps 1, 1/2, 1/4, ... at which the pull is smaller than before."""
    for _ in range(60):
        trial = expmap(m, step, c)
        if tangent_norm(trial, _mean_pull(points, weights, trial, c), c) < merit:
            return trial
        step = mul(mpf(0.5), step)
    raise ArithmeticError("no step of Newton's method decreases the gradient")


def _newton_step(points, weights, m: Vector, pull: Vector, c: mpf) -> Vector:
    """Solve Hess v = pull. The Hessian of d^2 / 2 is 1 along the geodesic, s coth(s) across it."""
    D, m0 = len(m), time(m, c)
    hessian = mp.matrix(D, D)
    for w, x in zip(weights, points, strict=True):
        d = dist(m, x, c)
        s = mp.sqrt(c) * d
        across = s * mp.coth(s) if d else mpf(1)
        n = lift_tangent(m, mul(1 / d if d else mpf(0), logmap(m, x, c)), c)
        dual = [n[i + 1] - m[i] * n[0] / m0 for i in range(D)]  # <n, v> = dual.v, as v0 = m.v / m0
        for i in range(D):
            for j in range(D):
                hessian[i, j] += w * (across * (i == j) + (1 - across) * n[i + 1] * dual[j])
    return list(mp.lu_solve(hessian, mp.matrix(pull)))
