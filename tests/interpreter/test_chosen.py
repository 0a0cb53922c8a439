"""Positives of a loss and winners of a search by the kernels of rows: on a GPU, or interpreted."""

import pytest
import torch
from test_rows import Draw, launched_by_torch, launches, moved, pairs  # noqa: F401

from lorentzkit._geometry import pairs as of_torch
from lorentzkit._geometry.arguments import norm_limit
from lorentzkit.fused import registry
from lorentzkit.fused.problems import SelectedPairs
from lorentzkit.fused.triton import chosen
from lorentzkit.fused.triton import rows as kernels

pytestmark = pytest.mark.usefixtures("uninitialised_memory_is_nan")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS = ("angles", "exterior", "interior", "distance", "inner", "cosine")
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _on_the_device():
    with torch.device(DEVICE):
        yield


def chosen_of(D, farthest=15.0, count=90):
    """Points of all kinds and beyond the largest radius; pairs of them, some of them twice."""
    draw = Draw(D)
    x, y = pairs(draw, 0.7, farthest)
    x[3] *= 1e30 if D > 1 else 1.0  # on a line it would have no gradient but rounding
    near = torch.arange(len(x))
    i = torch.cat([near, torch.randint(len(x), (count - len(x),), generator=draw.generator)])
    return x, y, torch.tensor([0.7]), i, torch.cat([near, i[len(x) :].flip(0)])


def exactly(kind, x, y, c, i, j, at):
    """Value and gradients in float64, and how large the terms are that each is the sum of."""
    limit = norm_limit(c).double()
    leaves = [v.double().requires_grad_() for v in (x[i], y[j], c.expand(len(i)))]
    inside = [moved(v, limit) for v in leaves[:2]]
    of = of_torch.row_values(kind, *inside, leaves[2].unsqueeze(1))
    terms = torch.autograd.grad(of, leaves, at.double(), materialize_grads=True)
    places = (i, x), (j, y), (torch.zeros_like(i), c)
    totals, sizes = [of.detach()], [of.detach().abs()]
    for (index, v), term in zip(places, terms, strict=True):
        totals.append(torch.zeros_like(v, dtype=torch.float64).index_add_(0, index, term))
        length = term.norm(dim=1) if term.dim() > 1 else term.abs()
        sizes.append(torch.zeros(len(v), dtype=torch.float64).index_add_(0, index, length))
    return totals, sizes


@pytest.mark.few(D=17, kind=["angles", "distance"])
@pytest.mark.parametrize(
    ("kind", "D"), [(kind, D) for kind in KINDS for D in (1, 3, 17)] + [("angles", 512)]
)
def test_values_and_gradients(kind, D):
    x, y, c, i, j = chosen_of(D, farthest=1.0 if D == 1 else 15.0)
    if D > 64:
        i, j = i[::15], j[::15]
    at = torch.randn(len(i), 2 if kind == "angles" else 1)
    value = registry.selected(SelectedPairs(x, y, c, i, j, kind))
    got = value, *registry.selected_gradients(SelectedPairs(x, y, c, i, j, kind), at)
    for ours, exact, size in zip(got, *exactly(kind, x, y, c, i, j, at), strict=True):
        assert (ours.dtype, ours.shape) == (torch.float32, exact.shape)
        error = ours.double() - exact
        error = error.abs() if error.shape == size.shape else error.norm(dim=1)
        assert (error <= 2.0**-22 * size + 2.0**-140).all(), (error / size).nan_to_num().max()


