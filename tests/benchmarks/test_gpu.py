"""What benchmarks/gpu does on a machine with a GPU, rehearsed in Triton's interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton's wheels are for Linux")
GPU = Path(__file__).parents[2] / "benchmarks" / "gpu"
# What is not on the machine with a GPU; to import it fails here, too.
ABSENT = "import sys; sys.modules.update(dict.fromkeys(['geoopt', 'faiss', 'hypll', 'emoji']));"


def run(script: str, *args: str, out: Path) -> subprocess.CompletedProcess[str]:
    code = f"{ABSENT} import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    code = f"{code.split(';')[0]}; sys.argv = sys.argv[1:];{code.split(';', 1)[1]}"
    environment = os.environ | {"TRITON_INTERPRET": "1", "OUT": str(out)}
    command = [sys.executable, "-c", code, str(GPU / script), *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_checks_pass(tmp_path: Path) -> None:
    done = run("check.py", "nan", "--small", out=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok ") == 3


@pytest.mark.thorough
def test_every_check_passes(tmp_path: Path) -> None:
    done = run("check.py", "--small", out=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.thorough
def test_times_are_written(tmp_path: Path) -> None:
    done = run("times.py", "--small", "--seconds", "60", out=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu-times.json").read_text("utf-8"))
    rows = found["rows"].values()
    assert {"torch", "triton", "machine"} < found["environment"].keys()
    assert any("usual" in row["ms"] for row in rows)
    assert not any(row["errors"] for row in rows)
