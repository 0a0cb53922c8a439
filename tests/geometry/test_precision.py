"""Products keep all digits of float32, whatever precision PyTorch is set to.

Few CPUs round what they may: here one is imitated that always does, below autograd and custom ops.
"""

from __future__ import annotations

import threading
import warnings
from contextlib import nullcontext

import pytest
import torch

from lorentzkit import losses, nn, ops
from lorentzkit._geometry import precision
from lorentzkit._geometry.precision import full_precision
from lorentzkit.fused import registry, streaming

LEVELS = [("generic", "all"), ("cuda", "all"), ("cuda", "matmul")]
LEVELS += [("mkldnn", "all"), ("mkldnn", "matmul")]
NEW = hasattr(torch._C, "_get_fp32_precision_getter")  # since torch 2.9
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
D = 20

# Who sets what: the levels of the new interface, and `torch.set_float32_matmul_precision`.
SETTINGS = {
    "high": ({}, "high"),
    "medium": ({}, "medium"),
    "generic bf16": ({0: "bf16"}, "highest"),
    "generic tf32": ({0: "tf32"}, "highest"),
    "cuda tf32": ({1: "tf32"}, "highest"),
    "cuda.matmul tf32": ({2: "tf32"}, "highest"),
    "mkldnn bf16": ({3: "bf16"}, "highest"),
    "mkldnn.matmul bf16": ({4: "bf16"}, "highest"),
    "mkldnn.matmul bf16, generic ieee": ({0: "ieee", 4: "bf16"}, "highest"),
    "generic bf16, cuda.matmul ieee": ({0: "bf16", 2: "ieee"}, "highest"),
    "high, then mkldnn.matmul bf16": ({4: "bf16"}, "high"),
}
if not NEW:
    SETTINGS = {name: (levels, legacy) for name, (levels, legacy) in SETTINGS.items() if not levels}


def apply(levels, legacy):
    torch.set_float32_matmul_precision(legacy)
    if NEW:
        for n, level in enumerate(LEVELS):
            if n in levels or legacy == "highest":
                torch._C._set_fp32_precision_setter(*level, levels.get(n, "none"))


@pytest.fixture(autouse=True)
def _defaults():
    yield
    apply({}, "highest")


@pytest.fixture(params=SETTINGS.values(), ids=SETTINGS)
def setting(request):
    return lambda: apply(*request.param)


every_device = pytest.mark.parametrize("device", DEVICES)


# --- A processor that rounds ----------------------------------------------------------------------


def allowed():
    """The precision that products are allowed, of CPU and GPU the lower."""
    if not NEW:
        return {"highest": "ieee", "high": "tf32"}.get(torch.get_float32_matmul_precision(), "bf16")
    precisions = [torch._C._get_fp32_precision_getter(b, "matmul") for b in ("cuda", "mkldnn")]
    return next((p for p in ("bf16", "tf32") if p in precisions), "ieee")


def multiplied(a, b):
    setting = allowed()
    if a.dtype == torch.float32 and setting != "ieee":
        a, b = ((z.view(torch.int32) & (-1 << {"tf32": 13, "bf16": 16}[setting])) for z in (a, b))
        a, b = a.view(torch.float32), b.view(torch.float32)
    return torch.from_numpy(a.detach().numpy() @ b.detach().numpy())


def plus(total, a, b, beta=1, alpha=1):
    return beta * total + alpha * multiplied(a, b)


KERNELS = {
    "mm": multiplied,
    "mm.out": lambda a, b, out: out.copy_(multiplied(a, b)),
    "bmm": multiplied,
    "bmm.out": lambda a, b, out: out.copy_(multiplied(a, b)),
    "addmm": lambda t, a, b, beta=1, alpha=1: plus(t, a, b, beta, alpha),
    "addmm_": lambda t, a, b, beta=1, alpha=1: t.copy_(plus(t, a, b, beta, alpha)),
    "addmm.out": lambda t, a, b, beta=1, alpha=1, out=None: out.copy_(plus(t, a, b, beta, alpha)),
    "baddbmm": lambda t, a, b, beta=1, alpha=1: plus(t, a, b, beta, alpha),
}


