"""HyCoCLIP's loss: against its paper's formulas in plain torch, its gradients, boxes, processes."""

import copy

import pytest
import torch
import torch.distributed as dist
from pairwise_calls import points
from processes import spawn

from lorentzkit.losses import HyCoCLIPLoss, contrastive_loss
from lorentzkit.testing import assert_lorentz_invariant

D, CURV, SCALE = 12, 0.7, 5.0
BOX_OF = torch.tensor([2, 0, 2, 2, 4, 0, 3])  # three of one pair, none of two
NAMES = ("text", "image", "box_text", "box_image", "curv", "logit_scale")


def inputs(N=6, B=7, dtype=torch.float64, seed=0):
    sizes = (N, N, B, B)
    four = [points(n, D, seed=seed + k) for k, n in enumerate(sizes)]
    scalars = [torch.tensor(value, dtype=torch.float64) for value in (CURV, SCALE)]
    return [t.to(dtype).requires_grad_() for t in (*four, *scalars)]


def called(objective, arguments, **more):
    """With arguments in the order of NAMES."""
    return objective(**dict(zip(NAMES, arguments, strict=True)), **more)


# --- The paper's formulas, one pair and one anchor at a time --------------------------------------


def lorentzian(p, q, c):
    time = [(1 / c + z @ z).sqrt() for z in (p, q)]
    return p @ q - time[0] * time[1]


def distance(p, q, c):
    return torch.acosh(-c * lorentzian(p, q, c)) / c.sqrt()


def outside(p, q, c, scale, K=0.1):
    """Of the cone of p, how far q lies."""
    inner = c * lorentzian(p, q, c)
    p0, q0 = ((1 / c + z @ z).sqrt() for z in (p, q))
    angle = torch.acos((q0 + p0 * inner) / (p.norm() * (inner**2 - 1).sqrt()))
    aperture = torch.asin((2 * K / (c.sqrt() * p.norm())).clamp(max=1))
    return (angle - scale * aperture).clamp(min=0)


def cross_entropy(anchors, others, positives, c, s):
    """The mean over anchors, of each the mean over its positives."""
    losses = []
    for anchor, own in zip(anchors, positives, strict=True):
        logits = torch.stack([-s * distance(anchor, other, c) for other in others])
        losses.append(torch.stack([logits.logsumexp(0) - logits[j] for j in own]).mean())
    return torch.stack(losses).mean()


def paper(text, image, box_text, box_image, c, s, box_of, labels=None, weights=(0.1, 0.7, 1.2)):
    labels = range(len(text)) if labels is None else labels.tolist()
    positives = [[j for j, other in enumerate(labels) if other == own] for own in labels]
    of_boxes = [positives[i] for i in box_of]
    contrastive = (
        cross_entropy(image, text, positives, c, s)
        + cross_entropy(text, image, positives, c, s)
        + cross_entropy(box_image, text, of_boxes, c, s)
        + cross_entropy(box_text, image, of_boxes, c, s)
    ) / 4
    gamma, inter, intra = weights
    entailment = sum(
        torch.stack([outside(p, q, c, eta) for p, q in zip(general, specific, strict=True)]).mean()
        for general, specific, eta in (
            (text, image, inter),
            (box_text, box_image, inter),
            (box_image, [image[i] for i in box_of], intra),
            (box_text, [text[i] for i in box_of], intra),
        )
    )
    return contrastive + gamma * entailment, contrastive, entailment


