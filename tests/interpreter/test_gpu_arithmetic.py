"""The kernels keep their bounds with a GPU's arithmetic, which the interpreter imitates."""

import gpu_arithmetic
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from contrastive_calls import OPTIONS, SIMILARITIES
from pairwise_calls import PAIRWISE, points
from test_kernels import clouds, results
from test_rows import launches  # noqa: F401

from lorentzkit import ops
from lorentzkit.losses import contrastive_loss

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU needs no imitation")


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch, _quick_interpreter):
    gpu_arithmetic.imitate(monkeypatch)


@triton.jit
def arithmetic_kernel(x, y, out, N: tl.constexpr):
    i = tl.arange(0, N)
    a, b = tl.load(x + i), tl.load(y + i)
    tl.store(out + i, tl.minimum(a, b))
    tl.store(out + N + i, a / b)
    tl.store(out + 2 * N + i, tl.max(a, 0))


def test_the_imitation_is_as_bad_as_a_gpu():
    x = torch.tensor([torch.nan, 1.0, 1e-40, 3.0])
    out = torch.empty(3, 4)
    arithmetic_kernel[(1,)](x, torch.tensor([2.0, 3.0, 1.0, 7.0]), out, 4)
    assert out[0].tolist() == [2.0, 1.0, float(x[2]), 3.0]  # NaN is dropped
    assert out[1, 2] == 0  # there are no denormal numbers
    assert 0 < (out[1, 3].double() * 7 / 3 - 1).abs() < 2**-22
    assert out[2].tolist() == [3.0] * 4


def test_products_are_cut_off():
    exact = np.array([1 + 2.0**-24 + 2.0**-30, -1 - 2.0**-23 - 2.0**-24, 2.0**-30])
    assert gpu_arithmetic.cut_off(exact).tolist() == [1, -1 - 2.0**-23, 2.0**-30]


@pytest.mark.few(op="exterior_angle")
@pytest.mark.parametrize("op", PAIRWISE)
def test_matrices_and_gradients(op):
    x, y = clouds(60, 50, 130)
    at = torch.randn(60, 50, generator=torch.Generator().manual_seed(0))
    got = results(op, x, y, at, torch.float32, impl="triton")
    terms = {"value": 1, "x": 50, "y": 60, "curv": 60 * 50}  # whose errors are independent
    for name, exact in results(op, x, y, at, torch.float64, impl="reference").items():
        error, size = (got[name] - exact).abs().max(), float(exact.abs().max())
        assert error <= 2.0**-20 * max(size, terms[name] ** 0.5), (name, float(error), size)


def close_pairs():
    """Clusters, in which the product has lost most pairs; doubles, and opposites."""
    centre = points(3, 130, torch.float64)
    x = (centre[torch.arange(60) % 3] * (1 + 1e-3 * points(60, 130, seed=2))).float()
    y = (centre[torch.arange(40) % 3] * (1 + 1e-3 * points(40, 130, seed=3))).float()
    x[0], y[5] = 2 * y[0], -x[7]
    return x, y


@pytest.mark.parametrize("op", ["dist", "exterior_angle"])
def test_close_pairs_are_found_again(op):
    x, y = close_pairs()
    found = PAIRWISE[op](x, y, impl="triton").double()
    exact, apart = (PAIRWISE[name](x.double(), y.double()) for name in (op, "dist"))
    rounding = 2.0**-24 * 3  # of a point: no coordinate is larger, and the product's is 1e-3
    allowed = 16 * rounding * (1 if op == "dist" else 1 + 1 / apart)
    assert ((found - exact).abs() <= allowed).all()


def test_nan_is_kept():
    x, y = points(9, 40, torch.float32), points(8, 40, torch.float32, seed=1)
    x[3, 5] = torch.nan
    for op in ("dist", "exterior_angle"):
        assert PAIRWISE[op](x, y, impl="triton")[3].isnan().all()
    assert contrastive_loss(x[:8], y, impl="triton").isnan()


def test_distances_down_to_the_smallest():
    """Of points at radius 1e-6, the smallest with a promise, as close as float32 has them."""
    x = 1e-6 * torch.nn.functional.normalize(torch.randn(4, 40, dtype=torch.float64), dim=-1)
    x = x.float()
    y = x * (1 + 2.0**-22)
    found = ops.pairwise_dist(x, y, impl="triton").diagonal().double()
    exact = ops.dist(x.double(), y.double())
    assert exact.max() < 1e-12
    assert ((found - exact).abs() < 0.5 * exact).all()


@pytest.mark.few(similarity="angles")
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_losses(similarity):
    x, y = points(70, 130, torch.float32), points(70, 130, torch.float32, seed=1)
    found = []
    for dtype, impl in ((torch.float32, "triton"), (torch.float64, "streaming")):
        leaves = [
            z.to(dtype).requires_grad_() for z in (x, y, torch.tensor(1.0), torch.tensor(20.0))
        ]
        loss = contrastive_loss(*leaves, **OPTIONS[similarity], impl=impl)
        found.append([loss, *torch.autograd.grad(loss, leaves, materialize_grads=True)])
    for got, exact in zip(*found, strict=True):
        assert (got - exact).abs().max() <= 3e-5 * exact.abs().max() + 1e-7
