"""The geoopt manifold: optimisers, densities, adapters. The geometry is `lorentzkit.ops`."""

import math

import geoopt
import pytest
import torch

from lorentzkit import ops
from lorentzkit.manifolds import Lorentz, WrappedNormal, from_geoopt, to_geoopt

F64 = torch.float64


def far_points(n, D, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return ops.expmap0(1.5 * torch.randn(n, D, generator=generator, dtype=F64), 0.7)


@pytest.mark.few(optimizer=geoopt.optim.RiemannianSGD)
@pytest.mark.parametrize(
    ("optimizer", "lr", "steps", "within"),
    [(geoopt.optim.RiemannianSGD, 0.3, 200, 1e-12), (geoopt.optim.RiemannianAdam, 0.05, 800, 1e-2)],
)
def test_optimisers_bring_points_to_their_targets(optimizer, lr, steps, within):
    manifold, targets = Lorentz(0.7), far_points(50, 5)
    x = geoopt.ManifoldParameter(torch.zeros(50, 5, dtype=F64), manifold=manifold)
    optimiser = optimizer([x], lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        (manifold.dist2(x, targets).sum() / 2).backward()
        optimiser.step()
    assert manifold.dist(x, targets).max() < within


def test_the_curvature_is_learnt_and_stays_positive():
    manifold, (x, y) = Lorentz(1.0, learnable=True), far_points(2, 3)
    wanted = ops.dist(x, y, 2.5)
    optimiser = torch.optim.Adam(manifold.parameters(), lr=0.1)
    for _ in range(500):
        optimiser.zero_grad()
        (manifold.dist(x, y) - wanted).square().backward()
        optimiser.step()
    assert float(manifold.curv.detach()) == pytest.approx(2.5, rel=1e-3)


def test_the_riemannian_gradient_is_dual_to_the_differential():
    manifold, (x, u) = Lorentz(0.7), far_points(2, 4)
    g = torch.randn(4, dtype=F64, generator=torch.Generator().manual_seed(1))
    gradient = manifold.egrad2rgrad(x, g)
    torch.testing.assert_close(manifold.inner(x, gradient, u), g @ u, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("radius", [0.0, 1e-3, 1.0, 2.0])
@pytest.mark.parametrize("length", [1e-3, 1.0, 5.0])
def test_moved_and_transported_at_once(radius, length):
    """As RiemannianAdam does: to a few roundings, though the point it goes to is rounded itself."""
    generator = torch.Generator().manual_seed(0)
    a, b, d = torch.randn(3, 200, 5, generator=generator, dtype=F64)
    x = ops.expmap0(radius * torch.nn.functional.normalize(d, dim=-1), 0.7)
    x, u, v = (t.float() for t in (x, ops.transp0(x, length * a, 0.7), ops.transp0(x, b, 0.7)))
    manifold = Lorentz(0.7)
    with torch.no_grad():
        y, moved = manifold.retr_transp(x, u, v)
    assert torch.equal(y, manifold.expmap(x, u))
    exact = x.double(), ops.expmap(x.double(), u.double(), 0.7), v.double()
    expected = ops.transp(*exact, 0.7)
    error = (moved - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert error.max() < 16 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("u", [1e30, 80.0])
def test_where_the_step_is_clamped_so_is_the_transport(u):
    manifold, x = Lorentz(0.7), torch.tensor([[0.3, -2.0]])
    u, v = torch.tensor([[u, 1.0]]), torch.tensor([[0.2, 0.1]])
    with torch.no_grad():
        y, moved = manifold.retr_transp(x, u, v)
    assert torch.equal(y, ops.expmap(x, u, 0.7))
    assert torch.equal(moved, ops.transp(x, y, v, 0.7))


def test_a_step_has_the_derivatives_of_its_ops():
    (x, y), manifold = far_points(2, 3), Lorentz(0.7)
    u, v = ops.logmap(x, y, 0.7).requires_grad_(), far_points(1, 3, seed=1)[0]
    found = torch.autograd.grad(manifold.retr_transp(x, u, v)[1].sum(), u)
    expected = torch.autograd.grad(ops.transp(x, ops.expmap(x, u, 0.7), v, 0.7).sum(), u)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_square_of_a_length_is_the_inner_product_with_itself(dtype):
    x, u = (t.to(dtype).requires_grad_() for t in far_points(2, 4))
    manifold = Lorentz(0.7, learnable=True)
    leaves = [x, u, manifold.curvature.log_curv]
    square, product = manifold.inner(x, u), manifold.inner(x, u, u.view_as(u))
    torch.testing.assert_close(square, product)
    torch.testing.assert_close(
        torch.autograd.grad(square, leaves), torch.autograd.grad(product, leaves)
    )


def plane(curv, std=(0.3, 0.5)):
    """A normal around a point of the plane that is not the origin, and its mass in a grid of
    geodesic polar coordinates around the origin, (radii, angles).
    """
    mean = ops.expmap0(torch.tensor([0.4, -0.2], dtype=F64), curv)
    normal = WrappedNormal(Lorentz(curv), mean, torch.tensor(std, dtype=F64))
    r = (torch.arange(300, dtype=F64) + 0.5) / 50
    angle = (torch.arange(64, dtype=F64) + 0.5) * (2 * math.pi / 64)
    rays = torch.stack([angle.cos(), angle.sin()], -1)
    points = ops.expmap0(r[:, None, None] * rays, curv)
    circumference = 2 * math.pi * (math.sqrt(curv) * r).sinh() / math.sqrt(curv)
    return normal, normal.log_prob(points).exp() * circumference[:, None] / 64 / 50


@pytest.mark.parametrize("curv", [0.5, 2.0])
def test_the_wrapped_normal_integrates_to_one(curv):
    assert float(plane(curv)[1].sum()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("curv", [0.5, 2.0])
def test_samples_are_where_the_density_says(curv):
    """Their share in each of eight cells: quadrants, near the origin and farther than 0.5."""
    torch.manual_seed(0)
    normal, mass = plane(curv)
    expected = torch.stack([m.unflatten(1, (4, 16)).sum((0, 2)) for m in (mass[:25], mass[25:])])
    n = 40_000
    x = normal.sample((n,))
    quadrant = (torch.atan2(x[:, 1], x[:, 0]) % (2 * math.pi)).div(math.pi / 2).long()
    far = (ops.dist0(x, curv) > 0.5).long()
    share = torch.bincount(4 * far + quadrant, minlength=8).reshape(2, 4) / n
    assert ((share - expected).abs() <= 4 * (expected * (1 - expected) / n).sqrt()).all()


def test_samples_on_a_line():
    """The mean of log p over samples is minus the entropy, there that of a normal distribution."""
    torch.manual_seed(0)
    manifold = Lorentz(1.5)
    mean = ops.expmap0(torch.tensor([0.7], dtype=F64), 1.5)
    x = manifold.wrapped_normal(20000, 1, mean=mean, std=0.4)
    # On a line there is no volume change: the distances to the mean are normal.
    assert float(manifold.dist(x, mean).square().mean().sqrt()) == pytest.approx(0.4, rel=0.03)
    entropy = 0.5 * math.log(2 * math.pi * math.e * 0.4**2)
    assert float(-manifold.log_prob(x, mean, 0.4).mean()) == pytest.approx(entropy, abs=0.03)
    assert manifold.random(3, 2).shape == (3, 2)
    assert isinstance(x, geoopt.ManifoldTensor)


@pytest.mark.parametrize("curv", [0.5, 1.0, 3.0])
def test_adapters_agree_on_distances(curv):
    x, y = far_points(2, 3)
    for theirs in (
        geoopt.Lorentz(k=torch.tensor(1 / curv, dtype=F64)),
        geoopt.PoincareBall(c=curv),
    ):
        p, q = to_geoopt(x, theirs), to_geoopt(y, theirs)
        torch.testing.assert_close(theirs.dist(p, q), Lorentz(curv).dist(x, y), rtol=1e-6, atol=0)
        torch.testing.assert_close(from_geoopt(p, theirs), x, rtol=1e-8, atol=1e-8)


def test_only_hyperbolic_manifolds_are_adapted():
    with pytest.raises(TypeError, match=r"manifold: expected geoopt\.Lorentz or .*, got Sphere"):
        to_geoopt(torch.ones(3), geoopt.Sphere())


def test_scaled_and_checks_work():
    manifold, (x, y) = Lorentz(1.0), far_points(2, 3)
    scaled = geoopt.Scaled(manifold, 2.0)
    torch.testing.assert_close(scaled.dist(x, y), 2 * manifold.dist(x, y))
    assert manifold.check_point_on_manifold(x)
    for bad in (math.inf, math.nan):
        assert not manifold.check_point_on_manifold(torch.tensor([bad, 0.0]))
    assert manifold.projx(x) is x
    with pytest.raises(ValueError, match="curv"):
        Lorentz(curv=-1.0)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_points_beyond_the_range_are_not_on_the_manifold(dtype):
    manifold, u = Lorentz(0.7), torch.tensor([1e30, 0.0], dtype=dtype)
    last = ops.expmap0(u, 0.7)  # at max_radius
    assert manifold.check_point_on_manifold(last)
    assert not manifold.check_point_on_manifold(1.01 * last)


def test_an_op_is_a_method_but_for_inner():
    """With geoopt's meaning where it has one, and at the curvature of the manifold."""
    manifold, (x, y) = Lorentz(0.7), far_points(2, 3)
    for op in set(ops.__all__) - {"inner", "max_radius", "drop_time"}:
        assert callable(getattr(manifold, op))
    assert torch.equal(manifold.exterior_angle(x, y), ops.exterior_angle(x, y, 0.7))
    assert torch.equal(manifold.inner(x, y), ops.tangent_inner(x, y, y, 0.7))
    points = torch.stack([x, y])
    assert torch.equal(manifold.frechet_mean(points), ops.frechet_mean(points, curv=0.7))


def test_scaled_inherited_ops():
    """Lengths are scaled, what a scale does not change is not, and what would be wrong raises."""
    manifold, points = Lorentz(0.7), far_points(4, 3)
    scaled = geoopt.Scaled(manifold, 2.0)
    torch.testing.assert_close(scaled.dist0(points), 2 * manifold.dist0(points))
    torch.testing.assert_close(
        scaled.pairwise_dist(points, points), 2 * manifold.pairwise_dist(points, points)
    )
    torch.testing.assert_close(scaled.expmap0(scaled.logmap0(points)), points)
    assert torch.equal(scaled.frechet_mean(points), manifold.frechet_mean(points))
    with pytest.raises(NotImplementedError):
        scaled.pairwise_topk(points, points, k=1)


@pytest.mark.parametrize("learnable", [False, True])
def test_several_curvatures_are_refused(learnable):
    with pytest.raises(ValueError, match=r"curv: expected one number, got shape \(2,\).*for each"):
        Lorentz(torch.tensor([1.0, 2.0]), learnable)
    assert Lorentz(torch.tensor([2.0]), learnable).curv.shape == ()


def test_a_learned_curvature_stays_within_bounds():
    manifold = Lorentz(2.0, learnable=True, bounds=(0.5, 3.0))
    assert float(manifold.curv.detach()) == pytest.approx(2, rel=1e-15)
    for log, bound in ((-9.0, 1.0), (9.0, 6.0)):
        torch.nn.init.constant_(manifold.curvature.log_curv, log)
        assert float(manifold.curv.detach()) == pytest.approx(bound)
    fresh = Lorentz(learnable=True)
    fresh.load_state_dict(manifold.state_dict())
    assert float(fresh.curv.detach()) == pytest.approx(6)


def test_checkpoints_of_0_1_are_loaded():
    """Whose names were `_curv` and `log_curv`, without dimensions and without bounds."""
    value = torch.tensor(3.0, dtype=F64)
    for manifold, old in (
        (Lorentz(), {"_curv": value}),
        (Lorentz(learnable=True), {"log_curv": value.log()}),
    ):
        model = torch.nn.ModuleDict({"manifold": manifold})
        model.load_state_dict({f"manifold.{name}": x for name, x in old.items()})
        assert float(manifold.curv.detach()) == pytest.approx(3, rel=1e-15)
    with pytest.raises(RuntimeError, match=r"log_curv: .*got that of 30.*bounds"):
        Lorentz(learnable=True).load_state_dict({"log_curv": (10 * value).log()})


def test_an_expanded_normal_is_the_same_for_each():
    torch.manual_seed(0)
    normal = WrappedNormal(Lorentz(0.7), far_points(4, 3), 0.5)
    expanded = normal.expand((2, 4))
    assert expanded.batch_shape == (2, 4)
    assert expanded.event_shape == (3,)
    x = expanded.rsample((7,))
    assert x.shape == (7, 2, 4, 3)
    assert torch.equal(expanded.log_prob(x), normal.log_prob(x))
    assert torch.equal(expanded.mean[1], normal.mean)
    independent = torch.distributions.Independent(normal, 1).expand((5,))
    assert independent.log_prob(x[:, 0][:5]).shape == (5,)


def test_the_mean_of_a_normal_is_the_frechet_mean_of_its_samples():
    torch.manual_seed(0)
    mean = far_points(1, 3)[0]
    normal = WrappedNormal(Lorentz(0.7), mean, torch.tensor([0.2, 0.4, 0.6], dtype=F64))
    assert torch.equal(normal.mean, mean)
    n = 20_000
    found = ops.frechet_mean(normal.sample((n,)), curv=0.7)
    assert ops.dist(found, mean, 0.7) < 4 * math.sqrt(0.56 / n)


def test_what_a_normal_does_not_have_says_so():
    normal = WrappedNormal(Lorentz(), torch.zeros(3))
    with pytest.raises(NotImplementedError, match=r"kl_divergence: .*no closed form.*log_prob"):
        torch.distributions.kl_divergence(normal, normal)
    with pytest.raises(NotImplementedError, match=r"variance: .*std"):
        normal.stddev  # noqa: B018


def test_samples_that_do_not_fit_are_not_moved_in_silence(recwarn):
    """As of 2,048 dimensions in float32, whose vectors are 45 long."""
    manifold = Lorentz(1.0)
    for wide, how in ((2048, {"std": 2048**-0.5}), (2048, {"dtype": F64}), (3, {})):
        manifold.random(200, wide, **how)
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"std: 200 of 200 samples lay beyond max_radius.*= 40"):
        manifold.random(200, 2048)
    with pytest.warns(UserWarning, match="of 50 samples"):
        WrappedNormal(Lorentz(4.0), torch.ones(30), 5.0).rsample((50,))


def test_a_learnable_curvature_is_shown_without_a_warning(recwarn):
    assert repr(Lorentz(2.0, learnable=True)).startswith("Lorentz (space components)(curv=2, ")
    assert not recwarn.list
