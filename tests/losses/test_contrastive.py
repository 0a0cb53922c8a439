"""The contrastive loss: its naive expression, in float64, is the truth."""

import json
import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import get_args

import mpmath
import numpy as np
import oracle
import pytest
import torch
from contrastive_calls import NAMES, OPTIONS, SIMILARITIES, compare, leaves, logits
from pairwise_calls import Largest, points

from lorentzkit._geometry import compilation, pairs, smooth, triangle
from lorentzkit._geometry.invariants import products
from lorentzkit.fused import operands, selected_pairs, streaming
from lorentzkit.fused.pointwise import SIGNS
from lorentzkit.fused.problems import LossProblem, PairwiseProblem, SelectedPairs
from lorentzkit.losses import contrastive_loss
from lorentzkit.losses.contrastive import Similarity

every_similarity = pytest.mark.parametrize("similarity", SIMILARITIES)
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "run.py"


@every_similarity
@pytest.mark.parametrize("N", [1, 2, 7, 60])
@pytest.mark.parametrize("D", [2, 40])
@pytest.mark.parametrize("impl", ["streaming", "reference"])
def test_loss_and_gradients(similarity, N, D, impl):
    x, y = points(N, D), points(N, D, seed=1)
    compare(x, y, similarity, torch.eye(N, dtype=torch.bool), None, impl=impl)


def test_every_place_knows_every_similarity():
    """And none takes an unknown one for another: it would be a wrong loss, in silence."""
    assert [*SIGNS] == SIMILARITIES
    assert {how["similarity"] for how in OPTIONS.values()} == {*get_args(Similarity)}
    x, y, c = torch.rand(3, 2), torch.rand(3, 2), torch.ones(1)
    h, g = torch.tensor(0.5), torch.tensor(1.5)
    side = triangle.radial(torch.tensor(1.0), torch.tensor(1.0))
    tri = triangle.exact_triangle(h, torch.tensor(0.0), side, side, wide=False)
    p, m, _ = products(x, y)
    held = operands.operands(x, y, c, "highest")
    for place in (
        lambda kind: triangle.values(kind, h, g, tri, side, side, c),
        lambda kind: triangle.vjp(kind, h, g, tri, side, side, c, (h, h)),
        lambda kind: smooth.values(kind, p, m, c),
        held.value_range,
    ):
        for similarity in SIMILARITIES:
            place(similarity)
        with pytest.raises(NotImplementedError, match="'chordal'"):
            place("chordal")


@pytest.mark.parametrize("similarity", ["angles", "exterior", "distance"])
@pytest.mark.parametrize("impl", ["streaming", "reference"])
def test_a_positive_pair_at_the_origin(similarity, impl):
    """It coincides: its angles are 0, as those of other coinciding points."""
    x, y = points(5, 20), points(5, 20, seed=1)
    x[1], y[1] = 0, 0
    compare(x, y, similarity, torch.eye(5, dtype=torch.bool), None, impl=impl)


@every_similarity
@pytest.mark.parametrize("D", [20, 260])
def test_many_blocks(monkeypatch, similarity, D):
    """Products of long vectors are kept for the backward pass, others are made anew."""
    monkeypatch.setattr(streaming, "ROWS", 16)
    monkeypatch.setattr(streaming, "COLUMNS", 23)
    folded = []
    fold = streaming.fold
    monkeypatch.setattr(streaming, "fold", lambda *args: folded.append(args[1]) or fold(*args))
    x, y = points(61, D), points(61, D, seed=1)
    compare(x, y, similarity, torch.eye(61, dtype=torch.bool), None)
    assert len(folded) == (4 if D == 260 else 2 * 4 * 3)


@every_similarity
def test_an_offset_is_a_shard_of_the_rows(similarity):
    x, y = points(5, 20), points(12, 20, seed=1)
    positive = torch.zeros(5, 12, dtype=torch.bool)
    positive[torch.arange(5), torch.arange(5) + 4] = True
    compare(x, y, similarity, positive, 4)