@pytest.mark.parametrize(
    "labels", [None, torch.tensor([4, 7, 4, 1, 1, 4])], ids=["pairs", "labels"]
)
@pytest.mark.parametrize("weights", [(0.1, 0.7, 1.2), (0.6, 0.4, 2.5)])
def test_it_is_the_papers_sum(labels, weights):
    """In value, parts, and the gradient in every argument."""
    arguments = inputs()
    gamma, inter, intra = weights
    objective = HyCoCLIPLoss(
        entailment_weight=gamma, inter_aperture_scale=inter, intra_aperture_scale=intra
    )
    total, parts = called(objective, arguments, box_of=BOX_OF, targets=labels)
    expected = paper(*arguments, BOX_OF.tolist(), labels, weights)
    torch.testing.assert_close((total, *parts.values()), expected, rtol=1e-12, atol=1e-13)
    assert list(parts) == ["contrastive", "entailment"]
    gradients = torch.autograd.grad(total, arguments)
    for name, a, b in zip(
        NAMES, gradients, torch.autograd.grad(expected[0], arguments), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_the_defaults_are_the_papers():
    arguments = inputs()
    total, _ = called(HyCoCLIPLoss(), arguments, box_of=BOX_OF)
    torch.testing.assert_close(total, paper(*arguments, BOX_OF.tolist())[0], rtol=1e-12, atol=0)


def test_one_box_for_each_pair_needs_no_index():
    arguments = inputs(B=6)
    found = called(HyCoCLIPLoss(), arguments)
    given = called(HyCoCLIPLoss(), arguments, box_of=torch.arange(6))
    torch.testing.assert_close(found, given, rtol=0, atol=0)
    torch.testing.assert_close(found[0], paper(*arguments, range(6))[0], rtol=1e-12, atol=0)


@pytest.mark.thorough
def test_gradients_are_finite_differences():
    arguments = inputs()
    assert torch.autograd.gradcheck(
        lambda *some: called(HyCoCLIPLoss(), some, box_of=BOX_OF)[0], arguments, eps=1e-6, atol=1e-7
    )


def test_float32_and_half_precision():
    """Features of half precision are computed as float32 ones, with finite gradients."""
    exact, _ = called(HyCoCLIPLoss(), inputs(), box_of=BOX_OF)
    single, _ = called(HyCoCLIPLoss(), inputs(dtype=torch.float32), box_of=BOX_OF)
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=0)
    half = [t.detach().bfloat16().requires_grad_() for t in inputs()]
    total, parts = called(HyCoCLIPLoss(), half, box_of=BOX_OF)
    assert {t.dtype for t in (total, *parts.values())} == {torch.float32}
    assert all(g.isfinite().all() for g in torch.autograd.grad(total, half))


# --- Boxes ----------------------------------------------------------------------------------------


def test_the_order_of_boxes_does_not_matter():
    text, image, *boxes, curv, scale = inputs()
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    total, _ = called(HyCoCLIPLoss(), [text, image, *boxes, curv, scale], box_of=BOX_OF)
    moved = [z[order] for z in boxes]
    other, _ = called(HyCoCLIPLoss(), [text, image, *moved, curv, scale], box_of=BOX_OF[order])
    torch.testing.assert_close(total, other)


def test_without_boxes_their_terms_are_0():
    arguments = inputs(B=0)
    total, parts = called(HyCoCLIPLoss(), arguments, box_of=torch.empty(0, dtype=torch.long))
    text, image, _, _, curv, scale = arguments
    wholes = contrastive_loss(text, image, curv, scale, similarity="distance")
    torch.testing.assert_close(parts["contrastive"], wholes / 2)
    gradients = torch.autograd.grad(total, arguments)
    assert [g.shape[0] for g in gradients[:4]] == [6, 6, 0, 0]
    assert all(g.isfinite().all() for g in gradients)


def test_invariant_under_rotations():
    def both(x, y):  # wholes and boxes of a modality are one cloud
        (text, box_text), (image, box_image) = x.split([6, 7]), y.split([6, 7])
        arguments = text, image, box_text, box_image, CURV, SCALE
        return called(HyCoCLIPLoss(), arguments, box_of=BOX_OF)[0]

    how = {"rtol": 1e-10, "atol": 1e-12, "curv": CURV, "seed": 3}
    assert_lorentz_invariant(both, points(13, D), points(13, D, seed=1), rotations_only=True, **how)


# --- Processes ------------------------------------------------------------------------------------


