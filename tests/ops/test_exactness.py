"""Every op's value and gradient against the oracle, in units of the rounding of its inputs.

`python tests/worst_errors.py` prints the worst of many cases for each op.
"""

import numpy as np
import oracle
import pytest
import torch
from condition import OPS, gradient_errors, value_error
from exactness import DTYPES, examples, gradients_of, value_of
from hypothesis import given, note
from hypothesis import strategies as st
from mpmath import mp, mpf
from strategies import CASES, beside, cotangents, in_frame, near_clouds, point, unit
from tolerances import tolerance

from lorentzkit import ops

every_op_and_dtype = pytest.mark.parametrize(
    ("op", "dtype"), [pytest.param(o, d, id=f"{o}-{str(d)[6:]}") for o in OPS for d in DTYPES]
)


@every_op_and_dtype
@pytest.mark.usefixtures("device")
def test_values_are_exact(op, dtype):
    @examples(op)
    @given(st.data())
    def check(data):
        assert value_of(op, data, dtype) <= tolerance(op, "value", dtype)

    check()


@every_op_and_dtype
@pytest.mark.usefixtures("device")
def test_gradients_are_exact(op, dtype):
    @examples(op)
    @given(st.data())
    def check(data):
        errors = gradients_of(op, data, dtype)
        note(f"errors: {errors}")
        assert max(errors.values()) <= tolerance(op, "gradient", dtype)

    check()


def test_gradients_of_the_frechet_mean_are_exact_within_radius_8():
    """Where the exception of `tolerances.py` has no reason."""

    @examples("frechet_mean")
    @given(st.data())
    def check(data):
        case = data.draw(near_clouds(torch.float64, smooth=True))
        w = data.draw(cotangents(case))
        assert max(gradient_errors("frechet_mean", *case[:2], w).values()) <= 16

    check()


@pytest.mark.parametrize("op", ["dist", "exterior_angle", "interior_angle"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("radius", [1e-3, 1.0, 8.0, 30.0])
@pytest.mark.parametrize("angle", [1e-2, 1e-4, 1e-6])
def test_small_angles_keep_their_relative_accuracy(op, dtype, radius, angle):
    """More than the condition asks for, which allows what rounding the points had cost: whoever
    made the points exactly gets all digits.
    """
    curv = torch.tensor(1.7, dtype=dtype)
    rng = np.random.default_rng(0)
    for farther in (1.0, 1 + angle, 0.5):
        u = unit(rng, 64)
        x, y = point(u, radius, curv), point(beside(rng, u, angle), farther * radius, curv)
        with mp.workdps(150):
            exact = getattr(oracle, op)(*in_frame(x, y, curv))
            error = abs(mpf(getattr(ops, op)(x, y, curv).item()) / exact - 1)
        assert error <= 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_time_puts_the_time_first(dtype):
    @given(CASES["time"](dtype, smooth=False))
    def check(case):
        (x,) = case.args
        full = ops.add_time(x, case.curv)
        assert full[0] == ops.time(x, case.curv)
        assert torch.equal(full[1:], x)
        assert torch.equal(ops.drop_time(full), x)

    check()


def naive_dist(x, y, curv):
    """As in MERU and geoopt: exact in exact arithmetic."""
    x0, y0 = (1 / curv + x @ x).sqrt(), (1 / curv + y @ y).sqrt()
    return torch.acosh((curv * (x0 * y0 - x @ y)).clamp(min=1 + 1e-7)) / curv.sqrt()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_measure_can_fail(dtype):
    """What no formula can break, the measure does not measure."""
    x = torch.tensor([0.6, 0.8], dtype=dtype)
    args, curv = [x, x + torch.tensor([1e-4, -2e-4], dtype=dtype)], torch.tensor(1.0, dtype=dtype)
    assert value_error("dist", args, curv, function=naive_dist) > 100
    assert max(gradient_errors("dist", args, curv, function=naive_dist).values()) > 100


def test_the_measure_computes_on_the_device(device):
    seen = set()

    def dist(x, y, curv):
        seen.update(z.device.type for z in (x, y, curv))
        return ops.dist(x, y, curv)

    x, curv = torch.tensor([0.6, 0.8]), torch.tensor(1.0)
    assert value_error("dist", [x, 2 * x], curv, function=dist) < 4
    assert max(gradient_errors("dist", [x, x.flip(0)], curv, function=dist).values()) < 4
    assert seen == {device}


def test_the_measure_sees_one_ulp_and_not_less():
    x, curv = torch.tensor([3.0, 4.0]), torch.tensor(2.0)

    def off_by(ulps):
        return lambda x, curv: ops.time(x.double(), curv.double()).float() * (1 + ulps * 2.0**-23)

    assert value_error("time", [x], curv, function=off_by(0)) < 1
    assert 20 < value_error("time", [x], curv, function=off_by(50)) < 200
