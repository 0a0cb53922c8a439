"""Entailment, centroids and the objectives: laws, known values, gradients, half precision."""

import mpmath
import oracle
import pytest
import torch
from contrastive_calls import OPTIONS, SIMILARITIES, logits, naive
from hypothesis import assume, given
from hypothesis import strategies as st
from pairwise_calls import points

from lorentzkit.losses import (
    ATMGLoss,
    CLIPLoss,
    HyCoCLIPLoss,
    MERULoss,
    centroid_loss,
    contrastive_loss,
    entailment_loss,
)
from lorentzkit.nn import Curvature, Lift, LogitScale
from lorentzkit.testing import assert_lorentz_invariant

RADII = {"text_radius": 0.6, "image_radius": 1.3}
OBJECTIVES = {
    "clip": CLIPLoss(),
    "meru": MERULoss(),
    "atmg": ATMGLoss(centroid_weight=0.3, **RADII),
}


def called(objective, x, y, curv=0.7, scale=5.0, targets=None):
    return objective(text=x, image=y, curv=curv, logit_scale=scale, targets=targets)


# Every loss as a function of two clouds, and whether boosts, too, leave it alone.
LOSSES = {
    **{
        s: (lambda x, y, s=s: contrastive_loss(x, y, 0.7, 5.0, **OPTIONS[s]), s == "distance")
        for s in SIMILARITIES
    },
    "entailment": (lambda x, y: entailment_loss(x, y, 0.7), False),
    "centroid": (lambda x, y: centroid_loss(text=x, image=y, curv=0.7, **RADII), False),
    **{n: (lambda x, y, o=o: called(o, x, y)[0], False) for n, o in OBJECTIVES.items()},
}
every_loss = pytest.mark.parametrize(("loss", "boosts"), LOSSES.values(), ids=LOSSES)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def clouds(draw):
    """Two clouds of some size in some dimension, in float64."""
    n, size, radius = draw(st.integers(2, 8)), draw(st.integers(2, 24)), draw(st.floats(0.1, 4))
    return [points(n, size, radius=radius, seed=draw(seeds)) for _ in range(2)]


# --- Laws -----------------------------------------------------------------------------------------


@every_loss
def test_invariant_under_isometries(loss, boosts):
    @given(clouds(), seeds)
    def check(pair, seed):
        how = {"rtol": 1e-8, "atol": 1e-9, "curv": 0.7, "seed": seed % 2**31}
        assert_lorentz_invariant(loss, *pair, rotations_only=not boosts, **how)

    check()


@every_loss
def test_what_depends_on_the_origin_is_not_invariant_under_boosts(loss, boosts):
    """So that the check above can fail."""
    if boosts:
        return
    pair = [points(5, 3), points(5, 3, seed=1)]
    with pytest.raises(AssertionError, match="not invariant under a rotation and boost"):
        assert_lorentz_invariant(loss, *pair, curv=0.7)


@every_loss
def test_the_order_of_the_pairs_does_not_matter(loss, boosts):
    @given(clouds(), seeds)
    def check(pair, seed):
        x, y = (z.clone().requires_grad_() for z in pair)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed % 2**31))
        whole, permuted = loss(x, y), loss(x[order], y[order])
        torch.testing.assert_close(whole, permuted)
        # A gradient belongs to its point, wherever that stands.
        for a, b in zip(
            torch.autograd.grad(whole, [x, y]), torch.autograd.grad(permuted, [x, y]), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)

    check()


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_losses_of_anchors_move_with_their_points(similarity):
    x, y = points(9, 20), points(9, 20, seed=1)
    rows, columns = torch.randperm(9), torch.randperm(9)
    how = {**OPTIONS[similarity], "reduction": "none"}
    of_x, of_y = contrastive_loss(x, y, 0.7, 5.0, targets=torch.arange(9) % 4, **how)
    labels = rows % 4, columns % 4
    moved = contrastive_loss(x[rows], y[columns], 0.7, 5.0, targets=labels, **how)
    torch.testing.assert_close(moved, (of_x[rows], of_y[columns]))