@pytest.fixture
def _rounding_cpu():
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they are there already
        for name, kernel in KERNELS.items():
            library.impl(name, kernel, "CPU")
    yield
    library._destroy()


rounding = pytest.mark.usefixtures("_rounding_cpu")


# --- What is called -------------------------------------------------------------------------------


def points(device, n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (0.3 * torch.randn(n, D, generator=generator)).to(device).requires_grad_()


HEAD = nn.LorentzMLR(D, 6)


def class_logits(x, y, curv):
    """With y as the weight."""
    parameters = {"weight": y, "offset": torch.linspace(-1, 1, 6, device=x.device)}
    return torch.func.functional_call(HEAD, parameters, (x, curv))


def contrastive(similarity):
    """By blocks: in few pairs, NumPy's float64 has no such setting (see test_paired.py)."""
    setting = {"similarity": similarity, "impl": "streaming"}
    return lambda x, y, c: losses.contrastive_loss(x, y, c, 5.0, **setting)


def topk(similarity):
    how = {"k": 2, "similarity": similarity, "impl": "streaming"}
    return lambda x, y, c: ops.pairwise_topk(x, y, c, **how)[0]


def pairwise(op, impl="streaming"):
    return lambda x, y, c: getattr(ops, op)(x, y, c, impl=impl)


CALLS = {
    **{op: pairwise(op) for op in ("pairwise_inner", "pairwise_dist", "pairwise_exterior_angle")},
    "pairwise_dist, reference": pairwise("pairwise_dist", "reference"),
    "pairwise_exterior_angle, reference": pairwise("pairwise_exterior_angle", "reference"),
    **{f"contrastive_loss, {s}": contrastive(s) for s in ("angle", "distance", "cosine")},
    **{f"pairwise_topk, {s}": topk(s) for s in ("distance", "angle", "inner")},
    "LorentzMLR": class_logits,
    "einstein_midpoint": lambda x, y, c: ops.einstein_midpoint(torch.cat([x, y]), curv=c),
    "frechet_mean": lambda x, y, c: ops.frechet_mean(torch.cat([x, y]), curv=c),
    "centroid_loss": lambda x, y, c: losses.centroid_loss(
        text=x, image=y, curv=c, text_radius=0.5, image_radius=1.0
    ),
    "entailment_loss": lambda x, y, c: losses.entailment_loss(x, y, c, min_radius=0.1),
}
every_call = pytest.mark.parametrize("call", CALLS)


def results(call, device, compiled=None):
    """Value and gradients."""
    arguments = points(device), points(device, seed=1), torch.tensor(0.7, device=device)
    arguments[2].requires_grad_()
    value = (compiled or CALLS[call])(*arguments)
    grad_output = torch.linspace(-1, 1, value.numel(), device=device).view(value.shape) + 0.3
    return (
        value.detach(),
        *torch.autograd.grad(value, arguments, grad_output, materialize_grads=True),
    )


def worst(got, expected):
    errors = (
        (g - e).norm() / e.norm().clamp_min(1e-30) for g, e in zip(got, expected, strict=True)
    )
    return max(float(e) for e in errors)


# --- Values and gradients -------------------------------------------------------------------------


@rounding
@every_device
@every_call
def test_no_setting_changes_a_result(call, setting, device):
    expected = results(call, device)
    setting()
    assert worst(results(call, device), expected) <= 1e-6


@rounding
@every_device
def test_no_setting_changes_a_second_derivative(setting, device):
    def second():
        x, y = points(device), points(device, seed=1)
        (by,) = torch.autograd.grad(
            ops.pairwise_dist(x, y, impl="streaming").square().sum(), x, create_graph=True
        )
        return torch.autograd.grad(by.square().sum(), (x, y))

    expected = second()
    setting()
    assert worst(second(), expected) <= 1e-6


@pytest.mark.thorough
@rounding
@pytest.mark.parametrize("call", ["LorentzMLR", "pairwise_dist", "contrastive_loss, angle"])
@pytest.mark.parametrize("name", ["medium", *(["mkldnn.matmul bf16"] if NEW else [])])
def test_nor_one_that_is_compiled_and_the_setting_may_come_later(call, name):
    compiled = torch.compile(CALLS[call], backend="aot_eager", fullgraph=True)
    expected = results(call, "cpu")
    assert worst(results(call, "cpu", compiled), expected) <= 1e-6
    apply(*SETTINGS[name])
    assert worst(results(call, "cpu", compiled), expected) <= 1e-6


@rounding
def test_nor_logits_that_are_exported():
    x = points("cpu").detach()
    expected = HEAD(x).detach()
    program = torch.export.export(HEAD, (x,)).module()
    apply(*SETTINGS["medium"])
    assert worst([program(x).detach()], [expected]) <= 1e-6


# --- The imitation notices ------------------------------------------------------------------------


@rounding
def test_a_plain_product_is_rounded(setting):
    x, y = points("cpu").detach(), points("cpu", seed=1).detach()
    expected = x @ y.mT
    setting()
    assert worst([x @ y.mT], [expected]) > 1e-4


@rounding
@pytest.mark.parametrize("call", ["pairwise_dist", "contrastive_loss, angle", "LorentzMLR"])
def test_without_precautions_results_are_rounded(call, setting, monkeypatch):
    expected = results(call, "cpu")
    monkeypatch.setattr(registry, "full_precision", nullcontext)
    monkeypatch.setattr(precision, "reduced", lambda: False)
    setting()
    assert worst(results(call, "cpu"), expected) > 1e-5


# --- The settings afterwards ----------------------------------------------------------------------


def told(ask):
    try:
        return ask()
    except RuntimeError:  # PyTorch does not tell what its two interfaces contradict each other in
        return "contradiction"


def state():
    """What PyTorch says, for every precision that levels may inherit."""
    legacy = torch.get_float32_matmul_precision, lambda: torch.backends.cuda.matmul.allow_tf32
    if not NEW:
        return [ask() for ask in legacy]
    precisions, generic = [], torch._C._get_fp32_precision_getter(*LEVELS[0])
    for inherited in (generic, "none", "ieee", "tf32", "bf16"):
        torch._C._set_fp32_precision_setter(*LEVELS[0], inherited)
        precisions.append([torch._C._get_fp32_precision_getter(*level) for level in LEVELS])
        precisions.append([told(ask) for ask in legacy])
    torch._C._set_fp32_precision_setter(*LEVELS[0], generic)
    return precisions


def test_settings_are_as_before(setting):
    setting()
    before = state()
    results("contrastive_loss, angle", "cpu")
    results("LorentzMLR", "cpu")
    assert state() == before
    with full_precision():
        assert allowed() == "ieee"
        # The two interfaces agree, or code that asks the old one would raise.
        assert torch.get_float32_matmul_precision() == "highest"
        assert torch.backends.cuda.matmul.allow_tf32 is False
    assert state() == before


def test_settings_are_as_before_after_an_error(setting, monkeypatch):
    def fails(*args):
        raise ArithmeticError(allowed())

    setting()
    before = state()
    monkeypatch.setattr(streaming, "matrix", fails)
    with pytest.raises(ArithmeticError, match="ieee"):
        ops.pairwise_dist(points("cpu"), points("cpu"), impl="streaming")
    assert state() == before


def test_calls_in_two_threads_keep_full_precision_until_the_last_is_done(setting):
    setting()
    before, entered, leave = state(), threading.Event(), threading.Event()

    def second_call():
        with full_precision():
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=second_call)
    with full_precision():
        thread.start()
        assert entered.wait(60)
    assert allowed() == "ieee"
    leave.set()
    thread.join()
    assert state() == before
