"""`lorentzkit.compat.meru` against what it stands in for.

The signatures are those of the files in SOURCES. The values are the papers' equations, once in
float64 without any clamp (`equations`, the reference) and once with the clamps of those files
(`published`, to show where they go wrong). docs/migration/meru.md cites what is printed by

    pytest tests/compat/test_compat_meru.py -k differs -s
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from lorentzkit.compat import meru

F32, F64 = torch.float32, torch.float64

# Read on GitHub: facebookresearch/meru, meru/lorentz.py at c921552; samgregoost/atmg,
# meru/lorentz.py at dfa6474 (adds pairwise_oxy_angle); HyCoCLIP, hycoclip/lorentz.py as in
# dyoshyy/hycoclip at 70c7a60 (adds oxy_angle_eval). What two of them have, they have alike.
CURV, EPS = ("curv", 1.0), ("eps", 1e-8)
X, Y = ("x", inspect.Parameter.empty), ("y", inspect.Parameter.empty)
SOURCES = {
    "pairwise_inner": ("MERU", [X, Y, CURV]),
    "pairwise_dist": ("MERU", [X, Y, CURV, EPS]),
    "exp_map0": ("MERU", [X, CURV, EPS]),
    "log_map0": ("MERU", [X, CURV, EPS]),
    "half_aperture": ("MERU", [X, CURV, ("min_radius", 0.1), EPS]),
    "oxy_angle": ("MERU", [X, Y, CURV, EPS]),
    "oxy_angle_eval": ("HyCoCLIP", [X, Y, CURV, EPS]),
    "pairwise_oxy_angle": ("ATMG", [X, Y, CURV, EPS]),
}
PAIRWISE = ("pairwise_inner", "pairwise_dist", "oxy_angle_eval", "pairwise_oxy_angle")


def test_the_names_are_those_of_the_three_files() -> None:
    assert set(meru.__all__) == set(SOURCES)


@pytest.mark.parametrize("name", SOURCES)
def test_signatures(name: str) -> None:
    parameters = inspect.signature(getattr(meru, name)).parameters.values()
    assert [(p.name, p.default) for p in parameters] == SOURCES[name][1]
    assert {p.kind for p in parameters} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


# --- the formulas -----------------------------------------------------------------------------


def formulas(clamp: Callable[..., Tensor], eps: float, longest: float) -> SimpleNamespace:
    """The equations of Desai et al. 2023 (1 to 7) and of a triangle; `clamp` may leave as is.

    `eps` is added to denominators, and `longest` is where exp_map0 cuts off.
    """

    def time(x: Tensor, c: float | Tensor) -> Tensor:
        return (1 / c + x.pow(2).sum(-1)).sqrt()

    def pairwise_inner(x: Tensor, y: Tensor, curv: float | Tensor = 1.0) -> Tensor:
        return x @ y.T - time(x, curv)[:, None] @ time(y, curv)[None]

    def pairwise_dist(x: Tensor, y: Tensor, curv: float | Tensor = 1.0) -> Tensor:
        return clamp(-curv * pairwise_inner(x, y, curv), min=1 + eps).acosh() / curv**0.5

    def exp_map0(x: Tensor, curv: float | Tensor = 1.0) -> Tensor:
        length = curv**0.5 * x.norm(dim=-1, keepdim=True)
        return clamp(length, min=eps, max=longest).sinh() / clamp(length, min=eps) * x

    def log_map0(x: Tensor, curv: float | Tensor = 1.0) -> Tensor:
        cosh = (1 + curv * x.pow(2).sum(-1, keepdim=True)).sqrt()
        length = curv**0.5 * x.norm(dim=-1, keepdim=True)
        return clamp(cosh, min=1 + eps).acosh() / clamp(length, min=eps) * x

    def half_aperture(x: Tensor, curv: float | Tensor = 1.0, min_radius: float = 0.1) -> Tensor:
        sine = 2 * min_radius / (curv**0.5 * x.norm(dim=-1) + eps)
        return clamp(sine, min=-1 + eps, max=1 - eps).asin()

    def angle(x0: Tensor, y0: Tensor, length: Tensor, c_xy: Tensor) -> Tensor:
        below = length * clamp(c_xy**2 - 1, min=eps).sqrt() + eps
        return clamp((y0 + x0 * c_xy) / below, min=-1 + eps, max=1 - eps).acos()

    def oxy_angle(x: Tensor, y: Tensor, curv: float | Tensor = 1.0) -> Tensor:
        x0, y0 = time(x, curv), time(y, curv)
        return angle(x0, y0, x.norm(dim=-1), curv * ((x * y).sum(-1) - x0 * y0))

    def pairwise_oxy_angle(x: Tensor, y: Tensor, curv: float | Tensor = 1.0) -> Tensor:
        x0, y0 = time(x, curv)[:, None], time(y, curv)[None]
        length = x.norm(dim=-1, keepdim=True)
        return angle(x0, y0, length, curv * pairwise_inner(x, y, curv))

    def oxy_angle_eval(x: Tensor, y: Tensor, curv: float | Tensor = 1.0) -> Tensor:
        return -pairwise_oxy_angle(x, y, curv).T

    defined = locals()
    return SimpleNamespace(**{name: defined[name] for name in SOURCES})


published = formulas(torch.clamp, eps=1e-8, longest=math.asinh(2**15))
equations = formulas(lambda x, min=None, max=None: x, eps=0.0, longest=math.inf)


def sphere(count: int, dim: int, seed: int = 0) -> Tensor:
    directions = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return torch.nn.functional.normalize(directions, dim=-1)


def call(of: object, name: str, *args: object) -> Tensor:
    return getattr(of, name)(*(args if Y in SOURCES[name][1] else (args[0], *args[2:])))


def sample(name: str, dim: int, curv: float) -> tuple[Tensor, Tensor]:
    """Points (tangent vectors for exp_map0) with radii 0.5 to 5, over sqrt(curv)."""
    radius = torch.linspace(0.5, 5, 8, dtype=F64)[:, None]
    if name != "exp_map0":
        radius = radius.sinh()
    x, y = sphere(16, dim).view(2, 8, dim) * radius / curv**0.5
    return x, y.flip(0)


# --- the same values where the originals are right ------------------------------------------------


@pytest.mark.parametrize("dim", [2, 64, 512])
@pytest.mark.parametrize("curv", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("name", SOURCES)
def test_values_and_gradients_are_those_of_the_equations(name: str, curv: float, dim: int) -> None:
    def value_and_gradients(of: object, dtype: torch.dtype) -> list[Tensor]:
        inputs = [x.to(dtype).requires_grad_() for x in sample(name, dim, curv)]
        c = torch.tensor(curv, dtype=dtype, requires_grad=True)
        value = call(of, name, *inputs, c)
        # The terms of a fixed, uneven sum, so that gradients do not cancel.
        weight = torch.linspace(1, 2, value.numel(), dtype=dtype).view_as(value)
        grads = torch.autograd.grad((weight * value).sum(), [*inputs, c], allow_unused=True)
        return [value, *(g for g in grads if g is not None)]

    exact = value_and_gradients(equations, F64)
    for got, want in zip(value_and_gradients(meru, F64), exact, strict=True):
        # acosh and acos of rounded arguments: the reference itself has lost up to 5 digits of 16.
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9 * want.abs().max().item())
    for got, want in zip(value_and_gradients(meru, F32), exact, strict=True):
        scale = want.abs().max().item()
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("curv", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("name", SOURCES)
def test_the_clamped_formulas_agree_in_their_working_range(name: str, curv: float) -> None:
    x, y = (z.float() for z in sample(name, 64, curv))
    ours, theirs = call(meru, name, x, y, curv), call(published, name, x, y, curv)
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_shapes_tell_rows_from_columns() -> None:
    x, y = torch.randn(3, 4), torch.randn(5, 4)
    for name in PAIRWISE:
        shape = (5, 3) if name == "oxy_angle_eval" else (3, 5)
        assert getattr(meru, name)(x, y).shape == shape == getattr(published, name)(x, y).shape
    for j, i in ((0, 0), (4, 2)):
        angle = meru.oxy_angle(x[i], y[j])
        torch.testing.assert_close(meru.oxy_angle_eval(x, y)[j, i], -angle)
        torch.testing.assert_close(meru.pairwise_oxy_angle(x, y)[i, j], angle)


def test_min_radius_is_the_third_argument_and_eps_is_without_effect() -> None:
    x = sphere(5, 3)
    wide = meru.half_aperture(x, 1.0, 0.3)
    torch.testing.assert_close(wide, equations.half_aperture(x, 1.0, 0.3))
    assert torch.equal(wide, meru.half_aperture(x, 1.0, 0.3, 1e-2))
    assert torch.equal(meru.pairwise_dist(x, x, 1.0, 1e-2), meru.pairwise_dist(x, x))


# --- where the originals are not right ------------------------------------------------------------


def run(f: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, float]:
    """Values, and the share of the points x, the first input, whose gradient is not finite."""
    x = inputs[0].clone().requires_grad_()
    value = f(x, *inputs[1:])
    (grad,) = torch.autograd.grad(value.float().sum(), x)
    return value.detach(), 1 - grad.isfinite().all(-1).float().mean().item()


def report(what: str, theirs: str, ours: str) -> None:
    print(f"| {what} | {theirs} | {ours} |")


def span(value: Tensor) -> str:
    return f"{value.min().item():.3g} to {value.max().item():.3g}"


RADII = (0.5, 1.0, 3.0, 6.0)


def test_differs_at_coincident_points() -> None:
    """-c <x, x> rounds to 1 or below: acosh has no derivative there, and the clamp lets it pass."""
    worst = []
    for radius in RADII:
        x = math.sinh(radius) * sphere(200, 64).float()
        theirs, theirs_bad = run(lambda a, b: published.pairwise_dist(a, b).diagonal(), x, x)
        ours, ours_bad = run(lambda a, b: meru.pairwise_dist(a, b).diagonal(), x, x)
        report(
            f"`pairwise_dist(x, x)`, float32, radius {radius:g}: diagonal; gradients not finite",
            f"{span(theirs)}; {theirs_bad:.0%}",
            f"{span(ours)}; {ours_bad:.0%}",
        )
        assert (ours == 0).all()
        assert ours_bad == 0
        worst.append((theirs.max().item(), theirs_bad))
    assert max(value for value, _ in worst) > 1e-3
    assert max(bad for _, bad in worst) > 0.05

    x = sphere(20, 64)
    theirs, _ = run(lambda a, b: published.pairwise_dist(a, b).diagonal(), x, x)
    report("the same in float64", span(theirs), "0")
    torch.testing.assert_close(theirs, torch.full((20,), math.acosh(1 + 1e-8), dtype=F64))
    assert (meru.pairwise_dist(x, x).diagonal() == 0).all()

    theirs, ours = published.oxy_angle(x.float(), x.float()), meru.oxy_angle(x.float(), x.float())
    report("`oxy_angle(x, x)`, float32, radius 0.9", span(theirs), span(ours))
    assert theirs.min() > 1
    assert (ours == 0).all()


def test_differs_at_collinear_points() -> None:
    """The cosine rounds to +-1 or beyond: acos has no derivative there."""
    x = (torch.linspace(0.3, 6, 2000, dtype=F64).sinh()[:, None] * sphere(2000, 64)).float()
    for factor, exact in ((2.0, 0.0), (0.125, math.pi)):
        theirs, theirs_bad = run(published.oxy_angle, x, factor * x)
        ours, ours_bad = run(meru.oxy_angle, x, factor * x)
        error = (theirs - exact).abs().max().item()
        report(
            f"`oxy_angle(x, {factor:g} x)`, float32, radii 0.3 to 6: error; gradients not finite",
            f"up to {error:.2g}; {theirs_bad:.1%}",
            f"{(ours - exact).abs().max().item():.2g}; {ours_bad:.0%}",
        )
        assert error > 1e-3
        assert theirs_bad > 0
        assert (ours == torch.tensor(exact, dtype=F32)).all()
        assert ours_bad == 0


def test_differs_under_fp16_autocast() -> None:
    """x_0 y_0 overflows float16 from radius 6.3 on, and 1 + eps is 1, 0 + eps is 0 in it."""
    encoder = torch.nn.Linear(32, 64)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(encoder.weight, std=0.1, generator=generator)
    batch = torch.randn(2, 16, 32, generator=generator)
    length = encoder(batch).norm(dim=-1).mean().item()

    def through(of: SimpleNamespace | object, scale: float, angle: bool) -> tuple[Tensor, bool]:
        with torch.autocast("cpu", dtype=torch.float16):
            x, y = (of.exp_map0(scale * encoder(part)) for part in batch)
            value = of.pairwise_oxy_angle(x, y) if angle else of.pairwise_dist(x, y)
        (grad,) = torch.autograd.grad(value.float().sum(), encoder.weight)
        return value, bool(grad.isfinite().all())

    for name, angle in (("pairwise_dist", False), ("pairwise_oxy_angle", True)):
        for scale in (0.1, 1.0, 2.0):
            theirs, theirs_fine = through(published, scale, angle)
            ours, ours_fine = through(meru, scale, angle)
            report(
                f"`{name}` of float16 features of mean length {scale * length:.2g}: finite values; "
                f"finite gradient",
                f"{theirs.isfinite().float().mean():.0%}; {'yes' if theirs_fine else 'no'}",
                f"{ours.isfinite().float().mean():.0%}; {'yes' if ours_fine else 'no'}",
            )
            assert ours.dtype == F32
            assert ours.isfinite().all()
            assert ours_fine
        assert not theirs_fine  # at the largest scale


def test_differs_close_to_the_origin() -> None:
    x = 1e-4 * sphere(200, 64).float()
    theirs, theirs_bad = run(published.log_map0, x)
    ours, ours_bad = run(meru.log_map0, x)
    report(
        "`log_map0` of points 1e-4 from the origin, float32: length; gradients not finite",
        f"{theirs.norm(dim=-1).mean():.3g}; {theirs_bad:.0%}",
        f"{ours.norm(dim=-1).mean():.3g}; {ours_bad:.0%}",
    )
    assert theirs_bad > 0.9
    assert ours_bad == 0
    torch.testing.assert_close(ours, x)

    x = 0.2 * sphere(2000, 64).float()
    theirs, theirs_bad = run(published.half_aperture, x)
    ours, ours_bad = run(meru.half_aperture, x)
    report(
        "`half_aperture` where the norm of x is 2 min_radius, float32: gradients not finite",
        f"{theirs_bad:.0%}",
        f"{ours_bad:.0%}",
    )
    assert theirs_bad > 0
    assert ours_bad == 0

    zero, y = torch.zeros(1, 3), torch.ones(1, 3)
    theirs, ours = published.oxy_angle(zero, y), meru.oxy_angle(zero, y)
    report("`oxy_angle` at the origin", f"{theirs.item():.3g}", f"{ours.item():.3g}")
    assert ours == 0


def test_differs_far_out() -> None:
    u = torch.tensor([[20.0, 0.0]], dtype=F64)
    theirs, ours = meru.log_map0(published.exp_map0(u)), meru.log_map0(meru.exp_map0(u))
    report("radius of `exp_map0(u)`, u of length 20", f"{theirs.norm():.4g}", f"{ours.norm():.4g}")
    torch.testing.assert_close(theirs.norm().item(), math.asinh(2**15))
    torch.testing.assert_close(ours, u)


# --- one import line --------------------------------------------------------------------------


def training_step(L: object, image: Tensor, text: Tensor, curv: Tensor) -> Tensor:
    """MERU's objective (Desai et al. 2023, sec. 3): contrast of distances, and entailment."""
    x, y = L.exp_map0(image, curv.exp()), L.exp_map0(text, curv.exp())
    targets = torch.arange(len(x))
    contrast = sum(
        torch.nn.functional.cross_entropy(-L.pairwise_dist(a, b, curv.exp()) / 0.07, targets) / 2
        for a, b in ((x, y), (y, x))
    )
    outside = L.oxy_angle(y, x, curv.exp()) - L.half_aperture(y, curv.exp())
    return contrast + 0.2 * outside.clamp(min=0).mean()


def test_a_training_step_is_the_same_and_survives_a_pair_that_coincides() -> None:
    image, text = sphere(16, 64).float().view(2, 8, 64)
    curv = torch.tensor(0.0, requires_grad=True)

    def step(L: object, image: Tensor, text: Tensor) -> list[Tensor]:
        inputs = [image.clone().requires_grad_(), text.clone().requires_grad_(), curv]
        loss = training_step(L, *inputs)
        return [loss, *torch.autograd.grad(loss, inputs)]

    for ours, theirs in zip(step(meru, image, text), step(published, image, text), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    # An encoder that has collapsed: every text where its image is.
    assert not all(part.isfinite().all() for part in step(published, image, image))
    assert all(part.isfinite().all() for part in step(meru, image, image))
