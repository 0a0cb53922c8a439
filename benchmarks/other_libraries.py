"""geomstats and hyperbolix against lorentzkit: what docs/migration/ says of them, checked.

Neither can stand beside the versions in constraints.txt: geomstats 2.8.0 imports `numpy.trapz`,
which numpy 2.4 no longer has, and hyperbolix 1.4.0 needs Python 3.12 and brings JAX. So the numbers
travel in a file, from an environment with lorentzkit to one with the other library:

    python benchmarks/other_libraries.py save numbers.npz
    python benchmarks/other_libraries.py geomstats numbers.npz
    python benchmarks/other_libraries.py hyperbolix numbers.npz

The last two print the largest difference of every function, in float64, and fail if one is not the
same function. (The tests check HypLL and geoopt.)
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

CURVATURES = (1.0, 0.25, 2.0)
# Tells equal functions from different ones: the libraries' own errors are at most 7e-8 (geomstats'
# mean).
TOLERANCE = 1e-6
Numbers = dict[str, np.ndarray]


def numbers(curv: float) -> Numbers:
    """Points and vectors in the coordinates of every model, and lorentzkit's results for them."""
    import torch

    from lorentzkit import ops
    from lorentzkit.manifolds import Lorentz

    generator = torch.Generator().manual_seed(0)
    x, y, u = torch.randn(3, 50, 4, generator=generator, dtype=torch.float64)
    w = torch.rand(50, generator=generator, dtype=torch.float64)

    def pushed(model: Callable[..., torch.Tensor], point: torch.Tensor, v: torch.Tensor) -> Any:
        """A tangent vector in another model's coordinates: the derivative of the map along it."""
        return torch.func.jvp(lambda z: model(z, curv), (point,), (v,))[1]

    tensors = {"x": x, "y": y, "u": u, "w": w}
    models = {"full": ops.add_time, "ball": ops.to_poincare, "half": ops.to_halfspace}
    at_x = {"u": u, "log": ops.logmap(x, y, curv), "rgrad": ops.egrad2rgrad(x, u, curv)}
    points = {"exp": ops.expmap(x, u, curv), "exp0": ops.expmap0(u, curv)}
    points |= {"geodesic": ops.geodesic(0.3, x, y, curv)}
    points |= {"midpoint": ops.einstein_midpoint(x, w, curv)}
    points |= {"mean": ops.frechet_mean(x, curv=curv)}
    at_origin = ops.logmap0(y, curv)
    points |= {"sum": ops.expmap(x, ops.transp0(x, at_origin, curv), curv)}
    points |= {"multiple": ops.expmap0(0.3 * at_origin, curv)}
    for name, model in models.items():
        tensors |= {
            f"{name} {key}": model(z, curv) for key, z in ({"x": x, "y": y} | points).items()
        }
        tensors |= {f"{name} {key}": pushed(model, x, v) for key, v in at_x.items()}
        tensors[f"{name} transp"] = pushed(model, y, ops.transp(x, y, u, curv))
        tensors[f"{name} transp0"] = pushed(model, y, ops.transp0(y, u, curv))
    tensors |= {f"space {key}": z for key, z in (points | at_x).items()}
    tensors["space transp"], tensors["space transp0"] = (
        ops.transp(x, y, u, curv),
        ops.transp0(y, u, curv),
    )
    tensors["log0"], tensors["dist0"] = ops.logmap0(x, curv), ops.dist0(x, curv)
    tensors["dist"], tensors["pairs"] = ops.dist(x, y, curv), ops.pairwise_dist(x, y, curv)
    tensors["inner"], tensors["norm"] = (
        ops.tangent_inner(x, u, u, curv),
        ops.tangent_norm(x, u, curv),
    )
    tensors["form"], tensors["density"] = ops.inner(x, y, curv), Lorentz(curv).log_prob(x, y, 0.7)
    return {name: value.numpy() for name, value in tensors.items()}


