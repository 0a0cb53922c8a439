"""The loss of a batch spread over processes, by kernels: share by share, and in a group of one."""

import pytest
import torch
import torch.distributed as dist
from contrastive_calls import OPTIONS, SIMILARITIES
from pairwise_calls import points
from test_launches import BACKWARD, FORWARD, counted, launches  # noqa: F401

from lorentzkit.distributed import Ring
from lorentzkit.fused.problems import LossProblem
from lorentzkit.fused.triton import positives, shares
from lorentzkit.losses import contrastive, contrastive_loss
from lorentzkit.losses.anchors import Anchors

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
every_similarity = pytest.mark.parametrize("similarity", SIMILARITIES)
ROWS, COLUMNS = [3, 3, -7, 5, 3, 8, 8, 99, 3], [5, 3, 3, 9, 9, 8, -7, 3, 1, 2]


@pytest.fixture(autouse=True)
def _on_the_device():
    with torch.device(DEVICE):
        yield


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def expected(x, y, numbers, similarity, targets, weights):
    """Losses and gradients of their weighted sum, in float64."""
    leaves = [z.double().requires_grad_() for z in (x, y, *numbers)]
    how = {"targets": targets, "reduction": "none", "impl": "streaming"}
    losses = contrastive_loss(*leaves, **OPTIONS[similarity], **how)
    total = sum((w.double() * z).sum() for w, z in zip(weights, losses, strict=True))
    return losses, torch.autograd.grad(total, leaves, materialize_grads=True)


@pytest.mark.few(similarity="exterior")
@every_similarity
def test_shares_add_up(similarity):
    """Two shares of the columns, of which the second has no positive for some rows."""
    x, y = (points(n, 20, torch.float32, seed=n).to(DEVICE) for n in (9, 10))
    numbers, labels = (torch.tensor([0.7]), torch.tensor(5.0)), torch.tensor(COLUMNS)
    weights = torch.linspace(-1, 2, 9), torch.linspace(1, 2, 10)
    row_labels, settings = torch.tensor(ROWS), (similarity, "highest")
    rows, met, columns = shares.empty(x), [], []
    for part in (slice(0, 6), slice(6, 10)):
        of = positives.of_labels(row_labels, labels[part])
        ids = of.row_ids, of.column_ids
        problem = LossProblem(x, y[part], *numbers, *ids, ids[0], ids[0], *settings)
        columns.append(shares.empty(y[part]))
        met.append((problem, of, shares.merge(problem, of, rows, columns[-1])))
    sides = [z.requires_grad_() for z in (rows, torch.cat(columns, 1))]
    losses = [Anchors(*side.unbind()).losses() for side in sides]
    exact, exact_gradients = expected(x, y, numbers, similarity, (row_labels, labels), weights)
    for got, right in zip(losses, exact, strict=True):
        torch.testing.assert_close(got.double(), right, rtol=2e-5, atol=5e-6)
    total = sum((w * z).sum() for w, z in zip(weights, losses, strict=True))
    grads = torch.autograd.grad(total, sides)
    found = [
        shares.gradients(
            problem, of, values, (rows.detach(), side), (grads[0], grads[1][:, part].contiguous())
        )
        for (problem, of, values), side, part in zip(
            met, columns, (slice(0, 6), slice(6, 10)), strict=True
        )
    ]
    a, b = found
    got = a.x + b.x, torch.cat([a.y, b.y]), a.c + b.c, a.scale + b.scale
    for by, right in zip(got, exact_gradients, strict=True):
        torch.testing.assert_close(by.double(), right.view_as(by), rtol=2e-5, atol=2e-5)


@pytest.mark.few(similarity="exterior")
@every_similarity
@pytest.mark.parametrize("targets", [None, torch.tensor(ROWS)], ids=["pairs", "labels"])
def test_a_group_of_one(group, similarity, targets):
    leaves = [points(9, 20, torch.float32, seed=s).to(DEVICE) for s in (0, 1)]
    leaves = [z.requires_grad_() for z in (*leaves, torch.tensor(0.7), torch.tensor(5.0))]
    how = OPTIONS[similarity] | {"targets": targets, "impl": "triton"}
    found = []
    for of in (group, None):
        loss = contrastive_loss(*leaves, **how, group=of)
        found.append([loss, *torch.autograd.grad(loss, leaves, materialize_grads=True)])
    torch.testing.assert_close(*found, rtol=2e-5, atol=5e-6)


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts calls of the interpreter")
@pytest.mark.parametrize("labelled", [False, True], ids=["pairs", "labels"])
def test_launches_of_a_step_of_the_ring(group, launches, monkeypatch, labelled):  # noqa: F811
    """What another process more adds to a loss: at most as much as a loss may take."""
    targets, found = torch.arange(64) % 20 if labelled else None, []
    monkeypatch.setattr(contrastive, "check_positives", lambda any_positive: None)
    for steps in (1, 3):
        monkeypatch.setattr(Ring, "round", lambda self, *t, n=steps: [t] * n)
        monkeypatch.setattr(Ring, "all_of", lambda self, t: [t])
        leaves = [torch.zeros(64, 20), torch.zeros(64, 20), torch.tensor(1.0), torch.tensor(5.0)]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        loss, forward = counted(
            launches,
            lambda z=leaves: contrastive_loss(*z, impl="triton", targets=targets, group=group),
        )
        backward = counted(launches, lambda z=leaves, of=loss: torch.autograd.grad(of, z))[1]
        found.append((forward, backward))
    forward, backward = ((many - one) / 2 for one, many in zip(*found, strict=True))
    assert 0 < forward <= FORWARD
    assert 0 < backward <= BACKWARD
