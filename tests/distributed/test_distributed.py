"""A batch spread over processes: the same loss and gradients as on one, and an end when one dies.

Every test starts its processes, which talk by Gloo. What they do stands in functions of this module
that take their rank; what they find is compared there, against the whole batch on one process.
"""

import copy
import os
import time

import pytest
import torch
import torch.distributed as dist
from contrastive_calls import OPTIONS, SIMILARITIES
from processes import spawn
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lorentzkit import ops
from lorentzkit.distributed import Ring, gather
from lorentzkit.losses import ATMGLoss, CLIPLoss, MERULoss, centroid_loss, contrastive_loss
from lorentzkit.nn import Curvature, Lift, LogitScale, LorentzMLR

SHARE, D = 5, 20
EACH = {"reduction": "none"}


def batch(size, dtype=torch.float64):
    """The whole batch, the same on every process: points, scalars, labels."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(size * SHARE, D, generator=generator, dtype=dtype) for _ in range(2))
    scalars = torch.tensor(0.7, dtype=dtype), torch.tensor(5.0, dtype=dtype)
    labels = torch.randint(0, SHARE, (2, size * SHARE), generator=generator)
    return [t.requires_grad_() for t in (x, y, *scalars)], (labels[0], labels[1])


def own(tensor, rank):
    return tensor.detach()[rank * SHARE : (rank + 1) * SHARE].clone().requires_grad_()


# --- The same numbers -----------------------------------------------------------------------------


def same_loss(rank, size):
    for dtype in (torch.float64, torch.float32):
        for similarity in SIMILARITIES:
            for some in (False, True):
                for reduction in ("mean", "sum"):
                    compare(rank, size, dtype, similarity, some, reduction)


def compare(rank, size, dtype, similarity, labelled, reduction):
    (x, y, curv, scale), labels = batch(size, dtype)
    rows = slice(rank * SHARE, (rank + 1) * SHARE)
    # By blocks, as the group's: of few pairs alone, NumPy's float64 is the more exact.
    how = {**OPTIONS[similarity], "reduction": reduction, "impl": "streaming"}
    whole = contrastive_loss(x, y, curv, scale, targets=labels if labelled else None, **how)
    expected = torch.autograd.grad(whole, [x, y, curv, scale], materialize_grads=True)

    mine = (labels[0][rows], labels[1][rows]) if labelled else None
    inputs = [own(x, rank), own(y, rank), curv, scale]
    loss = contrastive_loss(*inputs, targets=mine, group=dist.group.WORLD, **how)
    gradients = list(torch.autograd.grad(loss, inputs, materialize_grads=True))

    loss = loss.detach()
    for shared in (loss, *gradients[2:]):
        dist.all_reduce(shared)
    over = size if reduction == "mean" else 1  # "sum": the sum over processes
    tolerance = {"rtol": 1e-12, "atol": 1e-13} if dtype == torch.float64 else {}
    torch.testing.assert_close(loss / over, whole.detach(), **tolerance)
    shares = [expected[0][rows], expected[1][rows], *expected[2:]]
    allowed = dict.fromkeys(["x", "y", "curv", "scale"], tolerance)
    if dtype == torch.float32:
        # In the scale it is a difference: of each anchor's similarity to its positive, and to all.
        # Summed in another order it is off by roundings of the sums, not of what they leave.
        terms = 2 * len(x) if reduction == "sum" else 2
        size_of_sums = terms * ops.pairwise_dist(x, y, curv).mean().item()
        allowed["scale"] = {"rtol": 0, "atol": 4 * 2**-24 * size_of_sums}
    for (name, within), a, b in zip(allowed.items(), gradients, shares, strict=True):
        torch.testing.assert_close(
            a / over, b, **within, msg=lambda m, n=name: f"{similarity}, {n}: {m}"
        )
    for a, b in zip(
        contrastive_loss(*inputs, targets=mine, group=dist.group.WORLD, **{**how, **EACH}),
        contrastive_loss(
            x, y, curv, scale, targets=labels if labelled else None, **{**how, **EACH}
        ),
        strict=True,
    ):
        torch.testing.assert_close(a, b[rows], **tolerance)


@pytest.mark.few(size=2)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_losses_and_gradients_are_those_of_one_process(size):
    """Of every similarity, of pairs and labels, in both dtypes, for every reduction."""
    assert spawn(same_loss, size, size) == {}


def different_lengths(rank):
    """Three rows and five columns a process; the first has no positive at all."""
    (x, y, curv, scale), _ = batch(2)
    x, labels = x[:6], (torch.tensor([7, 8, 9, 0, 1, 0]), torch.tensor([5] * 5 + [0, 1, 0, 2, 6]))
    rows, columns = (slice(rank * n, rank * n + n) for n in (3, 5))
    whole = contrastive_loss(x, y, curv, scale, targets=labels)
    grads = torch.autograd.grad(whole, (x, y))
    expected = [g[of] for g, of in zip(grads, (rows, columns), strict=True)]
    mine = [z.detach()[of].clone().requires_grad_() for z, of in ((x, rows), (y, columns))]
    own_labels = labels[0][rows], labels[1][columns]
    loss = contrastive_loss(*mine, curv, scale, targets=own_labels, group=dist.group.WORLD)
    torch.testing.assert_close([g / 2 for g in torch.autograd.grad(loss, mine)], expected)
    loss = loss.detach()
    dist.all_reduce(loss)
    torch.testing.assert_close(loss / 2, whole.detach())


@pytest.mark.thorough
def test_rows_and_columns_of_different_lengths():
    assert spawn(different_lengths, 2) == {}


def gathered(rank, size):
    (x, *_), _ = batch(size)
    mine = own(x, rank)
    whole = gather(mine)
    assert torch.equal(whole, x)
    weights = torch.arange(1.0, size + 1)[rank] * torch.linspace(0, 1, x.numel()).view_as(x)
    (by,) = torch.autograd.grad((weights * whole).sum(), mine)
    total = weights.double()
    dist.all_reduce(total)
    torch.testing.assert_close(by, total[rank * SHARE : (rank + 1) * SHARE])


@pytest.mark.thorough
def test_gather_and_its_gradient():
    assert spawn(gathered, 4, 4) == {}


def only_some(rank):
    group = dist.new_group([1, 2])
    (x, y, *_), _ = batch(2)
    if rank > 0:
        mine = own(x, rank - 1), own(y, rank - 1)
        loss = contrastive_loss(*mine, group=group).detach()
        dist.all_reduce(loss, group=group)
        torch.testing.assert_close(loss / 2, contrastive_loss(x, y).detach())


@pytest.mark.thorough
def test_a_group_of_some_processes():
    assert spawn(only_some, 3) == {}


# --- In training ----------------------------------------------------------------------------------


class Towers(nn.Module):
    """Two linear encoders onto hyperbolic space, with all that is learned besides."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.text, self.image = nn.Linear(D, 8), nn.Linear(D, 8)
        self.lift, self.curvature, self.scale = Lift(8), Curvature(0.5), LogitScale(5.0)
        self.head = LorentzMLR(8, 3)
        self.double()
        for parameter in (*self.text.parameters(), *self.image.parameters(), self.head.weight):
            parameter.data.normal_(generator=generator)

    def forward(self, text, image):
        curv = self.curvature()
        text, image = self.lift(self.text(text), curv), self.lift(self.image(image), curv)
        points = {"text": text, "image": image, "curv": curv, "logit_scale": self.scale()}
        return points, self.head(image, curv).square().mean()