@every_similarity
@pytest.mark.parametrize("impl", ["streaming", "reference"])
def test_labels_with_several_positives_and_with_none(similarity, impl):
    x, y = points(9, 20), points(11, 20, seed=1)
    of_x = torch.tensor([3, 3, -7, 5, 10**12, 3, 8, 8, 5])
    of_y = torch.tensor([5, 3, 3, 9, 9, 8, -7, 3, 5, 5, 1])
    compare(x, y, similarity, of_x[:, None] == of_y, (of_x, of_y), impl=impl)


@every_similarity
def test_one_tensor_of_labels(similarity):
    x, y = points(6, 3), points(6, 3, seed=1)
    labels = torch.tensor([0, 1, 0, 2, 1, 1])
    compare(x, y, similarity, labels[:, None] == labels, labels)


@every_similarity
@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_float32_at_the_limits_of_the_scale(similarity, scale):
    x, y = points(40, 64, torch.float32), points(40, 64, torch.float32, seed=1)
    y[3] = x[5]  # a duplicate across the batch
    positive = torch.eye(40, dtype=torch.bool)
    compare(x, y, similarity, positive, None, scale=scale, rtol=2e-5, atol=1e-6 * max(scale, 1))


@every_similarity
def test_logits_far_apart_keep_small_losses(similarity):
    """A loss of 1e-20 is not rounded to 0: others and positives are not subtracted."""
    x = 2 * torch.eye(4, 20, dtype=torch.float64)
    inputs = leaves(x, 1.1 * x, scale=60.0)
    loss = contrastive_loss(*inputs, **OPTIONS[similarity])
    row, column = logits(*inputs, similarity)
    expected = sum(
        torch.log1p(torch.exp(line - line[i, i])[i, torch.arange(4) != i].sum())
        for line in (row, column.T)
        for i in range(4)
    )
    assert loss > 0
    torch.testing.assert_close(loss, expected / 8, rtol=1e-10, atol=0)


@pytest.mark.parametrize("apex", ["x", "query"])
def test_the_known_value_of_a_small_case(apex, device):
    """By mpmath, from the oracle's textbook definitions."""
    x, y, c, s = [[0.3, 0.1], [-0.2, 0.5]], [[0.9, 0.2], [-0.1, 1.5]], 0.7, 3.0
    with mpmath.workdps(50):
        points_x, points_y = ([[mpmath.mpf(v) for v in p] for p in z] for z in (x, y))
        total = mpmath.mpf(0)
        for i in range(2):
            row = [-s * oracle.exterior_angle(points_x[i], q, mpmath.mpf(c)) for q in points_y]
            column = [-s * oracle.exterior_angle(p, points_y[i], mpmath.mpf(c)) for p in points_x]
            if apex == "query":
                q = points_y[i]
                column = [s * oracle.exterior_angle(q, p, mpmath.mpf(c)) for p in points_x]
            for line in (row, column):
                total += mpmath.log(sum(mpmath.exp(v - line[i]) for v in line))
    tensors = (torch.tensor(z, dtype=torch.float64, device=device) for z in (x, y))
    loss = contrastive_loss(*tensors, c, s, apex=apex)
    assert loss.item() == pytest.approx(float(total / 4), rel=1e-14)


@every_similarity
def test_reductions(similarity):
    x, y = points(6, 20), points(6, 20, seed=1)
    rows, columns = contrastive_loss(x, y, 0.7, 5.0, **OPTIONS[similarity], reduction="none")
    total = contrastive_loss(x, y, 0.7, 5.0, **OPTIONS[similarity], reduction="sum")
    mean = contrastive_loss(x, y, 0.7, 5.0, **OPTIONS[similarity])
    assert rows.shape == columns.shape == (6,)
    torch.testing.assert_close((rows.sum() + columns.sum()) / 2, total)
    torch.testing.assert_close(total / 6, mean)


@every_similarity
@pytest.mark.parametrize("radius", [1e-6, 1.0, 8.0, 39.0])
def test_float32_gradients_are_finite_and_near_float64s(similarity, radius):
    """At every radius, with coinciding and opposite points and the origin in the batch."""
    x = points(30, 20, torch.float32)
    y = points(30, 20, torch.float32, seed=1)
    for z in (x, y):
        z.mul_(torch.sinh(torch.tensor(radius)) / z.norm(dim=1, keepdim=True))
    x[0], y[1], x[2], y[3] = 0, 0, y[2], -x[3]
    wide = leaves(x, y, curv=1.0)
    narrow = [t.detach().float().requires_grad_() for t in wide]
    expected, got = (
        torch.autograd.grad(contrastive_loss(*z, **OPTIONS[similarity]), z, materialize_grads=True)
        for z in (wide, narrow)
    )
    for name, a, b in zip(NAMES, got, expected, strict=True):
        assert a.isfinite().all(), name
        assert (a - b).abs().max() <= 1e-4 * b.abs().max() + 1e-6, name


