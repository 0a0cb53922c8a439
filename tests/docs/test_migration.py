"""HypLL 0.1.1 and lorentzkit are the same functions, by the table of docs/migration/hypll.md.

(geoopt: tests/manifolds/test_geoopt.py. MERU: tests/compat/test_compat_meru.py. geomstats and
hyperbolix cannot stand beside the pinned versions: benchmarks/other_libraries.py compares them.)
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from hypll.manifolds.poincare_ball import Curvature, PoincareBall
from hypll.tensors import ManifoldTensor, TangentTensor

from lorentzkit import ops

F64 = torch.float64
CURV = pytest.mark.parametrize("curv", [1.0, 0.25, 2.0])


def ball_of(curv):
    """Its curvature in float64: in float32, as it is by default, sqrt(2) has 8 digits."""
    return PoincareBall(Curvature(curv, constraining_strategy=lambda value: value).double())


def sample(curv):
    """Points and vectors at most 12 from the origin, where HypLL stops; and x, y in the ball."""
    x, y, u = torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(0), dtype=F64) / 2
    ball = ball_of(curv)
    p, q = (ManifoldTensor(ops.to_poincare(z, curv), manifold=ball) for z in (x, y))
    return x, y, u, ball, p, q


def pushed(x, u, curv):
    """A tangent vector at x in the ball."""
    return torch.func.jvp(lambda z: ops.to_poincare(z, curv), (x,), (u,))[1]


def agree(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


@CURV
def test_distances(curv):
    x, y, _, ball, p, q = sample(curv)
    agree(ops.dist(x, y, curv), ball.dist(p, q))
    batches = (ManifoldTensor(z.tensor[None], manifold=ball) for z in (p, q))
    agree(ops.pairwise_dist(x, y, curv), ball.cdist(*batches)[0])


@CURV
def test_maps_and_transport(curv):
    x, y, u, ball, p, q = sample(curv)
    v = TangentTensor(pushed(x, u, curv), manifold_points=p)
    agree(ops.expmap(x, u, curv), ops.from_poincare(ball.expmap(v).tensor, curv))
    agree(pushed(x, ops.logmap(x, y, curv), curv), ball.logmap(p, q).tensor)
    agree(pushed(y, ops.transp(x, y, u, curv), curv), ball.transp(v, q).tensor)
    at_origin = ball.expmap(TangentTensor(u, manifold=ball)).tensor
    agree(ops.expmap0(2 * u, curv), ops.from_poincare(at_origin, curv))
    agree(ops.logmap0(x, curv) / 2, ball.logmap(None, p).tensor)
    moved = ops.expmap(x, ops.transp0(x, ops.logmap0(y, curv), curv), curv)
    agree(ops.to_poincare(moved, curv), ball.mobius_add(p, q).tensor)


@CURV
def test_the_metric(curv):
    x, y, u, ball, p, _ = sample(curv)
    v = TangentTensor(pushed(x, u, curv), manifold_points=p)
    agree(ops.tangent_inner(x, u, u, curv), ball.inner(v, v, keepdim=True)[:, 0])
    assert ball.inner(v, v).shape == (50, 50)

    def loss(z):
        return ops.dist(z, y, curv).square().sum()

    g = torch.func.grad(loss)(x)
    g_ball = torch.func.grad(lambda b: loss(ops.from_poincare(b, curv)))(p.tensor)
    theirs = ball.euc_to_tangent(p, ManifoldTensor(g_ball, manifold=ball)).tensor
    agree(pushed(x, ops.egrad2rgrad(x, g, curv), curv), theirs)


@CURV
def test_means(curv):
    x, _, _, ball, p, _ = sample(curv)
    w = torch.rand(50, generator=torch.Generator().manual_seed(1), dtype=F64)
    theirs = ball.midpoint(p, batch_dim=0, w=w[:, None]).tensor
    agree(ops.einstein_midpoint(x, w, curv, dim=0), ops.from_poincare(theirs, curv))
    theirs = ball.frechet_mean(p, batch_dim=0).tensor
    agree(ops.frechet_mean(x, None, curv, dim=0), ops.from_poincare(theirs, curv))


def test_the_curvature_is_what_softplus_makes_of_it():
    curvature = PoincareBall(Curvature(1.0)).c()
    assert curvature.dtype == torch.float32
    torch.testing.assert_close(curvature, torch.tensor(1.3133), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("dtype", "radius"), [(torch.float32, 6.21), (F64, 12.2)])
def test_points_are_projected_back(dtype, radius):
    far = ops.to_poincare(ops.expmap0(torch.tensor([14.0, 0.0], dtype=dtype)))
    back = ball_of(1.0).project(ManifoldTensor(far, manifold=ball_of(1.0))).tensor
    assert ops.dist0(ops.from_poincare(back)).item() == pytest.approx(radius, abs=0.01)


def test_the_script_saves_what_lorentzkit_computes():
    """benchmarks/other_libraries.py: its half that runs here."""
    path = Path(__file__).parents[2] / "benchmarks" / "other_libraries.py"
    spec = importlib.util.spec_from_file_location("other_libraries", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = script.numbers(2.0)
    assert all(np.isfinite(values).all() for values in found.values())
    x = torch.from_numpy(found["x"])
    agree(ops.dist(x, torch.from_numpy(found["y"]), 2.0), torch.from_numpy(found["dist"]))
    agree(ops.drop_time(torch.from_numpy(found["full x"])), x)
