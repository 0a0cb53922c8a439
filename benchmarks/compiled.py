"""The kernels of all pairs as their compiler leaves them: no GPU is needed, and nothing is timed.

    python benchmarks/compiled.py            # benchmarks/results/compiled.json, docs/kernels.md
    python benchmarks/compiled.py --check    # status 1 where a kernel has become worse

Each is compiled for three generations of GPUs with the sizes of its tiles
(`lorentzkit.fused.triton.config`), and its machine code is read. Instructions are those of one
thread for each pair of points: of the loop that takes a product, times its rounds, and of the rest
but for what runs only where pairs are computed again. From these follow the times that an H100
would take at least, of each of its parts.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from report import DOCS, RESULTS
from report.markers import write
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lorentzkit.fused.problems import LogSums, LossProblem, PairwiseProblem, Search
from lorentzkit.fused.triton import launch

FILE = RESULTS / "compiled.json"
MARKERS = "<!-- compiled:begin -->", "<!-- compiled:end -->"
CAPABILITIES = (80, 90, 100)
PRECISIONS = ("highest", "high")
# Of angles, which need the most of a pair: that at x, and of a loss those at both points.
KINDS = {
    "matrix": ("exterior",),
    "matrix_gradients": ("exterior",),
    "topk": ("exterior",),
    "log_sums": ("exterior", "angles"),
    "log_sums_gradients": ("exterior", "angles"),
}
REPORTED = ("matrix", "topk", "log_sums", "log_sums_gradients")
N, D = 32768, 512  # of the derived times
GROWTH = 1.05  # of the instructions a pair, at most

# Of an H100 SXM at its highest clock: instructions of threads, and special functions, a second;
# FLOP of float16 products; bytes of the second-level cache, which is no vendor's figure, and of
# memory.
ISSUE, SPECIAL = 132 * 128 * 1.755e9, 132 * 16 * 1.755e9
PRODUCTS, CACHE, MEMORY = 989.4e12, 5.5e12, 3.35e12

_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?\w+\s+)?([A-Z][^;]*);")
_BRANCH = re.compile(r"BRA.*?0x([0-9a-f]+)")
_PRODUCT = re.compile(r"HGMMA|HMMA|UTC\w*MMA")


class Instruction(NamedTuple):
    address: int
    predicated: bool
    text: str


class Kernel(NamedTuple):
    """One as compiled."""

    name: str
    constants: dict[str, Any]
    warps: int
    registers: int
    stack: int
    """Bytes, which registers have spilled to"""
    shared: int
    cubin: bytes

    def code(self) -> list[Instruction]:
        text = _dump("sass", self.cubin)
        return [Instruction(int(m[1], 16), bool(m[2]), m[3].strip()) for m in _LINE.finditer(text)]


# --- To compile for a GPU that is not there -------------------------------------------------------


class Elsewhere:
    """A driver for such a GPU: launches are compiled for it, and end there."""

    def __init__(self, capability: int) -> None:
        self.capability = capability
        self.kernels: dict[str, Kernel] = {}

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def compile(self, *, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        source = ASTSource(
            fn.jit_function, compile["signature"], compile["constants"], compile["configs"][0]
        )
        options = {name: compile[name] for name in ("num_warps", "num_stages")}
        made = triton.compile(source, target=self.get_current_target(), options=options)
        names = fn.jit_function.arg_names
        constants = {names[path[0]]: value for path, value in source.constants.items()}
        usage = _dump("resource-usage", made.asm["cubin"])
        registers, stack = (
            int(match[1])
            for key in ("REG", "STACK")
            if (match := re.search(rf"{key}:(\d+)", usage))
        )
        name, shared, cubin = fn.name.split(".")[-1], made.metadata.shared, made.asm["cubin"]
        self.kernels[name] = Kernel(
            name, constants, compile["num_warps"], registers, stack, shared, cubin
        )
        return True


@contextmanager
def compiling(capability: int) -> Iterator[dict[str, Kernel]]:
    """Launches inside are compiled for that GPU: gives the kernels by name."""
    driver = Elsewhere(capability)
    with (
        mock.patch.object(triton.runtime.driver, "_active", driver),
        mock.patch.object(triton.knobs.runtime, "jit_cache_hook", driver.compile),
    ):
        yield driver.kernels


def _dump(kind: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, f"--dump-{kind}", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def launched(
    capability: int,
    function: str,
    precision: str,
    kind: str = "exterior",
    sizes: tuple[int, int, int] = (256, 512, D),
    k: int = 10,
    batch: int = 1,
) -> list[Kernel]:
    """The kernels of a function of `fused.triton`; of matrices, for so many."""
    (N, M, D), c, scale = sizes, torch.ones(1), torch.tensor(10.0)
    x, y = torch.ones(N, D), torch.ones(M, D)
    ids = torch.arange(N, dtype=torch.int32), torch.arange(M, dtype=torch.int32)
    problem = PairwiseProblem(x, y, c, kind, precision)
    matrices = PairwiseProblem(
        x.repeat(batch, 1, 1), y.repeat(batch, 1, 1), c.repeat(batch, 1), kind, precision
    )
    loss = LossProblem(x, y, c, scale, *ids, *ids, kind, precision)
    ones = LogSums(torch.ones(N), torch.ones(M))
    arguments = {
        "matrix": (matrices,),
        "matrix_gradients": (matrices, torch.ones(batch, N, M)),
        "topk": (problem, Search(k, largest=False, apex="x", chunk=0)),
        "log_sums": (loss,),
        "log_sums_gradients": (loss, ones, ones),
    }
    with compiling(capability) as kernels:
        getattr(launch, function)(*arguments[function])
    return list(kernels.values())


def of_pairs(capability: int, function: str, precision: str) -> list[Kernel]:
    """Those whose work is proportional to N M."""
    kernels = {}
    for kind in KINDS[function]:
        for kernel in launched(capability, function, precision, kind):
            if "DEPTH" in kernel.constants:
                kernels[kernel.name, kernel.constants.get("KIND")] = kernel
    return list(kernels.values())


# --- What the machine code says -------------------------------------------------------------------


class Loop(NamedTuple):
    first: int
    last: int

    def has(self, instruction: Instruction) -> bool:
        return self.first <= instruction.address <= self.last


def _branches(code: list[Instruction]) -> Iterator[tuple[Instruction, int]]:
    for instruction in code:
        match = _BRANCH.match(instruction.text)
        if match:
            yield instruction, int(match[1], 16)


def instructions(kernel: Kernel) -> dict[str, float]:
    """Of a thread for each pair: of the product, of the rest, and special ones of the rest."""
    code, constants = kernel.code(), kernel.constants
    loops = [
        Loop(to, instruction.address)
        for instruction, to in _branches(code)
        if to < instruction.address
    ]
    products = [
        z
        for z in loops
        if any(_PRODUCT.match(instruction.text) for instruction in code if z.has(instruction))
    ]
    inner = min(products, key=lambda loop: loop.last - loop.first)
    seldom = _seldom(code, [z for z in loops if z not in products])
    body = [instruction for instruction in code if inner.has(instruction)]
    rest = [
        instruction
        for instruction in code
        if not inner.has(instruction) and not any(z.has(instruction) for z in seldom)
    ]
    pairs = constants["ROWS"] * constants["COLUMNS"]
    threads, rounds = 32 * kernel.warps, D / constants["DEPTH"]
    if kernel.name == "product_kernel":  # a round takes so many pairs, for some of D numbers
        pairs, rounds = constants["ROWS"] * constants["DEPTH"], D / constants["COLUMNS"]
        rest = []
    special = [instruction for instruction in rest if instruction.text.startswith("MUFU")]
    return {
        "product": len(body) * rounds * threads / pairs,
        "rest": len(rest) * threads / pairs,
        "special": len(special) * threads / pairs,
    }


def _seldom(code: list[Instruction], loops: list[Loop]) -> list[Loop]:
    """What is jumped over where no pair is computed again: there, memory is read in a loop."""
    reading = [
        z
        for z in loops
        if any(instruction.text.startswith("LDG") for instruction in code if z.has(instruction))
    ]
    skipped = [
        Loop(instruction.address + 1, to - 1)
        for instruction, to in _branches(code)
        if instruction.predicated and to > instruction.address
    ]
    return [
        *reading,
        *(
            s
            for s in skipped
            if any(s.first <= z.first and z.last <= s.last for z in reading)
            and not any(
                _PRODUCT.match(instruction.text) for instruction in code if s.has(instruction)
            )
        ),
    ]


def times(kernel: Kernel, counts: dict[str, float]) -> dict[str, float]:
    """Milliseconds of each part of an H100, for N x N pairs in D dimensions."""
    pairs, constants = N * N, kernel.constants
    products = 1 if constants["PARTS"] == 1 else 3
    tile = constants["ROWS"], constants["COLUMNS"]
    if kernel.name == "product_kernel":  # weights, in float32, once for so many of D numbers
        moved = pairs * (4 * D / tile[1] + 2 * min(products, 2) * D / tile[0])
        memory = 4 * pairs
    else:
        moved = pairs * (1 / tile[0] + 1 / tile[1]) * D * 2 * min(products, 2)
        memory = 4 * pairs if kernel.name != "log_sums_kernel" else 0
    return {
        "issue": 1e3 * pairs * (counts["product"] + counts["rest"]) / ISSUE,
        "special": 1e3 * pairs * counts["special"] / SPECIAL,
        "tensor": 1e3 * products * 2 * pairs * D / PRODUCTS,
        "cache": 1e3 * moved / CACHE,
        "memory": 1e3 * memory / MEMORY,
    }


def row(capability: int, precision: str, kernel: Kernel) -> dict[str, Any]:
    constants, counts = kernel.constants, instructions(kernel)
    entry: dict[str, Any] = {
        "capability": capability,
        "precision": precision,
        "kernel": kernel.name,
        "kind": constants.get("KIND", ""),
    }
    entry["tile"] = [constants[key] for key in ("ROWS", "COLUMNS", "DEPTH")] + [kernel.warps]
    entry |= {key: getattr(kernel, key) for key in ("registers", "stack", "shared")}
    entry |= {key: round(value) for key, value in counts.items()}
    if capability == 90 and kernel.name != "topk_kernel":
        entry["ms"] = {key: round(value, 1) for key, value in times(kernel, counts).items()}
    return entry


def rows() -> list[dict[str, Any]]:
    return [
        row(capability, precision, kernel)
        for capability in CAPABILITIES
        for precision in PRECISIONS
        for function in REPORTED
        for kernel in of_pairs(capability, function, precision)
    ]


def serial(rows: list[dict[str, Any]], precision: str, kind: str) -> dict[str, float]:
    """Milliseconds of a step's kernels on an H100, if nothing overlaps but what they load."""
    launched = {"log_sums_kernel": 1, "log_sums_vjp_kernel": 1, "product_kernel": 2}
    ms = {
        row["kernel"]: row["ms"]
        for row in rows
        if row["capability"] == 90
        and row["precision"] == precision
        and row["kind"] in (kind, "")
        and row["kernel"] in launched
    }
    return {
        kernel: launched[kernel]
        * max(parts["issue"] + parts["tensor"], parts["cache"], parts["memory"])
        for kernel, parts in ms.items()
    }


