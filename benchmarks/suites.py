"""What is measured: the rows of each suite, and the competitors of each row."""

from __future__ import annotations

import math
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
    earning,
    floor_step,
    fresh_process,
    in_fresh_process,
    installed_memory,
    step,
)
from rivals import (
    GEOOPT,
    Copies,
    Floor,
    adams,
    in_geoopt,
    pairwise_geoopt_dist,
)
from torch import Tensor
from usual_formulas import LOSSES, MERU, USUAL, usual_loss, usual_midpoint

from lorentzkit import ops
from lorentzkit.losses import centroid_loss, contrastive_loss

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from calls import SIGNATURES, arguments

Call = tuple[Callable[..., Tensor], list[Tensor]]  # a function and what it is called with
OP_OF = {"angle": "exterior_angle", "distance": "dist", "inner": "inner"}  # of a similarity
KINDS = {
    "elementwise": sorted(SIGNATURES),
    "loss": [*LOSSES],
    "batches": [*LOSSES],
    "pairwise": ["exterior_angle", "dist", "inner"],
    "topk": list(OP_OF),
    "memory": [*LOSSES],
    "means": ["einstein_midpoint", "centroid_loss"],
    "optimiser": ["RiemannianAdam"],
    "import": ["import"],
}
PAIRED = ("loss", "memory", "pairwise", "topk")  # of N x N pairs
SIZES = {  # where other than USUAL_SIZES
    "elementwise": [64, 4096],
    "batches": [32, 64, 128, 256, 512, 1024, 2048, 4096],
    "means": [],
    "optimiser": [],
    "import": [0],
}
USUAL_SIZES = [512, 2048, 4096]
DIMENSIONS = {"batches": [64, 512, 1024], "import": [0]}  # where other than the usual
USUAL_DIMENSIONS = [512]
OF_LOSSES = ("loss", "batches", "memory")
ALSO = {
    # Short rows: of so few columns that the formulas between the sums count.
    ("elementwise", "dist"): [(65536, 32), (1_000_000, 2)],
    ("means", "einstein_midpoint"): [(32768, 512), (200_000, 2)],
    ("means", "centroid_loss"): [(2048, 512)],
    ("optimiser", "RiemannianAdam"): [(100_000, 10)],
}
WITH_RIVALS = sorted({*MERU, *GEOOPT})  # elementwise ops measured in float64
FLOAT64_SIZES = [4096]
IMPORTS = {
    "python": "pass",
    "torch": "import torch",
    "lorentzkit": "import lorentzkit",
    "lorentzkit.ops": "import lorentzkit.ops",
    "geoopt": "import geoopt",
}
IMPLEMENTATIONS = ("auto", "reference")
OURS = (*IMPLEMENTATIONS, "auto_later", "auto_compiled", "lorentzkit", "lorentzkit.ops")
# Ops compile their rows once they have done enough work: first calls never, later ones always.
EARNED_AT = {"auto": math.inf, "auto_later": 0}
NEVER_EARNED = ("add_time", "einstein_midpoint")
EARNED_IN_FLOAT64 = (
    *("dist", "entailment_residual", "expmap", "exterior_angle", "inner", "logmap"),
    *("tangent_inner", "tangent_norm", "transp"),
)
# Steps under `torch.compile`, at large sizes only: compiling takes longer than all else.
LEAST_COMPILED = 1024
COMPILED = {"auto": "auto_compiled", "usual": "compiled", "geoopt": "geoopt_compiled"}
NOT_COMPILED = "frechet_mean"  # stops on the values
MATRICES = {"usual": 40, "compiled": 12, "reference": 70}  # held at once by the angle loss