def spread(rank, size, labelled, numbers):
    """Of `numbers[rank]` boxes a process, four pairs each."""
    N = 4
    text, image, *boxes, curv, scale = inputs(N * size, sum(numbers), seed=10)
    box_of = torch.randint(0, N, (sum(numbers),), generator=torch.Generator().manual_seed(0))
    owner = torch.repeat_interleave(torch.arange(size), torch.tensor(numbers))
    labels = torch.arange(N * size) % (2 * size + 1) if labelled else None
    whole = HyCoCLIPLoss()
    everything = [text, image, *boxes, curv, scale]
    total, parts = called(whole, everything, box_of=box_of + N * owner, targets=labels)
    expected = torch.autograd.grad(total, everything)

    rows, own = slice(rank * N, (rank + 1) * N), owner == rank
    at = [rows, rows, own, own]
    mine = [z.detach()[of].requires_grad_() for z, of in zip(everything, at, strict=False)]
    objective = copy.deepcopy(HyCoCLIPLoss(group=dist.group.WORLD))
    how = {"box_of": box_of[own], "targets": None if labels is None else labels[rows]}
    loss, own_parts = called(objective, [*mine, curv, scale], **how)
    gradients = [*torch.autograd.grad(loss, [*mine, curv, scale])]
    for value, of_whole in ((loss, total), *zip(own_parts.values(), parts.values(), strict=True)):
        value = value.detach()
        dist.all_reduce(value)
        torch.testing.assert_close(value / size, of_whole.detach(), rtol=1e-12, atol=1e-13)
    for shared in gradients[4:]:
        dist.all_reduce(shared)
    at = [*at, ..., ...]
    for name, g, b, of in zip(NAMES, gradients, expected, at, strict=True):
        torch.testing.assert_close(
            g / size, b[of], rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("labelled", "numbers"), [(False, (4, 4)), (True, (5, 2)), (False, (0, 3)), (False, (0, 0))]
)
def test_losses_and_gradients_are_those_of_one_process(labelled, numbers):
    assert spawn(spread, len(numbers), len(numbers), labelled, numbers) == {}


def one_is_wrong(rank):
    arguments = inputs(B=6 + rank)
    with pytest.raises(ValueError, match=r"rank 1: box_of: None gives each of 6 pairs one box"):
        called(HyCoCLIPLoss(group=dist.group.WORLD), arguments)


@pytest.mark.thorough
def test_a_bad_argument_of_one_process_raises_on_every_process():
    assert spawn(one_is_wrong, 2) == {}


# --- Arguments ------------------------------------------------------------------------------------


def with_(box_of=BOX_OF, targets=None, **points_):
    given = dict(zip(NAMES, inputs(), strict=True)) | points_
    return HyCoCLIPLoss()(**given, box_of=box_of, targets=targets)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: HyCoCLIPLoss(entailment_weight=-1.0), "entailment_weight: expected a finite"),
        (lambda: HyCoCLIPLoss(inter_aperture_scale=0.0), "inter_aperture_scale: expected a posit"),
        (lambda: HyCoCLIPLoss(intra_aperture_scale=-1), "intra_aperture_scale: expected a positi"),
        (lambda: HyCoCLIPLoss(min_radius=0.0), "min_radius: expected a positive"),
        (lambda: HyCoCLIPLoss(impl="fast"), "impl: expected"),
        (lambda: with_(box_of=None), r"box_of: None gives .* there are 7 boxes; give the pair"),
        (lambda: with_(BOX_OF + 2), r"box_of: expected pairs from 0 to 5, got 2 to 6"),
        (lambda: with_(BOX_OF - 1), r"box_of: expected pairs from 0 to 5, got -1 to 3"),
        (lambda: with_(BOX_OF[:3]), r"box_of: .* of shape \(7,\), got torch.int64 of shape \(3,"),
        (lambda: with_(BOX_OF.float()), r"box_of: .* integers .* got torch.float32"),
        (lambda: with_([2, 0]), r"box_of: .* integers of shape \(7,\), got list"),
        (lambda: with_(targets=BOX_OF), r"targets: expected labels, integers of shape \(6,\)"),
        (lambda: with_(targets=2), r"targets: expected labels, .* got int"),
        (lambda: with_(image=points(5, D)), r"text\[i\] belongs to image\[i\]"),
        (lambda: with_(box_text=points(5, D)), r"box_text\[k\] to box_image\[k\], got shapes"),
        (lambda: with_(box_text=points(7, D + 1)), "expected one trailing size D"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