def worse(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[str]:
    """Which kernels spill, or take more instructions a pair than they did."""
    key = lambda row: (  # noqa: E731
        row["capability"],
        row["precision"],
        row["kernel"],
        row["kind"],
    )
    known, messages = {key(row): row for row in before}, []
    for row in now:
        if row["stack"]:
            messages.append(f"{key(row)} keeps {row['stack']} bytes in memory")
        if key(row) not in known:
            messages.append(f"{key(row)} is new: run benchmarks/compiled.py")
            continue
        was, is_ = (z["product"] + z["rest"] for z in (known[key(row)], row))
        if is_ > GROWTH * was:
            messages.append(f"{key(row)} takes {is_} instructions a pair, not {was}")
    return messages


# --- Results --------------------------------------------------------------------------------------


def section(results: dict[str, Any]) -> str:
    """The table, as markdown."""
    head = "GPU | kernel | tile | registers | shared, KB | instructions a pair | H100, ms: issue"
    lines = [f"| {head} | tensor | cache | memory |", "|" + " --- |" * 4 + " ---: |" * 6]
    for row in results["rows"]:
        if row["precision"] != "highest":
            continue
        ms = row.get("ms", {})
        name = row["kernel"].removesuffix("_kernel")
        name += ", both angles" if row["kind"] == "angles" else ""
        cells = [f"sm_{row['capability']}", name]
        cells += [" x ".join(map(str, row["tile"][:2])), str(row["registers"])]
        cells += [f"{row['shared'] / 1024:.0f}", f"{row['product']} + {row['rest']}"]
        cells += [f"{ms[key]:.1f}" if ms else "" for key in ("issue", "tensor", "cache", "memory")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the results; no write")
    now = rows()
    if parser.parse_args().check:
        messages = worse(json.loads(FILE.read_text("utf-8"))["rows"], now)
        print("\n".join(messages))
        sys.exit(bool(messages))
    made = {"triton": triton.__version__, "rows": now}
    made["step, ms"] = {
        f"{kind}, {p}": round(sum(serial(now, p, kind).values()), 1)
        for kind in KINDS["log_sums"]
        for p in PRECISIONS
    }
    FILE.write_text(json.dumps(made, indent=1) + "\n", "utf-8")
    page = DOCS / "kernels.md"
    if MARKERS[0] in page.read_text("utf-8"):
        write(page, section(made), MARKERS)
    print(section(made), made["step, ms"], sep="\n")


if __name__ == "__main__":
    main()