@every_similarity
@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-20])
def test_gradients_of_points_next_to_the_origin_are_finite(similarity, size):
    """True ones of angles are of size 1/|x|, beyond the dtype: docs/kernels.md."""
    x, y = (size * points(6, 20, torch.float32, seed=k) for k in range(2))
    inputs = leaves(x, y, torch.float32, scale=100.0)
    loss = contrastive_loss(*inputs, **OPTIONS[similarity])
    for by in torch.autograd.grad(loss, inputs, materialize_grads=True):
        assert by.isfinite().all()


@every_similarity
def test_frozen_inputs(similarity):
    x, y = points(6, 20), points(6, 20, seed=1)
    every = leaves(x, y)
    full = torch.autograd.grad(
        contrastive_loss(*every, **OPTIONS[similarity]), every, materialize_grads=True
    )
    for k in range(4):
        some = [t.detach().requires_grad_(i == k) for i, t in enumerate(leaves(x, y))]
        loss = contrastive_loss(*some, **OPTIONS[similarity])
        if loss.requires_grad and not (similarity == "cosine" and k == 2):
            (only,) = torch.autograd.grad(loss, some[k])
            assert torch.equal(only, full[k])


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_no_matrix_is_made(monkeypatch, similarity):
    monkeypatch.setattr(compilation, "compiles", lambda *_: False)
    N, M = 1100, 5000
    x, y, c = points(N, 20), points(M, 20, seed=1), torch.ones(1, dtype=torch.float64)
    ids = torch.arange(N, dtype=torch.int32), torch.arange(M, dtype=torch.int32)
    scale = torch.tensor(5.0, dtype=torch.float64)
    with Largest() as largest:
        prepared = streaming.prepare(PairwiseProblem(x, y, c, similarity, "highest"))
        problem = LossProblem(x, y, c, scale, *ids, *ids, similarity, "highest", prepared)
        sums = streaming.log_sums(problem)
        streaming.log_sums_gradients(problem, sums, sums)
    assert largest.numel <= streaming.ROWS * streaming.COLUMNS < N * M / 4


@pytest.mark.thorough
def test_memory_of_16384_pairs(tmp_path):
    """Forward and backward; one matrix of all pairs would be 1,024 MB, the naive form has ten.

    docs/benchmarks.md has 32,768 of 512 dimensions, which take minutes.
    """
    command = [sys.executable, BENCHMARK, "memory", "--kinds", "angle", "--sizes", "16384"]
    command += ["--dimensions", "64", "--results", str(tmp_path)]
    subprocess.run(command, check=True)
    (file,) = tmp_path.iterdir()
    (row,) = json.loads(file.read_text())["rows"].values()
    assert 8 <= row["peak_mb"] < 128  # gradients are 8


