"""Ops of points near the origin, which go by products in float64: at the edge of that range.

The other tests of exactness reach it too, but seldom its edge, where digits are fewest.
"""

from __future__ import annotations

import math

import pytest
import torch
from condition import OPS as SIGNATURES
from condition import gradient_errors, value_error

from lorentzkit._geometry import rowwise
from lorentzkit._geometry.gram import OPS, SHORT

NEARLY = 1 - 1e-5


def edge(op: str, seed: int, angle: float) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Arguments at the edge of an op's reach, at this angle to one another."""
    torch.manual_seed(seed)
    curv = torch.rand(()) + 0.5
    most = OPS[op].reach
    axis, other = torch.eye(4)[:2]
    arguments = []
    for k, name in enumerate(SIGNATURES[op].split(" -> ")[0].split()):
        if name == "t":
            arguments.append(torch.rand(()))
            continue
        far = most if k == 0 else SHORT if name in "uvg" else most / 4
        r = math.sqrt(NEARLY * far / curv.item()) * (1.0 if k == 0 else 0.3 + 0.7 * torch.rand(()))
        direction = math.cos(k * angle) * axis + math.sin(k * angle) * other
        arguments.append(r * direction + (1e-6 * r * torch.randn(4) if angle else 0))
    if OPS[op].points == 2:
        x, y = arguments[-2:] if op == "geodesic" else arguments[:2]
        shrink = min(1.0, float(2 * math.sqrt(NEARLY * most / curv) / (x - y).norm()))
        x *= shrink
        y *= shrink
    return arguments, curv


@pytest.fixture
def near_only(monkeypatch):
    """Fails where an op goes another way than by Gram numbers."""
    found = []
    near_rows = rowwise.near_rows

    def check(*args):
        found.append(near_rows(*args))
        return found[-1]

    monkeypatch.setattr("lorentzkit.fused.rows.near_rows", check)
    yield
    assert all(of is not None for of in found)


@pytest.mark.parametrize("angle", [0.0, 1e-5, 0.1, 1.5, math.pi])
@pytest.mark.parametrize("op", [op for op in OPS if op in SIGNATURES])
def test_exact_at_the_edge(near_only, op, angle):
    arguments, curv = edge(op, 0, angle)
    assert value_error(op, arguments, curv) <= 4
    vector = SIGNATURES[op].endswith("vector")
    cotangent = torch.randn(4) if vector else None
    errors = gradient_errors(op, arguments, curv, cotangent)
    assert max(errors.values()) <= 4, errors
