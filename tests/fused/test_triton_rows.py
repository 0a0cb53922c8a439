"""The kernels of rows of vectors, compiled for three generations of GPUs; interpreted elsewhere."""

import itertools
import os

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton's wheels are for Linux")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels are either interpreted or compiled", allow_module_level=True)

from test_triton import compiled as harness  # noqa: E402

from lorentzkit.fused.triton import rows  # noqa: E402
from lorentzkit.fused.triton.rows import OPS  # noqa: E402

MOST_SCALARS = ("dist", "angles", "entailment_residual", "expmap", "logmap")


@pytest.fixture
def compiled():
    """Bytes that the registers of the two kernels have spilled to."""

    def run(capability, op, D=512, curv=0.7, dtype=torch.float32, of_sum=False):
        of = OPS[op]
        vectors = [torch.ones(64, D, dtype=dtype) for _ in range(of.vectors)]
        width = rows.width(op, D)
        at = torch.ones((64, width) if width else 64)
        if of_sum:
            at = torch.ones(()).expand(at.shape)
        t = torch.ones(64) if op == "geodesic" else None
        with harness.compiling(capability) as kernels:
            rows.values(op, vectors, curv, t)
            rows.gradients(op, vectors, curv, at, [True] * (of.vectors + 2), t)
        return {name: kernel.stack for name, kernel in kernels.items()}

    return run


@pytest.mark.few(op=["dist", "expmap"], capability=90)
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("op", OPS)
def test_kernels_compile_and_spill_no_register(compiled, op, capability):
    """Of long rows and of short ones, for a number as the curvature; of a tensor, on one GPU."""
    numbers = (0.7, torch.ones(1)) if capability == 100 else (0.7,)
    for D, curv in itertools.product((512, 32), numbers):
        stacks = compiled(capability, op, D, curv)
        assert list(stacks.values()) == [0, 0], (D, curv)


@pytest.mark.thorough
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("op", MOST_SCALARS)
def test_kernels_of_entries_that_are_not_aligned_spill_no_register(compiled, op, capability):
    """Of short rows with a curvature each."""
    stacks = compiled(capability, op, 5, torch.ones(64))
    assert list(stacks.values()) == [0, 0]


@pytest.mark.thorough
@pytest.mark.parametrize(
    "op", ["dist", "angles", "expmap", "tangent_inner", "to_klein", "from_halfspace", "add_time"]
)
def test_kernels_of_other_arguments_compile_and_spill_no_register(compiled, op):
    for how in (
        {"D": 1},
        {"D": 130},
        {"dtype": torch.float16, "D": 32},
        {"dtype": torch.bfloat16},
        {"curv": torch.ones(1, dtype=torch.float64)},
        {"D": 32, "of_sum": True},
    ):
        stacks = compiled(90, op, **how)
        assert list(stacks.values()) == [0, 0], how


def test_kernels_of_pairs_and_of_rows_compile_in_one_process(compiled):
    """They share functions; a global NaN in those is refused, as it does not equal itself."""
    assert harness.launched(90, "matrix", "highest")
    assert compiled(90, "dist")
    assert harness.launched(90, "log_sums", "highest")
