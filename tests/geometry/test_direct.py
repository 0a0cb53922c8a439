"""Compiled functions are called past Dynamo's checks, and only where those would hold."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from lorentzkit._geometry import direct

if not hasattr(torch.compiler, "set_stance"):
    pytest.skip("needs a torch that can refuse to compile", allow_module_level=True)


class Result(NamedTuple):
    sum: Tensor
    parts: list[Tensor | None]


def function(kind: str, weight: float, x: Tensor, terms: list[Tensor]) -> Result:
    total = (x.double() * weight).sum(1)
    for term in terms:
        total = total + (x * term).double().sum(1)
    return Result(total if kind == "plus" else -total, [x.square(), None])


@pytest.fixture(scope="module")
def every():
    return direct.Compiled(function)


@pytest.fixture
def compiled(every):
    torch.compiler.reset()  # of one function torch compiles eight variants
    return every


def rows(count: int, columns: int = 12) -> Tensor:
    return torch.randn(count, columns)


def check(compiled, *args):
    result, expected = compiled(*args), function(*args)
    assert type(result) is Result
    torch.testing.assert_close(result.sum, expected.sum)
    torch.testing.assert_close(result.parts[0], expected.parts[0])
    assert result.parts[1] is None


def test_known_sizes_are_called_directly_and_others_are_not(compiled):
    check(compiled, "plus", 2.0, rows(5), [rows(5)])
    torch.compiler.reset()
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in range(2):
            check(compiled, "plus", 2.0, rows(5), [rows(5)])
        with pytest.raises(RuntimeError):
            compiled("plus", 2.0, rows(6), [rows(6)])


def test_what_the_checks_are_of_is_told_apart(compiled):
    x, y = rows(5), rows(5)
    for _ in range(2):
        check(compiled, "plus", 2.0, x, [y])
        check(compiled, "minus", 2.0, x, [y])
        check(compiled, "plus", 3.0, x, [y])
        check(compiled, "plus", 2.0, x, [x])
        check(compiled, "plus", 2.0, x, [y, y])
        check(compiled, "plus", 2.0, x.double(), [y])
        check(compiled, "plus", 2.0, rows(12, 5).mT, [y])
        check(compiled, "plus", 2.0, x, [rows(1)])


def test_each_number_of_threads_has_its_code(compiled):
    before = torch.get_num_threads()
    try:
        for threads in (1, 3, 2):
            torch.set_num_threads(threads)
            check(compiled, "plus", 2.0, rows(4000), [rows(4000)])
    finally:
        torch.set_num_threads(before)
    assert {key[0] for key in compiled._known} >= {1, 2, 3}


def test_there_are_no_derivatives(compiled):
    for _ in range(2):
        assert not compiled("plus", 2.0, rows(5).requires_grad_(), [rows(5)]).sum.requires_grad


def test_tables_of_any_size_are_one_variant(compiled):
    """A parameter's sizes would be part of the code, which is compiled eight times at most."""
    for count in range(20, 32):
        x = torch.nn.Parameter(rows(count))
        check(compiled, "plus", 2.0, x, [x])


def fill(out: tuple[Tensor, Tensor], x: Tensor) -> None:
    out[0].copy_(2 * x)
    out[1].add_(x)


def test_what_is_written_to_is_written_by_direct_calls_too():
    torch.compiler.reset()
    filling = direct.Compiled(fill)
    for _ in range(3):
        x, out = rows(5).requires_grad_(), (rows(5), torch.ones(5, 12))
        filling(out, x)
        assert torch.equal(out[0], 2 * x)
        assert torch.equal(out[1], 1 + x)


def test_not_every_size_is_kept(compiled, monkeypatch):
    monkeypatch.setattr(direct, "_MOST_KEYS", 3)
    for count in range(2, 9):
        check(compiled, "plus", 2.0, rows(count), [])
    assert len(compiled._known) <= 3