@every_loss
def test_a_step_down_the_gradient_lowers_the_loss(loss, boosts):
    @given(clouds())
    def check(pair):
        # An angle jumps where points coincide, or one is at the origin.
        assume(torch.cdist(*pair).min() > 1e-3 and min(z.norm(dim=1).min() for z in pair) > 1e-2)
        x, y = (z.clone().requires_grad_() for z in pair)
        value = loss(x, y)
        gradients = torch.autograd.grad(value, [x, y])
        slope = float(sum(g.square().sum() for g in gradients)) ** 0.5
        if slope > 1e-6:  # else at a minimum: all pairs inside their cones, say
            step = 1e-6 / slope
            moved = (z - step * g for z, g in zip((x, y), gradients, strict=True))
            assert (value - loss(*moved)).item() == pytest.approx(1e-6 * slope, rel=0.1, abs=1e-14)

    check()


# --- Known values ---------------------------------------------------------------------------------

X = [[0.3, 0.1], [-0.2, 0.5]]
Y = [[0.9, 0.2], [-0.1, 1.5]]


def mpf_points(rows):
    return [[mpmath.mpf(v) for v in row] for row in rows]


def in_float64(rows):
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.7, 1.2])
def test_the_entailment_of_a_small_case(scale, device):
    c, far = mpmath.mpf(0.7), [[-1.5, -0.4], [1.0, -1.2]]
    with mpmath.workdps(50):
        pairs = zip(mpf_points(X), mpf_points(far), strict=True)
        how = {"aperture_scale": scale, "min_radius": 0.08}
        exact = [oracle.entailment_residual(p, q, c, **how) for p, q in pairs]
    assert min(exact) > 0
    loss = entailment_loss(*(in_float64(z).to(device) for z in (X, far)), 0.7, **how)
    assert loss.item() == pytest.approx(float(sum(exact) / 2), rel=1e-14)


def test_the_centroids_of_a_small_case(device):
    c, weights = mpmath.mpf(0.7), [mpmath.mpf(1)] * 2
    with mpmath.workdps(50):
        radii = [
            oracle.dist0(oracle.einstein_midpoint(mpf_points(z), weights, c), c) for z in (X, Y)
        ]
        exact = abs(radii[0] - mpmath.mpf(0.6)) + abs(radii[1] - mpmath.mpf(1.3))
    x, y = (in_float64(z).to(device) for z in (X, Y))
    loss = centroid_loss(text=x, image=y, curv=0.7, **RADII)
    assert loss.item() == pytest.approx(float(exact), rel=1e-13)


