"""All that a machine with an H100 or H200 can tell, in one command of at most nine minutes.

    python benchmarks/gpu/run.py               # benchmarks/results/gpu.json, and logs beside it
    python benchmarks/gpu/run.py --rehearse    # in Triton's interpreter, on few and small tensors

It takes torch 2.8, triton 3.4, NumPy and Python 3.10 or newer, and nothing that a package index
would have to give: no installation of lorentzkit itself, either. Its parts: is what the kernels
compute right (`check.py`); is it exact, by the tests against multi-precision arithmetic (where
pytest, hypothesis and mpmath are); do kernels touch only memory that is theirs (compute-sanitizer,
where it is); how fast are they (`times.py`). Ends with status 1 if something is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SECONDS = 9 * 60
# Of the whole time: until when each part has to end.
ENDS = {
    "check": 0.25,
    "exactness": 0.45,
    "memcheck": 0.55,
    "racecheck": 0.62,
    "initcheck": 0.65,
    "times": 1.0,
}
TESTS = (
    "interpreter/test_exactness.py",
    "interpreter/test_kernels.py",
    "ops/test_exactness.py",
    "ops/test_pairwise.py",
    "geometry/test_pairs.py",
)
KERNELS = "regex=.*(kernel).*"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    statuses: dict[str, Any] = {}
    for part, share in ENDS.items():
        left = share * args.seconds - (time.monotonic() - started)
        command = _command(part, args.rehearse, left)
        if isinstance(command, str):
            print(f"=== {part}: {command}")
            continue
        log = args.results / f"gpu-{part}.log"
        statuses[part] = _run(command, log, left, args.rehearse)
        elapsed = time.monotonic() - started
        print(f"=== {part}: status {statuses[part]}, {elapsed:.0f} s", flush=True)
        print(_tail(log, 40), flush=True)
    result = args.results / "gpu-times.json"
    made = json.loads(result.read_text("utf-8")) if result.exists() else {}
    made["parts"] = statuses
    (args.results / "gpu.json").write_text(json.dumps(made, indent=1) + "\n", "utf-8")
    result.unlink(missing_ok=True)
    sys.exit(any(status != 0 for status in statuses.values()))


def _command(part: str, rehearse: bool, left: float) -> list[str] | str:
    """Or why there is none."""
    small = ["--small"] if rehearse else []
    if part == "check":
        return [sys.executable, str(HERE / "check.py"), *small]
    if part == "exactness":
        return _exactness(rehearse)
    if part == "times":
        return [sys.executable, str(HERE / "times.py"), *small, "--seconds", f"{left:.0f}"]
    tool = shutil.which("compute-sanitizer")
    step = [sys.executable, str(HERE / "check.py"), "step", "--small"]
    if rehearse:
        return step if part == "memcheck" else "as memcheck; not rehearsed"
    if tool is None:
        return "there is no compute-sanitizer"
    options = ["--tool", part, "--error-exitcode", "9", "--print-limit", "5"]
    return [tool, *options, "--kernel-name", KERNELS, *step]


def _exactness(rehearse: bool) -> list[str] | str:
    absent = [z for z in ("pytest", "hypothesis", "mpmath") if find_spec(z) is None]
    if absent:
        return f"there is no {' and no '.join(absent)}"
    chosen = "exact and dist" if rehearse else "exact and not cpu"
    paths = [str(ROOT / "tests" / path) for path in (TESTS[:2] if rehearse else TESTS)]
    parallel = ["-n", "8"] if find_spec("xdist") and not rehearse else []
    return [sys.executable, "-m", "pytest", "-q", "-rs", *parallel, "-k", chosen, *paths]


def _run(command: list[str], log: Path, left: float, rehearse: bool) -> int:
    """Its status; 124 if it took longer than it may."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # deterministic mode asks for it
    environment["OUT"] = str(log.parent)
    if rehearse:
        environment["TRITON_INTERPRET"] = "1"
    if "sanitizer" in command[0]:
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # or bounds within a block are unseen
    with log.open("w") as out:
        try:
            done = subprocess.run(
                command, stdout=out, stderr=subprocess.STDOUT, env=environment, timeout=max(left, 5)
            )
        except subprocess.TimeoutExpired:
            return 124
    return done.returncode


def _tail(log: Path, lines: int) -> str:
    return "\n".join(line[:200] for line in log.read_text("utf-8").splitlines()[-lines:])


if __name__ == "__main__":
    main()
