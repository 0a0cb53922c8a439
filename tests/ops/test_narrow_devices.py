"""Devices without float64 or frexp, as Apple's GPUs are: what is float32 or less uses neither.

No such device is at hand. It is played on the CPU, strictly: whatever makes a float64 tensor, or
calls frexp, raises. And where float32 numbers have no wider type, the ops are as exact as ever.
"""

import sys
from functools import partial

import geoopt
import pytest
import torch
from calls import CURV, ONE_OF_EACH, SIGNATURES, arguments
from condition import OPS, gradient_errors, value_error
from corpus import assert_finite, corpus
from hypothesis import given, note, settings
from hypothesis import strategies as st
from strategies import CASES, cotangents
from tolerances import tolerance
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode

from lorentzkit import losses, nn, ops
from lorentzkit._geometry import special, vectors
from lorentzkit.compat import meru
from lorentzkit.manifolds import Lorentz, WrappedNormal

F32, F64 = torch.float32, torch.float64
HALVES = [torch.float16, torch.bfloat16]


class NarrowDevice(TorchDispatchMode):
    """Raises where Apple's GPUs would."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        definition = OPDEFS.get(func._schema.name)
        if definition is None:
            out = func(*args, **(kwargs or {}))
        else:  # one of ours: what runs below it is looked at, too
            with self:
                out = definition._init_fn(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.frexp:
            raise AssertionError("frexp is not there")
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == F64:
                raise AssertionError(f"{func} gave float64, which is not there")
        return out


@pytest.fixture
def without_float64(monkeypatch):
    """Nothing is wider than float32."""
    monkeypatch.setattr(vectors, "has_float64", lambda device: False)


@pytest.fixture(params=["eager", "plain"])
def narrow(request, monkeypatch, without_float64):
    """A `NarrowDevice`; "eager": as if no mode were there, as it is on the device itself."""
    if request.param == "eager":
        monkeypatch.setattr(special, "_get_current_dispatch_mode", lambda: None)
        for name, module in list(sys.modules.items()):
            # Each has the function under its own name. The device is none whose numbers are near.
            if name.startswith("lorentzkit.") and hasattr(module, "values_at_hand"):
                monkeypatch.setattr(module, "values_at_hand", lambda tensor: False)
    return NarrowDevice()


def points(n=5, D=3, seed=0, dtype=F32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, D, generator=generator).to(dtype).requires_grad_()


def run(narrow, function, *args):
    """Forward and backward; what comes out is finite and of float32 at most."""
    with narrow:
        out = function(*args)
        tensors = [out] if isinstance(out, torch.Tensor) else [t for t in out if t.requires_grad]
        leaves = [a for a in args if isinstance(a, torch.Tensor) and a.requires_grad]
        gradients = torch.autograd.grad(sum(t.float().sum() for t in tensors), leaves)
    for t in (*tensors, *gradients):
        assert t.isfinite().all()
        assert t.dtype != F64
    return tensors


# --- The device ---------------------------------------------------------------------------------


def test_the_device_has_no_float64_and_no_frexp(without_float64):
    x = torch.ones(3)
    with NarrowDevice():
        for function in (torch.Tensor.double, torch.frexp, lambda x: x.new_zeros(1, dtype=F64)):
            with pytest.raises(AssertionError, match="not there"):
                function(x)


@pytest.mark.parametrize("call", ["elementwise", "pairwise", "mean"])
@pytest.mark.parametrize("backward", [False, True])
def test_where_the_library_takes_the_device_for_another_it_raises(monkeypatch, call, backward):
    """In Functions, in their backward passes and within custom ops, too."""
    monkeypatch.setattr(special, "_get_current_dispatch_mode", lambda: None)
    function = {
        "elementwise": ops.dist,
        "pairwise": lambda x, y: ops.pairwise_topk(x, y, k=2)[0],
        "mean": lambda x, y: ops.einstein_midpoint(x) + ops.einstein_midpoint(y),
    }[call]
    x, y = points(), points(seed=1)
    if backward:
        out = function(x, y).sum()
        with NarrowDevice(), pytest.raises(AssertionError, match="float64"):
            out.backward()
    else:
        with NarrowDevice(), pytest.raises(AssertionError, match="float64"):
            function(x, y)


# --- Everything runs there ------------------------------------------------------------------------


@pytest.mark.few(dtype=F32)
@pytest.mark.parametrize("dtype", [F32, *HALVES])
@pytest.mark.parametrize("op", SIGNATURES)
def test_every_op(narrow, op, dtype):
    args = [a.to(dtype).requires_grad_() for a in arguments(op, dtype=F32)]
    curv = torch.tensor(CURV, requires_grad=True)
    (by_number,) = run(narrow, lambda *a: getattr(ops, op)(*a, CURV), *args)
    (by_tensor,) = run(narrow, getattr(ops, op), *args, curv)
    (by_tensors,) = run(narrow, getattr(ops, op), *args, torch.full((4,), CURV).requires_grad_())
    for out in (by_number, by_tensor, by_tensors):
        assert out.dtype == F32
        torch.testing.assert_close(out, getattr(ops, op)(*args, CURV), rtol=1e-4, atol=1e-5)


def test_a_curvature_of_the_host_in_float64(narrow):
    """A number as it were: 0-dim tensors of the CPU go with those of any device."""
    curv = torch.tensor(CURV, dtype=F64)
    x, y = points(), points(seed=1)
    expected = ops.dist(x, y, CURV)
    torch.testing.assert_close(run(narrow, lambda x, y: ops.dist(x, y, curv), x, y)[0], expected)


@pytest.mark.few(dtype=F32, D=40)
@pytest.mark.parametrize("dtype", [F32, *HALVES])
@pytest.mark.parametrize("D", [3, 40])
@pytest.mark.parametrize("op", ["inner", "dist", "exterior_angle"])
@pytest.mark.parametrize("impl", ["streaming", "reference"])
def test_all_pairs(narrow, impl, op, D, dtype):
    x, y, curv = points(D=D, dtype=dtype), points(7, D, 1, dtype), torch.tensor(CURV)
    pairwise = getattr(ops, f"pairwise_{op}")
    run(narrow, lambda x, y, c: pairwise(x, y, c, impl=impl), x, y, curv.requires_grad_())
    run(narrow, lambda x, y: pairwise(x, y, CURV, impl=impl), x, y)


@pytest.mark.parametrize("similarity", ["distance", "angle", "inner"])
def test_the_nearest(narrow, similarity):
    x, y, curv = points(), points(40, seed=1), torch.tensor(CURV, requires_grad=True)
    how = {"k": 3, "similarity": similarity}
    run(narrow, lambda x, y, c: ops.pairwise_topk(x, y, c, **how), x, y, curv)


def total(objective, x, y, c, s, **boxes):
    return objective(text=x, image=y, curv=c, logit_scale=s, **boxes)[0]


LOSSES = {
    **{
        f"{similarity}, {impl}": lambda x, y, c, s, similarity=similarity, impl=impl: (
            losses.contrastive_loss(x, y, c, s, similarity=similarity, impl=impl)
        )
        for similarity in ("angle", "distance", "cosine")
        for impl in ("streaming", "reference")
    },
    "labels": lambda x, y, c, s: losses.contrastive_loss(
        x, y, c, s, targets=torch.tensor([0, 0, 1, 2, 2]), reduction="none"
    ),
    "clip": partial(total, losses.CLIPLoss()),
    "meru": partial(total, losses.MERULoss()),
    "atmg": partial(total, losses.ATMGLoss(text_radius=0.5, image_radius=1.0, centroid_weight=0.1)),
    "hycoclip": lambda x, y, c, s: total(
        losses.HyCoCLIPLoss(), x, y, c, s, box_text=x.roll(1, 0), box_image=y.roll(1, 0)
    ),
    "hycoclip, boxes of some pairs": lambda x, y, c, s: total(
        losses.HyCoCLIPLoss(),
        x,
        y,
        c,
        s,
        box_text=x[1:4],
        box_image=y[1:4],
        box_of=torch.tensor([0, 0, 4]),
        targets=torch.tensor([0, 0, 1, 2, 2]),
    ),
    "entailment": lambda x, y, c, s: s * losses.entailment_loss(x, y, c),
    "centroid": lambda x, y, c, s: (
        s * losses.centroid_loss(text=x, image=y, curv=c, text_radius=0.5, image_radius=1.0)
    ),
}


@pytest.mark.few(D=40)
@pytest.mark.parametrize("D", [3, 40])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss(narrow, loss, D):
    curv, scale = (torch.tensor(value, requires_grad=True) for value in (CURV, 5.0))
    x, y = points(D=D), points(D=D, seed=1)

    def clip_loss(x, y, c, s):  # CLIP's does not depend on the curvature
        out = LOSSES[loss](x, y, c, s)
        return (out + 0 * c) if isinstance(out, torch.Tensor) else [o + 0 * c for o in out]

    run(narrow, clip_loss, x, y, curv, scale)


@pytest.mark.parametrize("cast", [None, torch.bfloat16])
def test_every_module(narrow, cast):
    modules = [nn.Curvature(0.1), nn.LogitScale(), nn.Lift(3), nn.LorentzMLR(3, 4)]
    curvature, scale, lift, head = (m if cast is None else m.to(cast) for m in modules)
    logits = run(narrow, lambda x: scale() * head(lift(x, curvature()), curvature()), points())
    assert logits[0].shape == (5, 4)


def test_merus_functions(narrow):
    x, y = points(), points(seed=1)
    for function in (meru.pairwise_dist, meru.pairwise_inner, meru.oxy_angle, meru.oxy_angle_eval):
        run(narrow, function, x, y)
    for function in (meru.exp_map0, meru.log_map0, meru.half_aperture):
        run(narrow, function, x)


# --- The manifold -------------------------------------------------------------------------------


@pytest.mark.parametrize("learnable", [False, True])
def test_the_manifold_moves_there(without_float64, learnable):
    model = torch.nn.ModuleList([Lorentz(0.7, learnable=learnable)])
    assert model[0].curv.dtype == F64  # for float64 points, as long as it is on the host
    saved = model.state_dict()
    with NarrowDevice():
        model.to("cpu")
    assert model[0].curv.dtype == F32
    assert float(model[0].curv.detach()) == pytest.approx(0.7)
    assert [name for name, _ in model.named_parameters()] == ["0.curvature.log_curv"] * learnable
    model.load_state_dict(saved)
    assert float(model[0].curv.detach()) == pytest.approx(0.7)


def test_elsewhere_it_keeps_all_digits():
    assert Lorentz(0.7).to("cpu").curv.dtype == F64
    assert Lorentz(0.7).float().curv.dtype == F32


@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize(
    "optimizer", [geoopt.optim.RiemannianSGD, geoopt.optim.RiemannianAdam], ids=["SGD", "Adam"]
)
def test_optimisers_step_there(narrow, optimizer, learnable):
    manifold, y = Lorentz(CURV, learnable=learnable).to("cpu"), points(seed=1).detach()
    x = geoopt.ManifoldParameter(torch.zeros(5, 3), manifold=manifold)
    optimiser = optimizer([x, *manifold.parameters()], lr=0.1)
    with torch.no_grad():
        before = manifold.dist(x, y)
    with narrow:
        for _ in range(3):
            optimiser.zero_grad()
            (manifold.dist2(x, y).sum() / 2).backward()
            optimiser.step()
        assert (manifold.dist(x, y) < before).all()


def test_the_manifolds_other_methods_run_there(narrow):
    manifold, x, y = Lorentz(CURV).to("cpu"), points().detach(), points(seed=1).detach()
    with narrow:
        u = manifold.logmap(x, y)
        for gradients in (
            manifold.transp(x, y, u),
            manifold.transp_follow_retr(x, u, u),
            *manifold.retr_transp(x, u, u),
            *manifold.expmap_transp(x, u, u),
            manifold.norm(x, u),
            manifold.geodesic(0.5, x, y),
            manifold.transp0back(x, manifold.transp0(x, u)),
            manifold.expmap0(manifold.logmap0(x)),
            manifold.dist0(x),
            manifold.random(4, 3),
            WrappedNormal(manifold, x, 0.5).log_prob(y),
        ):
            assert gradients.isfinite().all()
        assert manifold.check_point_on_manifold(x)


# --- Exact there, too -----------------------------------------------------------------------------

# (op, "value" or "gradient") -> what the bound of `tolerances.py` is here, and why.
EXCEPTIONS = {
    ("frechet_mean", "gradient"): (
        80.0,
        "The equations for its derivatives have a condition number of s coth(s) that the mean "
        "itself has not (tolerances.py): here up to 80, and nothing wider to solve them in.",
    ),
}


def bound(op, result_kind):
    return EXCEPTIONS.get((op, result_kind), (tolerance(op, result_kind, F32), ""))[0]


def representable(op):
    """Tangent vectors so short that their products with 1/x0^2 underflow lose digits here."""

    def long_enough(case):
        named = zip(SIGNATURES[op], case.args, strict=True)
        tangents = [v for name, v in named if name in ("u", "v", "g")]
        return all(not v.any() or v.double().norm() > 2.0**-66 for v in tangents)

    return long_enough


def examples(op):
    """A few of the profile's: `test_exactness.py` has many, and a minute is to be enough."""
    share = 12 if op == "frechet_mean" else 4
    return settings(max_examples=max(1, settings.default.max_examples // share))


every_exact_op = pytest.mark.parametrize("op", OPS)


@pytest.mark.few(op=ONE_OF_EACH)
@every_exact_op
def test_values_are_exact(without_float64, op):
    @examples(op)
    @given(st.data())
    def check(data):
        case = data.draw(CASES[op](F32, smooth=False).filter(representable(op)))
        assert value_error(op, case.args, case.curv, **case.kw) <= bound(op, "value")

    check()


@pytest.mark.few(op=ONE_OF_EACH)
@every_exact_op
def test_gradients_are_exact(without_float64, op):
    @examples(op)
    @given(st.data())
    def check(data):
        case = data.draw(CASES[op](F32, smooth=True).filter(representable(op)))
        w = data.draw(cotangents(case)) if OPS[op].endswith("vector") else None
        errors = gradient_errors(op, case.args, case.curv, w, **case.kw)
        note(f"errors: {errors}")
        assert max(errors.values()) <= bound(op, "gradient")

    check()


@pytest.mark.few(op=ONE_OF_EACH, D=3, curv=1.0)
@pytest.mark.parametrize("op", SIGNATURES)
@pytest.mark.parametrize("D", [1, 3])
@pytest.mark.parametrize("curv", [1.0, 1e-2, 1e2])
def test_the_corpus_gives_finite_values_and_gradients(without_float64, op, D, curv):
    assert_finite(op, corpus(op, F32, D, curv), curv)