def test_the_objectives_are_the_sums_of_their_papers():
    """And name the parts of what they return; weights and labels reach them."""
    x, y, labels = points(6, 20), points(6, 20, seed=1), torch.tensor([0, 1, 0, 2, 1, 1])
    how = {"targets": labels}
    cosine, distance, angle = (
        contrastive_loss(x, y, 0.7, 5.0, **OPTIONS[s], **how)
        for s in ("cosine", "distance", "exterior")
    )
    inside = entailment_loss(x, y, 0.7, min_radius=0.2, aperture_scale=0.9)
    placed = centroid_loss(text=x, image=y, curv=0.7, **RADII)
    meru = MERULoss(entailment_weight=0.4, min_radius=0.2, aperture_scale=0.9)
    atmg = ATMGLoss(centroid_weight=0.3, **RADII)
    for objective, total, parts in (
        (CLIPLoss(), cosine, {"contrastive": cosine}),
        (meru, distance + 0.4 * inside, {"contrastive": distance, "entailment": inside}),
        (atmg, angle + 0.3 * placed, {"contrastive": angle, "centroid": placed}),
    ):
        torch.testing.assert_close(called(objective, x, y, targets=labels), (total, parts))
    x, y = x.float(), y.float()
    medium = contrastive_loss(x, y, 1.0, 5.0, similarity="cosine", precision="medium")
    assert torch.equal(called(CLIPLoss(precision="medium"), x, y)[0], medium)
    assert not torch.equal(called(CLIPLoss(), x, y)[0], medium)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_several_positives_are_the_double_loop(similarity):
    """SupCon's, over hypothesis' labels; points without a positive have no loss."""

    @given(clouds(), st.data())
    def check(pair, data):
        x, y = pair
        of = [
            torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=len(z), max_size=len(z))))
            for z in pair
        ]
        of[1][0] = of[0][0]  # at least one
        loss = contrastive_loss(x, y, 0.7, 5.0, **OPTIONS[similarity], targets=tuple(of))
        expected = naive(x, y, 0.7, 5.0, similarity, of[0][:, None] == of[1])
        torch.testing.assert_close(loss, expected)

    check()


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_the_limits_of_the_scale(similarity):
    """Of a small one the uniform distribution; of a large one the distance to the best rival."""
    x, y = points(7, 20), points(7, 20, seed=1)
    flat = contrastive_loss(x, y, 0.7, 1e-9, **OPTIONS[similarity])
    torch.testing.assert_close(flat, torch.tensor(7.0, dtype=torch.float64).log())
    steep = contrastive_loss(x, y, 0.7, 1e6, **OPTIONS[similarity]) / 1e6
    behind = [
        (line.amax(1) - line.diagonal()).mean()
        for line in (z if k == 0 else z.mT for k, z in enumerate(logits(x, y, 0.7, 1, similarity)))
    ]
    torch.testing.assert_close(steep, sum(behind) / 2, rtol=1e-5, atol=1e-5)


def test_inside_its_cone_a_pair_adds_nothing():
    x = points(5, 8).requires_grad_()
    loss = entailment_loss(x, 2 * x.detach())
    loss.backward()
    assert loss == 0
    assert not x.grad.any()


# --- Composed -------------------------------------------------------------------------------------


def hycoclip(image, image_box, text, text_box, curv, scale):
    """Four contrasts, four entailments, from wholes and their boxes, of the functions alone."""

    def anchors(x, y):
        how = {"similarity": "distance", "reduction": "none"}
        return contrastive_loss(x, y, curv, scale, **how)[0].mean()

    whole = contrastive_loss(image, text, curv, scale, similarity="distance")
    boxes = (anchors(image_box, text) + anchors(text_box, image)) / 2
    across = entailment_loss(text, image, curv, aperture_scale=0.7)
    across = across + entailment_loss(text_box, image_box, curv, aperture_scale=0.7)
    within = entailment_loss(image_box, image, curv, aperture_scale=1.2)
    within = within + entailment_loss(text_box, text, curv, aperture_scale=1.2)
    return (whole + boxes) / 2 + 0.2 * (across + within) / 2


def test_four_way_entailment_composes():
    """A hierarchy in its order has none of the loss; turned around it has; a step lowers it."""
    text_box = points(6, 12, radius=0.5)
    chain = [text_box, 2 * text_box, 4 * text_box, 8 * text_box]  # box, text, image box, image
    text_box, _, image_box, image = chain
    ordered = entailment_loss(text_box, image_box) + entailment_loss(image_box, image)
    turned = entailment_loss(image_box, text_box) + entailment_loss(image, image_box)
    assert ordered == 0 < turned
    start = [points(6, 12, seed=k).requires_grad_() for k in range(4)]
    loss = hycoclip(*start, 1.0, 5.0)
    gradients = torch.autograd.grad(loss, start)
    assert all(g.any() for g in gradients)
    assert hycoclip(*(z - 1e-3 * g for z, g in zip(start, gradients, strict=True)), 1.0, 5.0) < loss


# --- Half precision -------------------------------------------------------------------------------