Checks = Iterator[tuple[str, Any, np.ndarray]]


def geomstats(n: Numbers, curv: float) -> Checks:
    """Curvature -1 only; the hyperboloid with the time first, the ball, the half-space."""
    if curv != 1:
        return
    from geomstats.geometry.hyperboloid import Hyperboloid
    from geomstats.geometry.poincare_ball import PoincareBall
    from geomstats.geometry.poincare_half_space import PoincareHalfSpace
    from geomstats.learning.frechet_mean import FrechetMean

    dim = n["x"].shape[-1]
    spaces = {"full": Hyperboloid(dim), "ball": PoincareBall(dim), "half": PoincareHalfSpace(dim)}
    for model, space in spaces.items():
        x, y, u = (n[f"{model} {name}"] for name in "xyu")
        metric, name = space.metric, type(space).__name__
        yield f"{name}: dist(x, y)", metric.dist(x, y), n["dist"]
        yield f"{name}: exp(u, x)", metric.exp(u, x), n[f"{model} exp"]
        yield f"{name}: log(y, x)", metric.log(y, x), n[f"{model} log"]
        yield f"{name}: inner_product(u, u, x)", metric.inner_product(u, u, x), n["inner"]
        yield f"{name}: norm(u, x)", metric.norm(u, x), n["norm"]
        geodesic = np.stack([metric.geodesic(a, b)(0.3)[0] for a, b in zip(x, y, strict=True)])
        yield f"{name}: geodesic(x, y)(t)", geodesic, n[f"{model} geodesic"]
    space, (x, y, u) = spaces["full"], (n[f"full {name}"] for name in "xyu")
    yield "intrinsic_to_extrinsic_coords", space.intrinsic_to_extrinsic_coords(n["x"]), x
    yield "extrinsic_to_intrinsic_coords", space.extrinsic_to_intrinsic_coords(x), n["x"]
    form = space.embedding_space.metric.inner_product(x, y)
    yield "embedding_space: inner_product(x, y)", form, n["form"]
    yield "to_coordinates(x, 'ball')", space.to_coordinates(x, "ball"), n["ball x"]
    yield "to_coordinates(x, 'half-space')", space.to_coordinates(x, "half-space"), n["half x"]
    yield "to_tangent_coordinates", space.to_tangent_coordinates(u, x, "ball"), n["ball u"]
    transported = space.metric.parallel_transport(u, x, end_point=y)
    yield "parallel_transport(u, x, end_point=y)", transported, n["full transp"]
    yield "dist_broadcast(x, y)", space.metric.dist_broadcast(x, y[:-1]), n["pairs"][:, :-1]
    mean = FrechetMean(space)
    mean.optimizer.epsilon, mean.optimizer.max_iter = 1e-14, 200
    yield "FrechetMean, epsilon 1e-14", mean.fit(x).estimate_, n["full mean"]


