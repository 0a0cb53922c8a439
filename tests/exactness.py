"""How far an op is off in a case that hypothesis draws, in roundings of its inputs."""

import torch
from condition import OPS, gradient_errors, value_error
from hypothesis import settings
from hypothesis import strategies as st
from strategies import CASES, cotangents

DTYPES = [torch.float32, torch.float64]


def examples(op: str) -> settings:
    """The profile's, but a third where the oracle takes seconds for each."""
    count = settings.default.max_examples
    return settings(max_examples=max(1, count // 3) if op == "frechet_mean" else count)


def value_of(op: str, data: st.DataObject, dtype: torch.dtype) -> float:
    case = data.draw(CASES[op](dtype, smooth=False), label=op)
    return value_error(op, case.args, case.curv, **case.kw)


def gradients_of(op: str, data: st.DataObject, dtype: torch.dtype) -> dict[str, float]:
    case = data.draw(CASES[op](dtype, smooth=True), label=op)
    vector = OPS[op].endswith("vector")
    w = data.draw(cotangents(case), label="cotangent") if vector else None
    return gradient_errors(op, case.args, case.curv, w, **case.kw)