# --- Arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"similarity": "dot"}, ValueError, "similarity: expected one of angle, distance, cosine"),
        ({"apex": "y"}, ValueError, "apex: expected one of x, query, got 'y'"),
        (
            {"apex": "query", "similarity": "distance"},
            ValueError,
            "apex: 'query' is for similarity='angle', got similarity='distance'; leave it out",
        ),
        ({"reduction": "max"}, ValueError, "reduction: expected"),
        ({"y": torch.ones(5, 3)}, ValueError, "targets: None pairs.*give an offset or labels"),
        ({"targets": 1}, ValueError, r"targets: an offset.*\[0, M - N\]"),
        ({"targets": -1}, ValueError, "targets: an offset"),
        ({"targets": 0.5}, TypeError, "targets: expected None, an int, or integer tensors"),
        ({"targets": torch.zeros(3, dtype=torch.int64)}, ValueError, r"shapes \(4,\) and \(4,\)"),
        ({"targets": torch.zeros(4)}, TypeError, "expected integer labels"),
        (
            {"targets": (torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64))},
            ValueError,
            "no positive pair",
        ),
        ({"logit_scale": 0.0}, ValueError, "logit_scale: expected a positive number"),
        ({"logit_scale": -1.0}, ValueError, "logit_scale: expected a positive number"),
        ({"logit_scale": math.nan}, ValueError, "logit_scale: .*got nan; nn.LogitScale"),
        ({"logit_scale": math.inf}, ValueError, "logit_scale: expected a positive number.*got inf"),
        ({"logit_scale": 1e39}, ValueError, r"logit_scale: .*float32, got 1e\+39"),
        ({"logit_scale": 1e-50}, ValueError, "logit_scale: .*float32, got 1e-50"),
        ({"logit_scale": torch.tensor(math.nan)}, ValueError, "logit_scale: .*got nan"),
        ({"logit_scale": torch.tensor([math.inf])}, ValueError, "logit_scale: .*got inf"),
        ({"logit_scale": np.float32(math.nan)}, ValueError, "logit_scale: .*got nan"),
        ({"logit_scale": torch.ones(2)}, ValueError, "logit_scale: expected a number"),
        ({"logit_scale": "big"}, TypeError, "logit_scale: expected a number"),
        ({"logit_scale": True}, TypeError, "logit_scale: expected a number"),
        ({"logit_scale": np.complex64(2)}, TypeError, "logit_scale: expected a number"),
        ({"curv": math.nan}, ValueError, "curv: expected a positive number"),
        (
            {"x": torch.ones(0, 3), "y": torch.ones(0, 3)},
            ValueError,
            r"x: expected points \(N, D\) with N >= 1, got shape \(0, 3\)",
        ),
        ({"y": torch.ones(0, 3)}, ValueError, r"y: expected .* N >= 1, got shape \(0, 3\)"),
        ({"curv": 0.0}, ValueError, "curv: expected a positive number"),
        ({"curv": torch.ones(4)}, ValueError, "curv: expected one number"),
        ({"x": torch.ones(2, 4, 3)}, ValueError, r"x: expected points \(N, D\)"),
        ({"x": torch.ones(4, 3, dtype=torch.int64)}, TypeError, "x: expected a floating-point"),
        ({"impl": "triton"}, ValueError, "use impl='streaming'"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    arguments = {"x": torch.ones(4, 3), "y": torch.ones(4, 3), **change}
    with pytest.raises(error, match=message):
        contrastive_loss(**arguments)


@pytest.mark.parametrize(
    "number", [np.float32(2.5), np.float64(2.5), np.array(2.5), Fraction(5, 2)]
)
def test_numbers_of_other_libraries(number):
    x, y = points(4, 20), points(4, 20, seed=1)
    expected = contrastive_loss(x, y, 2.5, 2.5)
    assert torch.equal(contrastive_loss(x, y, number, number), expected)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_positives_are_pairs_side_by_side(similarity, dtype):
    """Of close, equal, opposite and far points, and of the origin, in any order and repeated; what
    a point is in several times adds up. How exact those are, test_pairs.py and test_exactness.py
    say. (Points aligned but for their rounding would not do: their angles' gradients are noise.)
    """
    x, y = (points(600, 450, dtype, seed=s) for s in (0, 1))
    y[:100] = x[:100] + 1e-6 * y[:100]
    y[100:110], y[110:120], x[120:130], y[125:140] = x[100:110], -x[110:120], 0, 0
    x[150:160] *= 1e20
    i = torch.randint(600, (1500,), generator=torch.Generator().manual_seed(0))
    c = torch.tensor([0.7], dtype=dtype)
    at = torch.randn(1500, 2 if similarity == "angles" else 1).to(dtype)
    leaves = [t.clone().requires_grad_() for t in (x, y, c)]
    value = pairs.row_values(similarity, leaves[0][i], leaves[1][i], leaves[2])
    expected = value, *torch.autograd.grad(value, leaves, at)
    of = SelectedPairs(x, y, c, i, i, similarity)
    found, gradients = selected_pairs.selected(of), selected_pairs.selected_gradients(of, at)
    eps = torch.finfo(dtype).eps
    for ours, theirs in zip((found, *gradients), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e3 * eps, atol=1e2 * eps)
