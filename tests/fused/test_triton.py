"""The Triton kernels without a GPU: compiled for three generations of them, and interpreted."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from pairwise_calls import points

triton = pytest.importorskip("triton", reason="Triton's wheels are for Linux")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels are either interpreted or compiled", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from lorentzkit.fused.problems import LogSums, LossProblem, PairwiseProblem, Search  # noqa: E402
from lorentzkit.fused.triton import launch  # noqa: E402
from lorentzkit.fused.triton.config import CONFIGS  # noqa: E402

INTERPRETER = Path(__file__).parents[1] / "interpreter"
EVEN, RAGGED = (256, 512, 128), (100, 90, 40)
FEW = (256, 512, 16)


class Elsewhere:
    """A driver for a GPU that is not there: launches are compiled for it, and end there."""

    def __init__(self, capability):
        self.capability = capability
        self.stacks = {}

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability

    def get_current_stream(self, device):
        return 0

    def compile(self, *, fn, compile, **_):
        source = ASTSource(
            fn.jit_function, compile["signature"], compile["constants"], compile["configs"][0]
        )
        options = {name: compile[name] for name in ("num_warps", "num_stages")}
        kernel = triton.compile(source, target=self.get_current_target(), options=options)
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(kernel.asm["cubin"])
            file.flush()
            command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
            usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        self.stacks[fn.name] = int(re.search(r"STACK:(\d+)", usage)[1])
        return True


@pytest.fixture
def compiled(monkeypatch):
    def run(capability, function, kind, sizes, precision, **search):
        driver = Elsewhere(capability)
        monkeypatch.setattr(triton.runtime.driver, "_active", driver)
        monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", driver.compile)
        N, M, D = sizes
        x, y = points(N, D, torch.float32), points(M, D, torch.float32, seed=1)
        c, scale = torch.ones(1), torch.tensor(10.0)
        ids = torch.arange(N, dtype=torch.int32), torch.arange(M, dtype=torch.int32)
        problem = PairwiseProblem(x, y, c, kind, precision)
        loss = LossProblem(x, y, c, scale, *ids, *ids, kind, precision)
        of_rows_and_columns = LogSums(torch.ones(N), torch.ones(M))
        arguments = {
            "matrix": (problem,),
            "matrix_gradients": (problem, torch.ones(N, M)),
            "topk": (problem, Search(search.get("k", 10), largest=False, chunk=0)),
            "log_sums": (loss,),
            "log_sums_gradients": (loss, of_rows_and_columns, of_rows_and_columns),
        }[function]
        getattr(launch, function)(*arguments)
        return driver.stacks

    return run


@pytest.mark.few(capability=90, precision="highest", function=["log_sums_gradients", "topk"])
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize(
    "function", ["matrix", "matrix_gradients", "log_sums", "log_sums_gradients", "topk"]
)
def test_angle_kernels_compile_and_spill_no_register(compiled, capability, precision, function):
    """Those of the angle have the most numbers per pair."""
    stacks = compiled(capability, function, "angle", EVEN, precision)
    assert len(stacks) == 1 + function.endswith("gradients")
    assert not any(stacks.values()), stacks


@pytest.mark.thorough
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_every_configuration_compiles_and_spills_no_register(compiled, monkeypatch, capability):
    """Those that only timing on a GPU chooses; the first of each is compiled by all other tests."""
    functions = {"matrix": "matrix", "log_sums": "log_sums", "change": "log_sums_gradients"}
    assert {name for name, configs in CONFIGS.items() if len(configs) > 1} == functions.keys()
    for name, function in functions.items():
        for config in CONFIGS[name][1:]:
            monkeypatch.setitem(CONFIGS, name, (config,))
            stacks = compiled(capability, function, "angle", EVEN, "highest")
            assert not any(stacks.values()), (config, stacks)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["inner", "distance", "cosine"])
def test_other_kernels_compile_and_spill_no_register(compiled, kind):
    pairwise = ["matrix", "matrix_gradients", "topk"]
    for function in ["log_sums", "log_sums_gradients"] if kind == "cosine" else pairwise:
        stacks = compiled(90, function, kind, EVEN, "highest")
        assert not any(stacks.values()), stacks


@pytest.mark.thorough
@pytest.mark.parametrize("sizes", [RAGGED, FEW], ids=["ragged", "few dimensions"])
def test_kernels_of_other_sizes_compile_and_spill_no_register(compiled, sizes):
    for function in ["matrix", "log_sums", "log_sums_gradients", "topk"]:
        stacks = compiled(90, function, "angle", sizes, "highest")
        assert not any(stacks.values()), stacks


@pytest.mark.thorough
@pytest.mark.parametrize("k", [32, 128])
def test_topk_of_many_compiles_and_spills_no_register(compiled, k):
    stacks = compiled(90, "topk", "angle", EVEN, "highest", k=k)
    assert not any(stacks.values()), stacks


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the GPU instead")
def test_kernels_in_the_interpreter(pytestconfig):
    """In a process of its own: Triton decides at its import."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(INTERPRETER)]
    command += ["--thorough"] * pytestconfig.getoption("thorough")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