class Row(NamedTuple):
    suite: str
    kind: str
    N: int = 0
    D: int = 0
    dtype: str = "float32"

    @property
    def key(self) -> str:
        dtype = "" if self.dtype == "float32" else self.dtype
        return " ".join(str(part) for part in (self.kind, self.N, self.D, dtype) if part)

    @property
    def also_compiled(self) -> bool:
        return self.N >= LEAST_COMPILED and self.dtype == "float32"

    @property
    def earns(self) -> bool:
        """Whether later calls are compiled."""
        if self.dtype == "float64":
            return self.N >= LEAST_COMPILED and self.kind in EARNED_IN_FLOAT64
        return self.kind not in NEVER_EARNED

    def names(self) -> list[str]:
        """The competitors, without making their inputs."""
        if self.suite == "import":
            return [*IMPORTS]
        if self.suite == "optimiser":
            return ["auto", "auto_later", "geoopt", "floor"]
        if self.suite == "batches":
            return [*self.functions()]
        if self.suite != "elementwise":
            return [name for name in (*self.functions(), "floor") if self.fits(name)]
        rivals = {"auto": True, "usual": self.kind in MERU, "geoopt": self.kind in GEOOPT}
        names = [name for name, exists in rivals.items() if exists]
        if self.also_compiled and self.kind != NOT_COMPILED:
            names += [COMPILED[name] for name in names]
        if self.earns:
            names.append("auto_later")
        return [*names, "floor"]

    def calls(self) -> dict[str, Call]:
        """By competitor: a function and its inputs."""
        if self.suite == "elementwise":
            return _elementwise(self)
        inputs = self.inputs()
        return {name: (f, inputs) for name, f in self.functions().items() if self.fits(name)}

    def inputs(self) -> list[Tensor]:
        """Texts and images as a trained model has them: in pairs, at radii up to 2."""
        torch.manual_seed(0)
        x = torch.randn(self.N, self.D, device=DEVICE)
        y = x + torch.randn(self.N, self.D, device=DEVICE)
        for z in (x, y):
            z *= 2 * torch.rand(self.N, 1, device=DEVICE) / z.norm(dim=1, keepdim=True)
        scaled = self.suite in OF_LOSSES or self.kind == "centroid_loss"
        scalars = [1.0, 14.0] if scaled else [1.0]
        points = [x] if self.kind == "einstein_midpoint" else [x, y]
        tensors = [*points, *(torch.tensor(s, device=DEVICE) for s in scalars)]
        return [t.requires_grad_() for t in tensors]

    def functions(self) -> dict[str, Callable[..., Tensor]]:
        if self.suite in OF_LOSSES:
            usual = partial(usual_loss, **LOSSES[self.kind])
            ours = partial(contrastive_loss, **LOSSES[self.kind])
            if self.suite == "batches":
                return {"auto": ours, "auto_later": ours, "usual": usual}
        elif self.suite == "topk":
            usual = partial(usual_topk, kind=self.kind)
            ours = partial(nearest, kind=self.kind)
            return {"auto": ours, "usual": usual, "compiled": Compiled(usual)}
        elif self.suite == "means":
            return MEANS[self.kind]
        else:
            usual, ours = USUAL[self.kind], getattr(ops, f"pairwise_{self.kind}")
        functions = {name: partial(ours, impl=name) for name in IMPLEMENTATIONS}
        functions |= {"usual": usual, "compiled": Compiled(usual)}
        if self.kind == "dist":
            functions["geoopt"] = pairwise_geoopt_dist
        return functions

    def fits(self, name: str) -> bool:
        if self.suite not in PAIRED:
            return True
        if name == "geoopt":
            return 0.7 * installed_memory() > self.N * self.N * self.D * 4 * 8
        return self.N * self.N * 4 * MATRICES.get(name, 0) < 0.7 * installed_memory()

    def steps(self, excluded: list[str]) -> dict[str, Step]:
        return {
            name: partial(earning, EARNED_AT[name], run) if name in EARNED_AT else run
            for name, run in self._every_step().items()
            if name not in excluded
        }

    def _every_step(self) -> dict[str, Step]:
        if self.suite == "import":
            statements = IMPORTS.items()
            return {name: partial(fresh_process, statement) for name, statement in statements}
        if self.suite == "optimiser":
            return _optimiser(self)
        calls = self.calls()
        steps: dict[str, Step] = {name: partial(step, *call) for name, call in calls.items()}
        inputs = calls["auto"][1]
        if self.suite == "batches":
            return steps
        if self.suite not in PAIRED:
            return steps | {"floor": partial(floor_step, Copies(inputs), True)}
        floor = Floor(*inputs[:2], recompute=self.suite == "loss")
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
    return ops.pairwise_topk(x, y, c, k=10, similarity=kind)[0]


@torch.no_grad()
def usual_topk(x: Tensor, y: Tensor, c: Tensor, kind: str) -> Tensor:
    return USUAL[OP_OF[kind]](x, y, c).topk(10, largest=False)[0]


def _centroids(x: Tensor, y: Tensor, c: Tensor, scale: Tensor) -> Tensor:
    return centroid_loss(text=x, image=y, curv=c, text_radius=0.5, image_radius=1.0)


MEANS: dict[str, dict[str, Callable[..., Tensor]]] = {
    "einstein_midpoint": {
        "auto": lambda x, c: ops.einstein_midpoint(x, curv=c),
        "usual": usual_midpoint,
    },
    "centroid_loss": {
        "auto": _centroids,
        "contrastive": partial(contrastive_loss, **LOSSES["both angles"]),
    },
}


def _optimiser(row: Row) -> dict[str, Step]:
    x, gradient = (v.detach() for v in row.inputs()[:2])
    optimisers = adams(x, gradient)
    floor = Copies([x, gradient, x, x])  # the point, its gradient, two moments
    steps: dict[str, Step] = {name: adam.step for name, adam in optimisers.items()}
    return steps | {"floor": partial(floor_step, floor, False)}


def _elementwise(row: Row) -> dict[str, Call]:
    """Points within a few units of the origin, tangent vectors of length 1, curvature 1."""
    op, D, dtype = row.kind, row.D, getattr(torch, row.dtype)
    inputs = arguments(op, (row.N,), D, radius=D**-0.5, dtype=dtype)
    for name, tensor in zip(SIGNATURES[op], inputs, strict=True):
        if name in "uvg":
            tensor /= D**0.5
    inputs = [t.to(DEVICE).requires_grad_() for t in (*inputs, torch.ones((), dtype=dtype))]
    calls: dict[str, Call] = {"auto": (partial(ours, op), inputs)}
    if op in MERU:
        calls["usual"] = MERU[op], inputs
    if op in GEOOPT:
        theirs = in_geoopt(SIGNATURES[op], *inputs)
        calls["geoopt"] = GEOOPT[op], [t.detach().requires_grad_() for t in theirs]
    if row.also_compiled and op != NOT_COMPILED:
        calls |= {COMPILED[n]: (Compiled(f), args) for n, (f, args) in [*calls.items()]}
    if row.earns:
        calls["auto_later"] = calls["auto"]
    return calls


class Compiled:
    """Compiles the function at its first call: a competitor that is left out costs nothing."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.compiled: Callable[..., Tensor] | None = None

    def __call__(self, *args: Tensor) -> Tensor:
        if self.compiled is None:
            self.compiled = torch.compile(self.function)
        return self.compiled(*args)


def ours(op: str, *args: Tensor) -> Tensor:
    return getattr(ops, op)(*args[:-1], curv=args[-1])
