"""Hypothesis profiles: a few examples by default, more with `--thorough`.

`--hypothesis-profile search` is for an hour of examples of one test, `mutants` for mutmut.
"""

import os

import condition
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # `-n auto` gives every core a worker: more threads than one would be in each other's way.
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
    torch.set_num_threads(1)

_COMMON = settings(
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],  # no slow `explain`
)
# Without shrinking a failure is reported at once, with the blob that reproduces it.
_FAST = [Phase.explicit, Phase.reuse, Phase.generate]
settings.register_profile("few", _COMMON, max_examples=4, derandomize=True, phases=_FAST)
settings.register_profile("mutants", _COMMON, max_examples=5, derandomize=True, phases=_FAST)
settings.register_profile("thorough", _COMMON, max_examples=25, derandomize=True, phases=_FAST)
settings.register_profile("search", _COMMON, max_examples=1000)


@pytest.hookimpl(tryfirst=True)  # before hypothesis's own option is obeyed
def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("thorough" if config.getoption("thorough") else "few")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The test that takes minutes comes first: last, all workers but one would wait for it."""
    items.sort(key=lambda item: item.name != "test_kernels_in_the_interpreter")


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the measures of `condition.py` compute what they measure."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU: torch finds no CUDA device")
    monkeypatch.setattr(condition, "DEVICE", request.param)
    return request.param


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Workers that are done take over what waits for others.

    Not by `--dist` among the options: given that, pytest-benchmark measures nothing.
    """
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


# Kernels run on a GPU or, from test_triton.py, in a process whose Triton interprets.
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore = ["interpreter"]
