"""Backends answer the same problems alike, and problems survive the way through flat lists."""

from dataclasses import fields, replace

import pytest
import torch
from contrastive_calls import SIMILARITIES
from pairwise_calls import points
from torch.utils._python_dispatch import TorchDispatchMode

from lorentzkit.fused import reference, registry, selected_pairs, streaming
from lorentzkit.fused.problems import (
    LogSums,
    LossProblem,
    LossTerms,
    PairwiseProblem,
    Search,
    SelectedPairs,
    built,
    flat,
    layout,
)

KINDS = ["inner", "distance", "exterior"]


def pairwise(kind):
    c = torch.tensor([0.7], dtype=torch.float64)
    return PairwiseProblem(points(5, 20), points(7, 20, seed=1), c, kind, "highest")


def loss(similarity):
    """The first y is positive for two x, the last for none."""
    problem = pairwise(similarity)
    ids = torch.tensor([0, 1, 2, 3, 0], dtype=torch.int32), torch.arange(7, dtype=torch.int32)
    i, j = torch.arange(5), torch.tensor([0, 1, 2, 3, 0])
    scale = torch.tensor(5.0, dtype=torch.float64)
    return LossProblem(problem.x, problem.y, problem.c, scale, *ids, i, j, similarity, "highest")


def close(got, expected):
    torch.testing.assert_close(tuple(got), tuple(expected), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_and_their_gradients(kind):
    single = pairwise(kind)
    x, y = (torch.stack([z, z.flip(0)]) for z in (single.x, single.y))
    problem = replace(single, x=x, y=y, c=torch.stack([single.c, 2 * single.c]))
    close(streaming.matrix(problem), reference.matrix(problem))
    generator = torch.Generator().manual_seed(0)
    grad_output = torch.randn(2, 5, 7, dtype=torch.float64, generator=generator)
    close(
        streaming.matrix_gradients(problem, grad_output),
        reference.matrix_gradients(problem, grad_output),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("apex", ["x", "y"])
def test_searches(kind, largest, apex):
    problem, search = pairwise(kind), Search(3, largest, apex, chunk=2)
    assert torch.equal(streaming.topk(problem, search), reference.topk(problem, search))


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_log_sums_and_their_gradients(similarity):
    problem = loss(similarity)
    sums = streaming.log_sums(problem)
    close(sums, reference.log_sums(problem))
    grad_output = LogSums(torch.linspace(0.5, 1.5, 5).double(), torch.linspace(-1, 1, 7).double())
    got, expected = (
        backend.log_sums_gradients(problem, sums, grad_output) for backend in (streaming, reference)
    )
    close(got, expected)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_gradients_of_a_loss_with_its_positives(similarity):
    """Of a y with two positives, both are added to what its negatives gave."""
    problem = loss(similarity)
    impl = registry.choose("streaming", problem.x, "highest")
    terms = registry.loss_terms(problem, impl)
    grad_output = LossTerms(
        *(torch.linspace(0.5, 1.5, t.numel()).double().view_as(t) for t in terms)
    )
    got = registry.loss_terms_gradients(problem, terms.sums, grad_output, impl)
    close(got, reference.loss_terms_gradients(problem, grad_output))


class Largest(TorchDispatchMode):
    """The most elements of any tensor made, in no other's place."""

    def __init__(self, *inputs):
        super().__init__()
        self.numel, self.inputs = 0, {t.data_ptr() for t in inputs}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, torch.Tensor) and t.data_ptr() not in self.inputs:
                self.numel = max(self.numel, t.numel())
        return out


def test_positives_gradients_are_added_without_memory_of_their_own():
    x, y = points(2000, 512, torch.float32), points(2000, 512, torch.float32, seed=1)
    each = torch.arange(2000)
    problem = SelectedPairs(x, y, torch.ones(1), each, each, "angles")
    by_x, by_y = torch.zeros_like(x), torch.zeros_like(y)
    with Largest(x, y, by_x, by_y) as largest:
        selected_pairs.add_gradients(problem, torch.ones(2000, 2), by_x, by_y)
    assert by_x.any(1).all()
    assert 0 < largest.numel <= x.numel() / 3


def test_problems_are_built_again_from_flat_lists():
    problem = replace(loss("angles"), prepared=streaming.prepare(pairwise("angles")))
    leaves = flat(problem, Search(3, True, "y", chunk=0), "streaming")
    kinds = {"problem": LossProblem, "search": Search, "impl": str}
    names = [name for name, _ in layout(kinds)]
    assert len(names) == len(set(names)) == len(leaves)
    assert names[:2] == ["problem_x", "problem_y"]
    assert leaves[-7:] == ["angles", "highest", 3, True, "y", 0, "streaming"]
    again, search, impl = built(kinds.values(), leaves)
    assert (search, impl) == (Search(3, True, "y", 0), "streaming")
    assert all(getattr(again, f.name) is getattr(problem, f.name) for f in fields(problem)[:-1])
    assert all(a is b for a, b in zip(again.prepared, problem.prepared, strict=True))