def hyperbolix(n: Numbers, curv: float) -> Checks:
    """The hyperboloid with the time first, the ball, the half-space; space components as PV."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    from hyperbolix.decomposition.frechet import frechet_mean
    from hyperbolix.distributions import wrapped_normal_hyperboloid as normal
    from hyperbolix.manifolds import HalfSpace, Hyperboloid, Poincare, ProperVelocity
    from hyperbolix.manifolds import isometry_mappings as maps
    from hyperbolix.nn_layers.hyperboloid_core import lorentz_midpoint

    n = n | {"space x": n["x"], "space y": n["y"]}

    def batched(function: Any, *args: np.ndarray) -> Any:
        return jax.vmap(lambda *a: function(*a, curv))(*(jnp.asarray(a) for a in args))

    models = {"full": Hyperboloid, "ball": Poincare, "half": HalfSpace, "space": ProperVelocity}
    for model, kind in models.items():
        x, y, u = (n[f"{model} {name}"] for name in "xyu")
        m, name = kind(dtype=jnp.float64), kind.__name__
        yield f"{name}: dist(x, y)", batched(m.dist, x, y), n["dist"]
        yield f"{name}: dist_0(x)", batched(m.dist_0, x), n["dist0"]
        yield f"{name}: expmap(u, x)", batched(m.expmap, u, x), n[f"{model} exp"]
        yield f"{name}: logmap(y, x)", batched(m.logmap, y, x), n[f"{model} log"]
        yield f"{name}: ptransp(u, x, y)", batched(m.ptransp, u, x, y), n[f"{model} transp"]
        yield f"{name}: tangent_inner(u, u, x)", batched(m.tangent_inner, u, u, x), n["inner"]
        yield f"{name}: tangent_norm(u, x)", batched(m.tangent_norm, u, x), n["norm"]
        yield f"{name}: addition(x, y)", batched(m.addition, x, y), n[f"{model} sum"]
        multiple = batched(lambda z, c, m=m: m.scalar_mul(0.3, z, c), y)
        yield f"{name}: scalar_mul(r, y)", multiple, n[f"{model} multiple"]
    m, space = Hyperboloid(dtype=jnp.float64), ProperVelocity(dtype=jnp.float64)
    flat = np.concatenate([np.zeros_like(n["u"][:, :1]), n["u"]], -1)
    yield "Hyperboloid: expmap_0(u)", batched(m.expmap_0, flat), n["full exp0"]
    yield "Hyperboloid: logmap_0(x)", batched(m.logmap_0, n["full x"])[:, 1:], n["log0"]
    yield "Hyperboloid: ptransp_0(u, y)", batched(m.ptransp_0, flat, n["full y"]), n["full transp0"]
    gradient = batched(m.egrad2rgrad, flat, n["full x"])
    yield "Hyperboloid: egrad2rgrad(g, x)", gradient, n["full rgrad"]
    gradient = batched(space.egrad2rgrad, n["u"], n["x"])
    yield "ProperVelocity: egrad2rgrad(g, x)", gradient, n["space rgrad"]
    yield "ProperVelocity: expmap_0(u)", batched(space.expmap_0, n["u"]), n["space exp0"]
    yield "ProperVelocity: logmap_0(x)", batched(space.logmap_0, n["x"]), n["log0"]
    x, y = jnp.asarray(n["full x"]), jnp.asarray(n["full y"])
    yield "minkowski_inner(x, y)", jax.vmap(m.minkowski_inner)(x, y), n["form"]
    yield "hyperboloid_to_poincare", batched(maps.hyperboloid_to_poincare, x), n["ball x"]
    yield "poincare_to_hyperboloid", batched(maps.poincare_to_hyperboloid, n["ball x"]), x
    yield "wrapped_normal: log_prob", normal.log_prob(x, y, 0.7, curv, m), n["density"]
    yield "lorentz_midpoint(x, w)", lorentz_midpoint(x, n["w"][None], curv)[0], n["full midpoint"]
    yield "frechet_mean", frechet_mean(x, m, curv, tol=1e-13), n["full mean"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=["save", "geomstats", "hyperbolix"])
    parser.add_argument("file", help="the numbers, .npz")
    args = parser.parse_args()
    if args.command == "save":
        arrays = {f"{c} {k}": v for c in CURVATURES for k, v in numbers(c).items()}
        np.savez(args.file, **arrays)
        return
    stored = np.load(args.file)
    checks = {"geomstats": geomstats, "hyperbolix": hyperbolix}[args.command]
    for curv in CURVATURES:
        inputs = {k.partition(" ")[2]: stored[k] for k in stored if k.startswith(f"{curv} ")}
        for name, theirs, ours in checks(inputs, curv):
            difference = np.abs(np.asarray(theirs) - ours).max()
            print(f"{difference:8.1e}  {curv:5g}  {name}")
            assert difference < TOLERANCE, f"{name}, curvature -{curv:g}"


if __name__ == "__main__":
    main()
