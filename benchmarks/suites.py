"""What is measured: the rows of each suite, and who competes in them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from measure import (
    DEVICE,
    THREADS,
    Step,
    added_by,
    floor_step,
    fresh_process,
    in_fresh_process,
    installed_memory,
    step,
)
from rivals import GEOOPT, MERU, USUAL, Copies, Floor, in_geoopt, pairwise_geoopt_dist, usual_loss
from torch import Tensor

from lorentzkit import ops
from lorentzkit.losses import contrastive_loss

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from calls import SIGNATURES, arguments

Call = tuple[Callable[..., Tensor], list[Tensor]]  # a function and what it is called with
KINDS = {
    "elementwise": sorted(SIGNATURES),
    "loss": ["angle", "distance", "cosine"],
    "pairwise": ["exterior_angle", "dist", "inner"],
    "topk": ["exterior_angle", "dist", "inner"],
    "memory": ["angle", "distance", "cosine"],
    "import": ["import"],
}
SIZES = {"elementwise": [64, 4096], "import": [0]}  # and otherwise
USUAL_SIZES = [512, 2048, 4096]
# Short rows: of so few columns that the formulas between the sums count.
ALSO = {("elementwise", "dist"): [(65536, 32), (1_000_000, 2)]}
IMPORTS = {
    "python": "pass",
    "torch": "import torch",
    "lorentzkit": "import lorentzkit",
    "lorentzkit.ops": "import lorentzkit.ops",
    "geoopt": "import geoopt",
}
IMPLEMENTATIONS = ("auto", "reference")
OURS = (*IMPLEMENTATIONS, "auto_compiled", "lorentzkit", "lorentzkit.ops")
# Compiled where the sizes are large: compiling takes longer than all else, and eager overhead,
# which it saves, is what the small size shows.
LEAST_COMPILED = 1024
COMPILED = {"auto": "auto_compiled", "usual": "compiled", "geoopt": "geoopt_compiled"}
NOT_COMPILED = "frechet_mean"  # stops on the values
MATRICES = {"usual": 40, "compiled": 12, "reference": 70}  # held at once by the angle loss


class Row(NamedTuple):
    suite: str
    kind: str
    N: int = 0
    D: int = 0

    @property
    def key(self) -> str:
        return " ".join(str(part) for part in self[1:] if part)

    def names(self) -> list[str]:
        """The competitors, without making their inputs."""
        if self.suite == "import":
            return [*IMPORTS]
        if self.suite != "elementwise":
            return [name for name in (*self.functions(), "floor") if self.fits(name)]
        rivals = {"auto": True, "usual": self.kind in MERU, "geoopt": self.kind in GEOOPT}
        there = [name for name, exists in rivals.items() if exists]
        if self.N >= LEAST_COMPILED and self.kind != NOT_COMPILED:
            there += [COMPILED[name] for name in there]
        return [*there, "floor"]

    def calls(self) -> dict[str, Call]:
        """By competitor: a function and its inputs."""
        if self.suite == "elementwise":
            return _elementwise(self.kind, self.N, self.D)
        inputs = self.inputs()
        return {name: (f, inputs) for name, f in self.functions().items() if self.fits(name)}

    def inputs(self) -> list[Tensor]:
        """Texts and images as a trained model has them: in pairs, at radii up to 2."""
        torch.manual_seed(0)
        x = torch.randn(self.N, self.D, device=DEVICE)
        y = x + torch.randn(self.N, self.D, device=DEVICE)
        for z in (x, y):
            z *= 2 * torch.rand(self.N, 1, device=DEVICE) / z.norm(dim=1, keepdim=True)
        scalars = [1.0, 14.0] if self.suite in ("loss", "memory") else [1.0]
        tensors = [x, y, *(torch.tensor(s, device=DEVICE) for s in scalars)]
        return [t.requires_grad_() for t in tensors]

    def functions(self) -> dict[str, Callable[..., Tensor]]:
        if self.suite in ("loss", "memory"):
            usual = partial(usual_loss, similarity=self.kind)
            ours = partial(contrastive_loss, similarity=self.kind)
        elif self.suite == "topk":
            usual = partial(usual_topk, kind=self.kind)
            ours = partial(nearest, kind=self.kind)
            return {"auto": ours, "usual": usual, "compiled": Compiled(usual)}
        else:
            usual, ours = USUAL[self.kind], getattr(ops, f"pairwise_{self.kind}")
        every = {name: partial(ours, impl=name) for name in IMPLEMENTATIONS}
        every |= {"usual": usual, "compiled": Compiled(usual)}
        if self.kind == "dist":
            every["geoopt"] = pairwise_geoopt_dist
        return every

    def fits(self, name: str) -> bool:
        if name == "geoopt":
            return 0.7 * installed_memory() > self.N * self.N * self.D * 4 * 8
        return self.N * self.N * 4 * MATRICES.get(name, 0) < 0.7 * installed_memory()

    def steps(self, without: list[str]) -> dict[str, Step]:
        if self.suite == "import":
            each = IMPORTS.items()
            return {name: partial(fresh_process, statement) for name, statement in each}
        calls = self.calls()
        steps: dict[str, Step] = {
            n: partial(step, *c) for n, c in calls.items() if n not in without
        }
        inputs = calls["auto"][1]
        if self.suite == "elementwise":
            return steps | {"floor": partial(floor_step, Copies(inputs), True)}
        floor = Floor(*inputs[:2], again=self.suite == "loss")
        return steps | {"floor": partial(floor_step, floor, self.suite != "topk")}

    def peaks(self) -> dict[str, int]:
        """MB that a step adds, after a small one has loaded what it needs."""
        names = [n for n in ("auto", "usual") if self.fits(n) and n in self.functions()]
        if self.suite == "memory":
            names = names[:1]
        return {name: in_fresh_process(_peak, self, name) for name in names}


def _peak(row: Row, name: str) -> int:
    torch.set_num_threads(THREADS)
    step(*row._replace(N=512).calls()[name])
    call = row.calls()[name]
    return added_by(lambda: step(*call))


# --- Competitors ----------------------------------------------------------------------------------


@torch.no_grad()
def nearest(x: Tensor, y: Tensor, c: Tensor, kind: str) -> Tensor:
    return ops.pairwise_topk(x, y, 10, c, score=kind)[0]


@torch.no_grad()
def usual_topk(x: Tensor, y: Tensor, c: Tensor, kind: str) -> Tensor:
    return USUAL[kind](x, y, c).topk(10, largest=False)[0]


def _elementwise(op: str, N: int, D: int) -> dict[str, Call]:
    """Points within a few units of the origin, tangent vectors of length 1, curvature 1."""
    inputs = arguments(op, (N,), D, radius=D**-0.5, dtype=torch.float32)
    for name, tensor in zip(SIGNATURES[op], inputs, strict=True):
        if name in "uvg":
            tensor /= D**0.5
    inputs = [t.to(DEVICE).requires_grad_() for t in (*inputs, torch.tensor(1.0))]
    found: dict[str, Call] = {"auto": (partial(ours, op), inputs)}
    if op in MERU:
        found["usual"] = MERU[op], inputs
    if op in GEOOPT:
        theirs = in_geoopt(SIGNATURES[op], *inputs)
        found["geoopt"] = GEOOPT[op], [t.detach().requires_grad_() for t in theirs]
    if N >= LEAST_COMPILED and op != NOT_COMPILED:
        found |= {COMPILED[n]: (Compiled(f), args) for n, (f, args) in [*found.items()]}
    return found


class Compiled:
    """Compiled when it is first called: who is left out costs nothing."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.compiled: Callable[..., Tensor] | None = None

    def __call__(self, *args: Tensor) -> Tensor:
        if self.compiled is None:
            self.compiled = torch.compile(self.function)
        return self.compiled(*args)


def ours(op: str, *args: Tensor) -> Tensor:
    return getattr(ops, op)(*args[:-1], curv=args[-1])