OBJECTIVES = {
    "clip": CLIPLoss,
    "meru": MERULoss,
    "atmg": lambda **how: ATMGLoss(text_radius=0.5, image_radius=1.0, centroid_weight=0.3, **how),
}


def step(model, objective, text, image):
    points, regulariser = model(text, image)
    loss = objective(**points)[0] + regulariser
    loss.backward()
    return loss.detach()


def same_step(rank, size, sharded):
    (x, y, *_), _ = batch(size)
    for objective in OBJECTIVES.values():
        whole = Towers()
        loss = step(whole, objective(), x.detach(), y.detach())
        model = Towers()
        if sharded:
            from torch.distributed.fsdp import fully_shard

            mesh = dist.device_mesh.init_device_mesh("cpu", (size,))
            wrapped = fully_shard(model, mesh=mesh)
        else:
            wrapped = DistributedDataParallel(copy.deepcopy(model))
            model = wrapped.module
        share = own(x, rank).detach(), own(y, rank).detach()
        spread = copy.deepcopy(objective(group=dist.group.WORLD))
        mine = step(wrapped, spread, *share)
        dist.all_reduce(mine)
        torch.testing.assert_close(mine / size, loss)
        for (name, a), b in zip(model.named_parameters(), whole.parameters(), strict=True):
            gradient = a.grad.full_tensor() if sharded else a.grad
            torch.testing.assert_close(gradient, b.grad, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.thorough
@pytest.mark.parametrize("sharded", [False, True], ids=["DDP", "FSDP"])
def test_a_step_is_that_of_one_process(sharded):
    """All objectives and modules, under data parallelism with and without sharded parameters."""
    assert spawn(same_step, 2, 2, sharded) == {}


# --- What goes wrong ------------------------------------------------------------------------------


def uneven(rank):
    x, world = torch.ones(4 - rank, 3), dist.group.WORLD
    message = (
        r"(?s)^x.*: expected the same shapes.*rank 0: .*\(4, 3\).*rank 1: .*\(3, 3\).*drop_last"
    )
    with pytest.raises(ValueError, match=message):
        contrastive_loss(x, x, group=world)
    with pytest.raises(ValueError, match=message):
        gather(x)
    y, labels = torch.ones(3, 3), (torch.zeros(3), torch.zeros(4 - rank))
    with pytest.raises(ValueError, match=message):  # of y alone
        contrastive_loss(y, x, targets=tuple(of.long() for of in labels), group=world)


def uneven_centroid(rank):
    (x, y, curv, _), _ = batch(2)
    radii = {"text_radius": 0.3, "image_radius": 0.4}
    whole = centroid_loss(text=x, image=y, curv=curv, **radii)
    expected = torch.autograd.grad(whole, [x, y, curv])
    rows = (slice(0, 3), slice(3, 2 * SHARE))[rank]
    mine = [t.detach()[rows].clone().requires_grad_() for t in (x, y)]
    loss = centroid_loss(
        text=mine[0], image=mine[1], curv=curv.reshape(1), **radii, group=dist.group.WORLD
    )
    torch.testing.assert_close(loss, whole)  # on every process
    *points, by_curv = torch.autograd.grad(loss, [*mine, curv])
    dist.all_reduce(by_curv)
    for a, b in zip(
        (*points, by_curv), (*(g[rows] for g in expected[:2]), expected[2]), strict=True
    ):
        torch.testing.assert_close(a / 2, b)


@pytest.mark.thorough
def test_centroids_are_those_of_all_points():
    """Of shares of any sizes."""
    assert spawn(uneven_centroid, 2) == {}


def other_settings(rank):
    (x, y, *_), labels = batch(2)
    x, y, world = own(x, rank), own(y, rank), dist.group.WORLD
    with pytest.raises(ValueError, match=r"(?s)rank 0: \['angle'.*rank 1: \['distance'"):
        contrastive_loss(x, y, similarity=["angle", "distance"][rank], group=world)
    with pytest.raises(ValueError, match=r"(?s)rank 0: .*'x'.*rank 1: .*'query'"):
        contrastive_loss(x, y, apex=["x", "query"][rank], group=world)
    mine = (labels[0][:SHARE], labels[1][:SHARE]) if rank else None
    with pytest.raises(ValueError, match=r"(?s)rank 0: .*'pairs'.*rank 1: .*'labels'"):
        contrastive_loss(x, y, targets=mine, group=world)


@pytest.mark.thorough
def test_settings_that_differ_raise_on_every_process():
    assert spawn(other_settings, 2) == {}


@pytest.mark.thorough
def test_shares_of_different_sizes_raise_on_every_process():
    assert spawn(uneven, 2) == {}


def lost(rank, dead, when):
    (x, y, *_), _ = batch(4)
    mine = own(x, rank), own(y, rank)
    if rank == dead and when == "before":
        os._exit(0)
    loss = contrastive_loss(*mine, group=dist.group.WORLD)
    if rank == dead:
        os._exit(0)
    loss.backward()


@pytest.mark.thorough
@pytest.mark.parametrize("when", ["before", "between"])
def test_a_dead_process_ends_in_an_error_that_names_it(when):
    """In the forward exchange and in the backward one, long before the test's own limit."""
    errors = spawn(lost, 4, 1, when)
    assert set(errors) == {0, 2, 3}  # the last, which is no neighbour of it, too
    for rank, error in errors.items():
        assert f"rank {rank}: lost the exchange with rank 1" in error


def asleep(rank):
    (x, y, *_), _ = batch(2)
    if rank == 1:
        time.sleep(20)
        return
    contrastive_loss(own(x, 0), own(y, 0), group=dist.group.WORLD)


@pytest.mark.thorough
def test_a_silent_process_is_waited_for_until_the_timeout_of_the_group():
    errors = spawn(asleep, 2, timeout=8)
    assert "rank 0: lost the exchange with rank 1" in errors[0]


def wrong_arguments(rank):
    (x, y, *_), _ = batch(2)
    x, y = own(x, rank), own(y, rank)
    world = dist.group.WORLD
    with pytest.raises(ValueError, match="with a group expected None or integer labels"):
        contrastive_loss(x, y, targets=1, group=world)
    with pytest.raises(ValueError, match="'reference' does not run with a group"):
        contrastive_loss(x, y, impl="reference", group=world)
    ids = torch.arange(SHARE)
    with pytest.raises(ValueError, match="no positive pair"):
        contrastive_loss(x, y, targets=(ids, -1 - ids), group=world)
    twice = torch.autograd.grad(contrastive_loss(x, y, group=world), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        twice.sum().backward()


@pytest.mark.thorough
def test_what_cannot_run_raises():
    assert spawn(wrong_arguments, 2) == {}


BAD = [
    ({"x": torch.ones(SHARE, D, dtype=torch.int64)}, "x: expected a floating-point tensor"),
    ({"x": [[1.0]]}, "x: expected a floating-point torch.Tensor, got list"),
    ({"x": torch.ones(0, D)}, r"x: expected points \(N, D\) with N >= 1"),
    ({"y": torch.ones(SHARE, D + 1)}, "x, y: expected one trailing size"),
    ({"y": torch.ones(SHARE + 1, D)}, "targets: None pairs x"),
    ({"curv": -1.0}, "curv: expected a positive number"),
    ({"logit_scale": float("nan")}, "logit_scale: expected a positive number.*got nan"),
    ({"logit_scale": torch.tensor(float("nan"))}, "logit_scale: expected a positive number"),
    ({"targets": torch.ones(SHARE)}, "targets: expected integer labels"),
    ({"targets": torch.ones(2, dtype=torch.int64)}, "targets: expected labels of shapes"),
    ({"targets": 1}, "targets: with a group expected None"),
    ({"similarity": "dot"}, "similarity: expected one of"),
    ({"reduction": "max"}, "reduction: expected"),
    ({"impl": "reference"}, "impl: 'reference' does not run"),
    ({"precision": "low"}, "precision: expected one of"),
]


def bad_on_one_rank(rank):
    (x, y, *_), _ = batch(2)
    good, world = {"x": own(x, rank), "y": own(y, rank)}, dist.group.WORLD
    for bad, message in BAD:
        given = good | bad if rank == 1 else good
        with pytest.raises((TypeError, ValueError), match=f"^rank 1: {message}"):
            contrastive_loss(**given, group=world)
    for bad, message in (
        (torch.ones(0, D), r"text: expected points \(N, D\) with N >= 1"),
        (torch.ones(3, D, dtype=torch.int64), "text: expected a floating-point tensor"),
    ):
        text = bad if rank == 1 else good["x"]
        with pytest.raises((TypeError, ValueError), match=f"^rank 1: {message}"):
            centroid_loss(
                text=text, image=good["y"], text_radius=0.3, image_radius=0.4, group=world
            )
    with pytest.raises((TypeError, ValueError), match=r"^rank 1: x: expected a torch.Tensor, got"):
        gather([1.0] if rank == 1 else x, world)
    with pytest.raises(
        TypeError if rank == 0 else ValueError, match=r"^rank 0: x: .*; rank 1: log"
    ):
        contrastive_loss(
            *(good["x"].long() if rank == 0 else good["x"], good["y"]),
            logit_scale=1.0 - 2 * rank,
            group=world,
        )
    contrastive_loss(**good, group=world).backward()  # the processes are still in step


@pytest.mark.thorough
def test_a_bad_argument_of_one_process_raises_on_every_process():
    """At once: none waits for the others until the timeout. The error has the rank."""
    assert spawn(bad_on_one_rank, 2) == {}


def one_exchange(rank):
    """Before what it is about, a loss exchanges one message; so does a centroid loss."""
    (x, y, *_), labels = batch(2)
    mine = own(x, rank), own(y, rank)
    rounds = []
    hand_on = Ring.hand_on
    Ring.hand_on = lambda self, *tensors: (rounds.append(tensors), hand_on(self, *tensors))[1]
    gather(mine[0])
    assert [t.dtype for (t,) in rounds] == [torch.uint8, mine[0].dtype]
    rounds.clear()
    radii = {"text_radius": 0.3, "image_radius": 0.4}
    centroid_loss(text=mine[0], image=mine[1], **radii, group=dist.group.WORLD)
    assert [t.dtype for (t,) in rounds] == [torch.uint8, *[mine[0].dtype] * 2]
    for targets in (None, (labels[0][:SHARE], labels[1][:SHARE])):
        rounds.clear()
        contrastive_loss(*mine, targets=targets, group=dist.group.WORLD)
        assert [t.dtype for t, *_ in rounds].count(torch.uint8) == 1
        assert rounds[0][0].dtype == torch.uint8


@pytest.mark.thorough
def test_arguments_are_agreed_on_in_one_exchange():
    assert spawn(one_exchange, 2) == {}


def test_without_processes():
    with pytest.raises(RuntimeError, match="init_process_group"):
        gather(torch.ones(2, 2))
    with pytest.raises(RuntimeError, match="init_process_group"):
        contrastive_loss(torch.ones(2, 2), torch.ones(2, 2), group=object())
