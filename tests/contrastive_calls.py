"""The contrastive loss against its naive expression, in float64."""

import torch
from torch.nn.functional import cosine_similarity

from lorentzkit import ops
from lorentzkit.losses import contrastive_loss

# Options of the loss, by the name that they have inside.
OPTIONS = {
    "angles": {"similarity": "angle", "apex": "query"},
    "exterior": {"similarity": "angle"},
    "distance": {"similarity": "distance"},
    "cosine": {"similarity": "cosine"},
}
SIMILARITIES = [*OPTIONS]
NAMES = ["x", "y", "curv", "logit_scale"]


def logits(x, y, curv, scale, similarity):
    """What rows see and what columns see, ``(N, M)`` both, from the elementwise ops."""
    x, y = x[:, None], y[None]
    if similarity == "angles":
        return -scale * ops.exterior_angle(x, y, curv), scale * ops.exterior_angle(y, x, curv)
    if similarity == "exterior":
        both = -scale * ops.exterior_angle(x, y, curv)
    elif similarity == "distance":
        both = -scale * ops.dist(x, y, curv)
    else:
        both = scale * cosine_similarity(x, y, dim=-1)
    return both, both


def naive(x, y, curv, scale, similarity, positive):
    """SupCon's double loop, both ways; ``positive`` is the mask ``(N, M)``."""
    rows, columns = logits(x, y, curv, scale, similarity)
    losses = []
    for lines, mask in ((rows, positive), (columns.T, positive.T)):
        terms = [
            torch.stack([line.logsumexp(0) - line[j] for j in of.nonzero()[:, 0]]).mean()
            for line, of in zip(lines, mask, strict=True)
            if of.any()
        ]
        losses.append(torch.stack(terms).mean())
    return (losses[0] + losses[1]) / 2


def leaves(x, y, dtype=torch.float64, curv=0.7, scale=5.0):
    scalars = (torch.tensor(v, dtype=dtype) for v in (curv, scale))
    return [t.to(dtype).clone().requires_grad_() for t in (x, y, *scalars)]


def compare(x, y, similarity, positive, targets, scale=5.0, rtol=1e-9, atol=1e-9, **how):
    """Value and every gradient by name, against the naive expression at the same inputs."""
    inputs = leaves(x, y, x.dtype, scale=scale)
    loss = contrastive_loss(*inputs, targets=targets, **OPTIONS[similarity], **how)
    got = torch.autograd.grad(loss, inputs, materialize_grads=True)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    truth = naive(*exact, similarity, positive)
    expected = torch.autograd.grad(truth, exact, materialize_grads=True)
    torch.testing.assert_close(loss.double(), truth, rtol=rtol, atol=atol)
    for name, a, b in zip(NAMES, got, expected, strict=True):
        size = float(b.abs().max())
        assert (a.double() - b).abs().max() <= rtol * size + atol, name
