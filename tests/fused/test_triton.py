"""The Triton kernels without a GPU: compiled for three generations of them, and interpreted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pairwise_calls import Allocated

triton = pytest.importorskip("triton", reason="Triton's wheels are for Linux")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels are either interpreted or compiled", allow_module_level=True)

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import compiled  # noqa: E402

from lorentzkit.fused.problems import LogSums, LossGradients, LossProblem  # noqa: E402
from lorentzkit.fused.triton import anchors, launch  # noqa: E402
from lorentzkit.fused.triton.config import CHUNK, config  # noqa: E402
from lorentzkit.fused.triton.positives import of_labels, of_offset  # noqa: E402

INTERPRETER = Path(__file__).parents[1] / "interpreter"
PRECISIONS = ["highest", "high"]  # "medium" is compiled as "high"
LARGE, RAGGED, FEW = (256, 512, 512), (100, 90, 40), (256, 512, 16)


def spilled(kernels):
    return {kernel.name: kernel.stack for kernel in kernels if kernel.stack}


@pytest.mark.few(capability=90, precision="highest", function=["log_sums_gradients", "topk"])
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "function", ["matrix", "matrix_gradients", "log_sums", "log_sums_gradients", "topk"]
)
def test_angle_kernels_compile_and_spill_no_register(capability, precision, function):
    """Those of the angle have the most numbers per pair."""
    of_pairs = compiled.of_pairs(capability, function, precision)
    kinds = len(compiled.KINDS[function])
    assert len(of_pairs) == kinds + function.endswith("gradients")
    assert not spilled(of_pairs)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["inner", "distance", "cosine"])
def test_other_kernels_compile_and_spill_no_register(kind):
    pairwise = ["matrix", "matrix_gradients", "topk"]
    for function in ["log_sums", "log_sums_gradients"] if kind == "cosine" else pairwise:
        assert not spilled(compiled.launched(90, function, "highest", kind))


@pytest.mark.thorough
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("sizes", [RAGGED, FEW], ids=["ragged", "few dimensions"])
def test_kernels_of_other_sizes_compile_and_spill_no_register(capability, sizes):
    """But for two numbers of one, which would take twice the instructions with more threads."""
    known = {(80, "angles"): {"log_sums_vjp_kernel": 8}} if sizes == RAGGED else {}
    for function, kinds in compiled.KINDS.items():
        for kind in kinds:
            kernels = compiled.launched(capability, function, "highest", kind, sizes=sizes)
            of_gradients = function == "log_sums_gradients"
            assert spilled(kernels) == (known.get((capability, kind), {}) if of_gradients else {})


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("capability", "sizes"),
    [(80, LARGE), (90, LARGE), (100, LARGE), (90, RAGGED), (90, FEW), (90, (1, 1, 1))],
)
def test_kernels_of_a_batch_compile_and_spill_no_register(capability, sizes):
    """Of one matrix, their number is a constant."""
    for function in ["matrix", "matrix_gradients"]:
        assert not spilled(compiled.launched(capability, function, "highest", sizes=sizes, batch=3))


@pytest.mark.few(sizes=[(1, 512, 20)], function="log_sums_gradients")
@pytest.mark.parametrize("sizes", [(1, 512, 20), (256, 1, 20), (1, 1, 20), (1, 1, 1)])
@pytest.mark.parametrize(
    "function", ["matrix", "matrix_gradients", "log_sums", "log_sums_gradients", "topk"]
)
def test_kernels_of_a_single_point_compile(sizes, function):
    """Triton makes constants of sizes that are 1, and those have no methods."""
    assert compiled.launched(90, function, "highest", sizes=sizes, k=1)


@pytest.mark.few(function="topk", capability=90)
@pytest.mark.parametrize(("capability", "instruction"), [(90, "HGMMA"), (100, "UTCHMMA")])
@pytest.mark.parametrize("function", compiled.REPORTED)
def test_products_are_taken_by_the_newest_tensor_cores(capability, instruction, function):
    for kernel in compiled.of_pairs(capability, function, "highest"):
        assert any(instruction in line.text for line in kernel.code()), kernel.name


@pytest.mark.few(capability=90)
@pytest.mark.parametrize("capability", compiled.CAPABILITIES)
@pytest.mark.parametrize("labelled", [False, True], ids=["pairs", "labels"])
def test_kernels_of_anchors_compile_and_spill_no_register(capability, labelled, monkeypatch):
    N, kinds = 300, ("angles",) if labelled else ("angles", "distance")
    labels = torch.arange(N)
    # Nothing runs, so nothing is counted, nor found; and those of all pairs have their own test.
    monkeypatch.setattr(torch.Tensor, "cumsum", lambda z, dim: torch.arange(1, len(z) + 1))
    monkeypatch.setattr(torch, "empty", torch.zeros)
    zeros = torch.zeros(N, 20), torch.zeros(N, 20), torch.zeros(1), torch.zeros(())
    monkeypatch.setattr(launch, "log_sums", lambda *_: LogSums(*torch.zeros(2, N)))
    monkeypatch.setattr(launch, "log_sums_gradients", lambda *_: LossGradients(*zeros))
    with compiled.compiling(capability) as kernels:
        for kind in kinds:
            positives = of_labels(labels, labels) if labelled else of_offset(N, N, 0, labels.device)
            x, c, scale, ids = torch.ones(N, 20), torch.ones(1), torch.ones(()), labels.int()
            problem = LossProblem(x, x, c, scale, ids, ids, labels, labels, kind, "highest")
            found = anchors.losses(problem, positives)
            for reduction in ("mean", "none"):
                grads = anchors.reduced(found, reduction, N)
                anchors.gradients(problem, positives, found, grads, reduction)
    expected = {"anchors_kernel", "anchors_vjp_kernel"}
    expected |= {"ranges_kernel", "pairs_kernel"} if labelled else set()
    assert expected < kernels.keys()
    assert not spilled(kernels[name] for name in expected)


@pytest.mark.thorough
@pytest.mark.parametrize("k", [32, 128])
def test_topk_of_many_compiles_and_spills_no_register(k):
    assert not spilled(compiled.launched(90, "topk", "highest", k=k))


def known():
    return json.loads(compiled.FILE.read_text("utf-8"))


@pytest.mark.parametrize("kind", ["exterior", "angles"])
def test_the_step_is_as_short_as_was_asked_for(kind):
    """Milliseconds of an H100, derived: of 32,768 pairs, at most."""
    assert sum(compiled.serial(known()["rows"], "highest", kind).values()) <= 45


def test_a_kernel_that_became_worse_is_noticed():
    rows = known()["rows"]
    assert not compiled.worse(rows, rows)
    assert compiled.worse(rows, [rows[0] | {"stack": 8}, *rows[1:]])
    assert compiled.worse(rows, [rows[0] | {"rest": round(1.06 * rows[0]["rest"] + 8)}, *rows[1:]])


@pytest.mark.few(capability=90, function="log_sums")
@pytest.mark.parametrize("capability", compiled.CAPABILITIES)
@pytest.mark.parametrize("function", compiled.REPORTED)
def test_no_kernel_has_become_worse(capability, function):
    """Than docs/kernels.md says: none spills, or takes more instructions a pair."""
    of_pairs = compiled.of_pairs(capability, function, "highest")
    now = [compiled.row(capability, "highest", kernel) for kernel in of_pairs]
    if triton.__version__ == known()["triton"]:
        assert compiled.worse(known()["rows"], now) == []


@pytest.mark.thorough
@pytest.mark.parametrize("function", ["log_sums", "log_sums_gradients"])
def test_workspace_of_a_large_loss(function):
    """Of 131,072 pairs: besides their spreads and gradients, less than 300 MB.

    As many rows as the gradient takes at a time: it takes no more for more of them.
    """
    M, D = 131072, 64
    with compiled.compiling(90):
        height = CHUNK // M // config("vjp").rows * config("vjp").rows
    with Allocated() as allocated:
        compiled.launched(90, function, "highest", sizes=(height, M, D))
    of_points = (height + M) * D * (2 * 2 + 4 * function.endswith("gradients"))
    assert 0 < allocated.bytes - of_points < 300e6


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the GPU instead")
def test_kernels_in_the_interpreter(pytestconfig):
    """In a process of its own: Triton decides at its import."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(INTERPRETER)]
    command += ["--thorough"] * pytestconfig.getoption("thorough")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
