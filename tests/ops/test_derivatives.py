"""First and second derivatives against finite differences, reverse and forward mode, in float64.

`test_exactness.py` measures how exact first gradients are; here it is shown that every derivative
up to the second is the derivative of the value, in every tensor argument, curvature included. For
`frechet_mean` the finite differences are those of the optimum itself, found anew at each step: so
they also show that its implicit derivatives are the optimum's.
"""

import pytest
import torch
from calls import CURV, ONE_OF_EACH, SIGNATURES, arguments
from torch.autograd import gradcheck, gradgradcheck

from lorentzkit import ops

MEANS = {"einstein_midpoint", "frechet_mean"}
ANGLES = {"exterior_angle", "interior_angle", "entailment_residual"}
TANGENT = {"u", "v", "g"}

# Where an op is not differentiable; its convention there is in test_degenerate.py.
KINKS = {
    "first point 0": {"dist0", *ANGLES},
    "all points 0": {"dist", "dist0", *ANGLES},
    "points equal": {"dist", *ANGLES},
    "points aligned": ANGLES,
    "tangent 0": {"tangent_norm"},
}


def arguments_at(place, op):
    """Arguments at a place where textbook formulas are 0/0; None if the op knows no such place."""
    args, names = arguments(op, batch=(), D=2), SIGNATURES[op]
    vectors = [i for i, name in enumerate(names) if name in ("x", "y", "k", "p")]
    if place == "tangent 0":
        zero = [i for i, name in enumerate(names) if name in TANGENT or op == "expmap0"]
        if not zero:
            return None
        args[zero[0]] = 0 * args[zero[0]]
        return args
    if op in MEANS:
        points, weights = args
        new = {
            "first point 0": torch.cat([0 * points[:1], points[1:]]),
            "all points 0": 0 * points,
            "points equal": points[:1].repeat(3, 1),
            "points aligned": points[:1] * torch.tensor([[1.0], [2.0], [-1.0]], dtype=points.dtype),
        }
        return [new[place], weights]
    if not vectors or (len(vectors) < 2 and place != "first point 0"):
        return None
    first, *rest = vectors
    if place.endswith("0"):
        for i in vectors if place == "all points 0" else [first]:
            args[i] = 0 * args[i]
    else:
        for i in rest:
            args[i] = args[first] * (1.0 if place == "points equal" else 2.0)
    return args


def check(op, args):
    function = getattr(ops, op)
    tensors = [t.clone().requires_grad_() for t in (*args, torch.tensor(CURV).double())]
    # All values and derivatives are of size 1. Central differences with step 1e-6 truncate 1e-12 of
    # that and round 1e-16 / 1e-6.
    assert gradcheck(function, tensors, atol=1e-8, rtol=1e-6, check_forward_ad=True)
    # Second derivatives are up to 1/radius times as large.
    assert gradgradcheck(function, tensors, atol=1e-7, rtol=1e-6)


@pytest.mark.few(op=ONE_OF_EACH)
@pytest.mark.parametrize("op", SIGNATURES)
def test_at_generic_points(op):
    check(op, arguments(op, batch=() if op in MEANS else (2,)))


@pytest.mark.few(op=ONE_OF_EACH)
@pytest.mark.parametrize("op", SIGNATURES)
def test_near_the_origin(op):
    # The k-th derivative of a distance or an angle is as large as 1/radius^k, up to a factor of the
    # radius: nearer than 0.1, differences do not see it.
    singular = op in KINKS["all points 0"]
    check(op, arguments(op, batch=(), D=2, radius=0.1 if singular else 1e-4))


@pytest.mark.few(op=["dist", "expmap"])
@pytest.mark.parametrize(
    ("op", "place"),
    [
        pytest.param(op, place, id=f"{op}-{place}")
        for op in SIGNATURES
        for place in KINKS
        if op not in KINKS[place] and arguments_at(place, op)
    ],
)
def test_where_textbook_formulas_are_0_over_0(op, place):
    check(op, arguments_at(place, op))


@pytest.mark.few(op="expmap")
@pytest.mark.parametrize("op", ["dist", "logmap", "expmap", "transp", "einstein_midpoint"])
def test_far_out(op):
    # At a = 5 numbers are of size e^5 and derivatives of maps of size e^10, so that is what the
    # tolerance is relative to: gradcheck's own is relative entry by entry.
    args, curv = arguments(op, batch=(), D=2, radius=74.0), torch.tensor(1.0).double()
    tensors = [t.clone().requires_grad_() for t in (*args, curv)]
    rows = torch.autograd.functional.jacobian(getattr(ops, op), tuple(tensors))
    size = max(row.abs().max().item() for row in rows)
    assert gradcheck(getattr(ops, op), tensors, atol=1e-6 * size, rtol=1e-6, check_forward_ad=True)


def test_a_wrong_derivative_is_noticed():
    def value_of_another(x, y, curv):
        good = ops.dist(x, y, curv)
        return good.detach() + 1.0001 * (good - good.detach())

    x, y = (t.requires_grad_() for t in arguments("dist", batch=()))
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        gradcheck(value_of_another, (x, y, torch.tensor(CURV).double()), atol=1e-8, rtol=1e-6)