class Towers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.text, self.image = torch.nn.Linear(32, 16), torch.nn.Linear(32, 16)
        self.lift, self.curvature, self.scale = Lift(16), Curvature(0.5), LogitScale()

    def forward(self, text, image):
        curv = self.curvature()
        points = [self.lift(t(z), curv) for t, z in ((self.text, text), (self.image, image))]
        return (*points, curv, self.scale())


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(objective, dtype):
    """float32 geometry, and finite gradients: of duplicates, too, and through a GradScaler."""
    torch.manual_seed(0)
    model = Towers()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    text, image = torch.randn(2, 12, 32)
    text[1], image[1] = text[0], image[0]  # duplicates in the batch
    losses = []
    for _ in range(20):
        with torch.autocast("cpu", dtype):
            features = model.text(text)
            *embedded, curv, scale = model(text, image)
            total, parts = called(objective, *embedded, curv, scale)
        assert features.dtype == dtype
        assert {t.dtype for t in (*embedded, total, *parts.values())} == {torch.float32}
        optimizer.zero_grad()
        scaler.scale(total).backward()
        scaler.unscale_(optimizer)
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        scaler.step(optimizer)
        scaler.update()
        losses.append(total.item())
    assert scaler.get_scale() == 2.0**10  # no step was skipped
    assert losses[-1] < losses[0]


# --- Arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [*OBJECTIVES.values(), HyCoCLIPLoss()], ids=repr)
def test_texts_and_images_are_named(objective):
    """In whichever order code has them; by place, an order could be wrong and train on."""
    x, y = points(4, 20), points(4, 20, seed=1)
    boxes = {"box_text": x, "box_image": y} if isinstance(objective, HyCoCLIPLoss) else {}
    given = {"text": x, "image": y, "curv": 0.7, "logit_scale": 5.0} | boxes
    backwards = dict(reversed(given.items()))
    torch.testing.assert_close(objective(**given), objective(**backwards), rtol=0, atol=0)
    with pytest.raises(TypeError, match="positional"):
        objective(*given.values())
    with pytest.raises(TypeError, match="positional"):
        centroid_loss(x, y, 0.7, **RADII)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MERULoss(entailment_weight=-1.0), "entailment_weight: expected"),
        (lambda: MERULoss(entailment_weight=float("inf")), "entailment_weight: expected"),
        (lambda: MERULoss(min_radius=0.0), "min_radius: expected"),
        (lambda: MERULoss(aperture_scale=-1.0), "aperture_scale: expected"),
        (
            lambda: called(MERULoss(), torch.ones(1, 2), torch.ones(3, 2), targets=2),
            "as many of each",
        ),
        (lambda: ATMGLoss(centroid_weight=-1.0, **RADII), "centroid_weight: expected"),
        (
            lambda: ATMGLoss(centroid_weight=1.0, text_radius=2.0, image_radius=1.0),
            "0 < text_radius < image_radius",
        ),
        (
            lambda: centroid_loss(
                text=torch.ones(2, 2), image=torch.ones(2, 2), text_radius=1.0, image_radius=1.0
            ),
            "0 < text_radius < image_radius",
        ),
        (
            lambda: centroid_loss(
                text=torch.ones(2, 2),
                image=torch.ones(2, 2),
                text_radius=1.0,
                image_radius=float("inf"),
            ),
            "0 < text_radius < image_radius",
        ),
        (
            lambda: centroid_loss(
                text=torch.ones(2, 2), image=torch.ones(2, 2), curv=torch.ones(2), **RADII
            ),
            "curv: expected one number",
        ),
        (lambda: entailment_loss(torch.ones(0, 2), torch.ones(0, 2)), "at least one pair"),
        (
            lambda: entailment_loss(torch.ones(2, 2), torch.ones(2, 2), aperture_scale=0.0),
            "aperture_scale",
        ),
        (lambda: CLIPLoss(impl="fast"), "impl: expected"),
        (lambda: CLIPLoss(precision="low"), "precision: expected"),
        (
            lambda: ATMGLoss(apex="x", centroid_weight=0.1, **RADII),
            "apex: expected 'text' or 'query', got 'x'",
        ),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