@pytest.mark.few(dtype=torch.bfloat16, deterministic=True)
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_pairs_with_a_point_in_common(dtype, deterministic):
    """Of a point in many pairs the sum, the same bits on every run; of one in none, zero."""
    torch.use_deterministic_algorithms(deterministic)
    draw = Draw(17)
    x, y, c = draw.normal(20).to(dtype), draw.normal(30).to(dtype), torch.tensor([0.7])
    i = torch.randint(3, (300,), generator=draw.generator)
    j = torch.randint(30, (300,), generator=draw.generator) // 2 * 2
    at = torch.randn(300, 2, generator=draw.generator)
    found = chosen.selected_gradients("angles", x, y, c, i, j, at)
    terms = kernels.gradients("angles", (x[i], y[j]), c, at, (True, True, False, False)).vectors
    for index, by, term in zip((i, j), found, terms, strict=False):
        none = torch.zeros(by.shape, dtype=torch.float64)
        total = none.index_add(0, index, term.double())
        size = none.index_add(0, index, term.double().abs())
        count = index.bincount(minlength=len(by))[:, None]
        assert by.dtype == dtype
        assert (count == 0).any()
        assert ((by.double() - total).abs() <= count * torch.finfo(dtype).eps * size).all()
    for _ in range(10 if DEVICE == "cuda" else 1):
        again = chosen.selected_gradients("angles", x, y, c, i, j, at)
        assert all(torch.equal(a, b) for a, b in zip(again, found, strict=True))


@every_kind
def test_derivatives_through_the_registry(kind):
    """The first are the kernel's, the second the reference's."""
    x, y, c, i, j = chosen_of(3, farthest=1.0)
    x, y = x[:20].requires_grad_(), y[:20].requires_grad_()
    i, j = torch.arange(20), torch.arange(20)
    of = registry.selected(SelectedPairs(x, y, c, i, j, kind))
    first = torch.autograd.grad(of.sum(), (x, y), create_graph=True)
    expected = registry.selected_gradients(SelectedPairs(x, y, c, i, j, kind), torch.ones_like(of))
    assert all(torch.equal(a, b) for a, b in zip(first, expected[:2], strict=True))
    torch.autograd.grad(first[0].sum(), (x, y))


def test_rows_of_any_strides():
    x, y, c, i, j = chosen_of(8)
    at = torch.ones(()).expand(len(i), 2)
    for turned in (x.mT.contiguous().mT, x.repeat_interleave(2, dim=1)[:, ::2]):
        found, expected = (
            (chosen.selected("angles", v, y, c, i, j),
             *chosen.selected_gradients("angles", v, y, c, i, j, at)) for v in (turned, x)
        )  # fmt: skip
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("change", ["float64", "no pair"])
def test_others_take_the_torch_function(change, launches):  # noqa: F811
    x, y, c, i, j = chosen_of(3)
    if change == "float64":
        x, y, c = x.double(), y.double(), c.double()
    else:
        i, j = i[:0], j[:0]
    at = x.new_ones(len(i), 2)
    of_points = torch.zeros_like(x), torch.zeros_like(y)
    by_c = of_torch.add_selected_gradients("angles", x, y, c, i, j, at, *of_points)
    expected = *of_points, by_c
    found = registry.selected_gradients(SelectedPairs(x, y, c, i, j, "angles"), at)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert registry.selected(SelectedPairs(x, y, c, i, j, "angles")).shape == (len(i), 2)
    assert not launches


@every_kind
def test_launches(kind, launches):  # noqa: F811
    """Besides gathering points and adding up their gradients: a kernel, and the sum for c."""
    torch.use_deterministic_algorithms(False)  # which fills what is allocated
    x, y, c, i, j = chosen_of(3)
    at = torch.ones(len(i), 2 if kind == "angles" else 1)
    _, others = launched_by_torch(lambda: registry.selected(SelectedPairs(x, y, c, i, j, kind)))
    assert (launches, others) == (["rows_kernel"], ["aten::index"] * 2)
    launches.clear()
    _, others = launched_by_torch(
        lambda: registry.selected_gradients(SelectedPairs(x, y, c, i, j, kind), at)
    )
    assert launches == ["rows_vjp_kernel"]
    assert others == [*["aten::new_zeros"] * 2, *["aten::index"] * 2, "aten::sum", "aten::copy_",
                      *["aten::_index_put_impl_"] * 2]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_opcheck():
    x, y, c, i, j = chosen_of(3)
    library, at = torch.ops.lorentzkit, torch.ones(len(i), 2)
    torch.library.opcheck(library.selected.default, (x, y, c, i, j, "angles"))
    torch.library.opcheck(library.selected_gradients.default, (x, y, c, i, j, at, "angles"))
