"""The condition-scaled error: how many roundings of its *inputs* an op's error is worth.

The measure of an op in a dtype with unit roundoff `eps` (2^-24 or 2^-53), at exact inputs, is

    |f^ - f| / (eps * cond + eta * cond'),    cond  = |f| + sum_j |x_j| |df/dx_j|
                                              cond' = |1| + sum_j |1_j| |df/dx_j|

The sums are over all arguments, the curvature included. `|x|` is the Euclidean norm of a vector
argument (space components) and `|df/dx|` the operator norm of the Jacobian; each scalar, each
weight and each of a mean's points counts by itself. `eta` is the smallest subnormal and `1_j` a
vector of ones: the numbers of the result and of the inputs may be off by one subnormal, too. So 1
means: as wrong as the exact op would be, had each input been rounded once more. `tolerances.py`
says how much is allowed.

A gradient `g_j = w . df/dx_j` is an op as well, of the inputs and of the cotangent `w`:

    cond(g_j) = |g_j| + sum_k |x_k| |dg_j/dx_k| + |w| |df/dx_j|

Exact values come from `oracle.py` and derivatives from its differences: with steps 40 digits
below every scale of the problem, and digits to match, forward differences are exact to 20 digits
and more. No derivative is derived by hand. All ops commute with rotations (those of the half-space
with the ones that fix its axis), so the exact side works in the span of the vectors and one
direction out of it: 1024 dimensions cost what four do. Where the vectors span the whole space, as
always in one dimension, the condition is thus that of the same formula in one dimension more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import combinations

import numpy as np
import oracle
import torch
from mpmath import mp, mpf
from torch import Tensor

from lorentzkit import ops

Block = list[mpf]  # one argument, in the frame: a vector's coordinates, or a scalar's one value

# Arguments (a name says its kind: `points` are rows of vectors, `weights` a row of scalars) and
# the kind of the value. `curv` comes last, always.
OPS = {
    "time": "x -> scalar",
    "inner": "x y -> scalar",
    "tangent_inner": "x u v -> scalar",
    "tangent_norm": "x u -> scalar",
    "dist": "x y -> scalar",
    "dist0": "x -> scalar",
    "exterior_angle": "x y -> scalar",
    "interior_angle": "x y -> scalar",
    "half_aperture": "x -> scalar",
    "entailment_residual": "x y -> scalar",
    "expmap": "x u -> vector",
    "logmap": "x y -> vector",
    "expmap0": "u -> vector",
    "logmap0": "x -> vector",
    "geodesic": "t x y -> vector",
    "transp": "x y u -> vector",
    "transp0": "y u -> vector",
    "transp0back": "x u -> vector",
    "egrad2rgrad": "x g -> vector",
    "to_klein": "x -> vector",
    "from_klein": "k -> vector",
    "to_poincare": "x -> vector",
    "from_poincare": "p -> vector",
    "to_halfspace": "x -> vector",
    "from_halfspace": "h -> vector",
    "einstein_midpoint": "points weights -> vector",
    "frechet_mean": "points weights -> vector",
}

DEVICE = "cpu"  # where what is measured is computed; the fixture `device` changes it

STEP_DIGITS = 40
FRAME_DIGITS = 1500  # no Gram matrix of float64 vectors, subnormals included, needs more


def value_error(
    op: str, args: Sequence[Tensor], curv: Tensor, function: Callable | None = None, **kw: float
) -> float:
    """The condition-scaled error of `lorentzkit.ops.<op>(*args, curv, **kw)`.

    `function` takes the op's place: to measure another library's formula, say.
    """
    got = _computed(function or getattr(ops, op), (*args, curv), kw)
    problem = Problem(op, args, curv, None, kw)
    with mp.workdps(problem.digits):
        inputs = range(len(problem.blocks))
        changes = [operator_norm(problem.jacobian(j)) for j in inputs]
        cond = oracle.norm(problem.value) + mp.fdot(problem.norms, changes)
        return problem.error(got, problem.value, cond, mp.fdot(problem.ones, changes))


def gradient_errors(
    op: str,
    args: Sequence[Tensor],
    curv: Tensor,
    cotangent: Tensor | None = None,
    function: Callable | None = None,
    **kw: float,
) -> dict[str, float]:
    """The condition-scaled error of the gradient in each argument, `curv` included, by name.

    `cotangent` is what the gradient of a vector-valued op is pulled back from.
    """
    inputs = [a.detach().clone().requires_grad_() for a in (*args, curv)]
    out = _computed(function or getattr(ops, op), inputs, kw)
    got = torch.autograd.grad(out, inputs, cotangent, materialize_grads=True)

    problem = Problem(op, args, curv, cotangent, kw)
    errors = dict.fromkeys(problem.names, 0.0)
    gradients = [item for name, g in zip(errors, got, strict=True) for item in _items(name, g)]
    with mp.workdps(problem.digits):
        for j, (name, gradient) in enumerate(zip(problem.names, gradients, strict=True)):
            errors[name] = max(errors[name], _gradient_error(problem, j, gradient))
    return errors


def _computed(function: Callable, args: Sequence[Tensor], kw: Mapping[str, float]) -> Tensor:
    """The function's value on `DEVICE`, for arguments of the CPU and back there."""
    with torch.device(DEVICE):
        return function(*(a.to(DEVICE) for a in args), **kw).cpu()


def _gradient_error(problem: Problem, j: int, got: Tensor) -> float:
    exact = [oracle.dot(problem.cotangent, column) for column in problem.jacobian(j)]
    inputs = range(len(problem.blocks))
    changes = [operator_norm(problem.hessian(j, k)) for k in inputs]
    by_cotangent = operator_norm(problem.jacobian(j))
    cond = oracle.norm(exact) + mp.fdot(problem.norms, changes)
    cond += oracle.norm(problem.cotangent) * by_cotangent
    return problem.error(got, exact, cond, mp.fdot(problem.ones, changes) + by_cotangent)


def generic(*vectors: Tensor) -> bool:
    """Whether the vectors are linearly independent: angles have a kink where they are not."""
    return Frame(vectors).rank == len(vectors)


class Problem:
    """An op at given inputs, exactly: its value and derivatives in a frame of few dimensions."""

    def __init__(
        self,
        op: str,
        args: Sequence[Tensor],
        curv: Tensor,
        cotangent: Tensor | None,
        kw: Mapping[str, float],
    ) -> None:
        names = _signature(op)
        self.dtype = curv.dtype
        self._op = getattr(oracle, op)
        self._kw = {name: mpf(value) for name, value in kw.items()}
        self._sizes = [len(_items(n, a)) for n, a in zip(names, (*args, curv), strict=True)]
        self._stacked = [n in ("points", "weights") for n in names]
        self.names = [n for n, size in zip(names, self._sizes, strict=True) for _ in range(size)]
        items = [i for n, a in zip(names, (*args, curv), strict=True) for i in _items(n, a)]

        vectors = [item for item in items if item.ndim] + ([] if cotangent is None else [cotangent])
        axis = torch.eye(len(vectors[0]), dtype=self.dtype)[-1:]
        self.frame = Frame([*(axis if "halfspace" in op else []), *vectors])
        self.ones = [mp.sqrt(item.numel()) for item in items]
        self.blocks = [self.frame.place(i) if i.ndim else [mpf(i.item())] for i in items]
        self.cotangent = [mpf(1)] if cotangent is None else self.frame.place(cotangent)

        self._gap, lowest, highest = self._scales([item.ndim > 0 for item in items])
        lost = 4 * mp.log10(1 / self._gap) + 2 * mp.log10(1 / lowest) + 8 * mp.log10(highest)
        self.digits = 60 + 2 * STEP_DIGITS + int(lost)
        self._shifted: dict[tuple, Block] = {}
        with mp.workdps(self.digits):
            self.norms = [oracle.norm(block) for block in self.blocks]
            # A geodesic's parameter is a place in [0, 1]: 1 - t matters as much as t.
            named = zip(self.names, self.norms, strict=True)
            self.norms = [max(r, mpf(1)) if n == "t" else r for n, r in named]
            weights = [r for n, r in zip(self.names, self.norms, strict=True) if n == "weights"]
            # A mean may depend on a weight of 0 as on cosh(s) times that of the others.
            least = max(weights, default=mpf(0)) / highest**2
            scales = [least if n == "weights" else mpf(0) for n in self.names]
            self._steps = list(map(self._step, self.blocks, self.norms, scales))
            if op == "frechet_mean":
                self._kw["start"] = self.value

    def _scales(self, is_vector: list[bool]) -> tuple[mpf, mpf, mpf]:
        """How near the inputs are to where derivatives blow up: differences need finer steps there.

        Returned are the smallest ratio of a vector's nonzero coordinate, or of two vectors'
        nonzero distance, to its length; the shortest and the longest vector in units of the
        radius of curvature, the former at most, the latter at least 1.
        """
        vectors = [b for b, vector in zip(self.blocks, is_vector, strict=True) if vector and any(b)]
        ratios = [abs(x) / oracle.norm(v) for v in vectors for x in v]
        for v, w in combinations(vectors, 2):
            ratios.append(oracle.norm(oracle.sub(v, w)) / max(oracle.norm(v), oracle.norm(w)))
        radii = [mp.sqrt(self.blocks[-1][0]) * oracle.norm(v) for v in vectors]
        if len(vectors) < sum(is_vector):
            radii.append(subnormal(self.dtype))
        gap = min([mpf(1), *(r for r in ratios if r)])
        return gap, min([mpf(1), *radii]), max([mpf(1), *radii])

    def _step(self, block: Block, norm: mpf, scale: mpf) -> mpf:
        """Zero has the scale given, or else no other than that of the smallest number beside it."""
        unit = norm or scale or subnormal(self.dtype)
        if len(block) > 1:
            unit = min(unit, 1 / mp.sqrt(self.blocks[-1][0]))
        return mpf(10) ** -STEP_DIGITS * self._gap * unit

    def _at(self, *shifts: tuple[int, int]) -> Block:
        """The value with coordinate i of block j one step further, for each (j, i)."""
        key = tuple(sorted(shifts))
        if key not in self._shifted:
            blocks = [list(block) for block in self.blocks]
            for j, i in shifts:
                blocks[j][i] += self._steps[j]
            self._shifted[key] = self._evaluate(blocks)
        return self._shifted[key]

    def _evaluate(self, blocks: list[Block]) -> Block:
        rest, args = [b if len(b) > 1 else b[0] for b in blocks], []
        for size, stacked in zip(self._sizes, self._stacked, strict=True):
            args.append(rest[:size] if stacked else rest[0])
            rest = rest[size:]
        value = self._op(*args, **self._kw)
        return value if isinstance(value, list) else [value]

    @cached_property
    def value(self) -> Block:
        return self._at()

    def jacobian(self, j: int) -> list[Block]:
        """The derivative along each coordinate of block j."""
        change = [oracle.sub(self._at((j, i)), self.value) for i in range(len(self.blocks[j]))]
        return [oracle.mul(1 / self._steps[j], column) for column in change]

    def hessian(self, j: int, k: int) -> list[Block]:
        """Second derivatives of (cotangent . value) along the coordinates of blocks j and k."""
        scale = 1 / (self._steps[j] * self._steps[k])
        return [
            [scale * self._second((j, i), (k, n)) for n in range(len(self.blocks[k]))]
            for i in range(len(self.blocks[j]))
        ]

    def _second(self, p: tuple[int, int], q: tuple[int, int]) -> mpf:
        both = oracle.sub(self._at(p, q), self._at(p))
        return oracle.dot(self.cotangent, oracle.sub(both, oracle.sub(self._at(q), self.value)))

    def error(self, got: Tensor, exact: Block, cond: mpf, underflow: mpf) -> float:
        """|got - exact| in units of what rounding the inputs once would change."""
        info = torch.finfo(self.dtype)
        if oracle.norm(exact) > info.max / 4:
            return 0.0  # nothing to represent it with
        if oracle.norm(exact) < info.tiny and got.norm() < info.tiny:
            return 0.0  # subnormal: the fewer digits, the smaller
        if not got.isfinite().all():
            return math.inf
        difference = (
            self.frame.distance(got, exact) if got.ndim else abs(mpf(got.item()) - exact[0])
        )
        underflow += mp.sqrt(got.numel())
        # torch's eps is the spacing above 1: twice the unit roundoff.
        return float(difference / (info.eps / 2 * cond + subnormal(self.dtype) * underflow))


class Frame:
    """Orthonormal coordinates in the span of some vectors, from their exact inner products."""

    def __init__(self, vectors: Sequence[Tensor]) -> None:
        self._basis: list[tuple[Tensor, Block]] = []  # Cholesky's rows, dependent vectors left out
        with mp.workdps(FRAME_DIGITS):
            for v in vectors:
                inside, outside = self._split(v)
                if outside > mpf(10) ** (100 - FRAME_DIGITS) * exact_dot(v, v):
                    self._basis.append((v, [*inside, mp.sqrt(outside)]))
        self.rank = len(self._basis)
        self.dim = max(2, self.rank + 1)

    def _split(self, v: Tensor) -> tuple[Block, mpf]:
        """The coordinates of v, and the square of its distance to the span."""
        inside: Block = []
        for b, row in self._basis:
            inside.append((exact_dot(b, v) - oracle.dot(row[:-1], inside)) / row[-1])
        noise = mpf(10) ** (100 - FRAME_DIGITS) * mp.sqrt(exact_dot(v, v))
        inside = [x if abs(x) > noise else mpf(0) for x in inside]
        return inside, max(mpf(0), exact_dot(v, v) - oracle.dot(inside, inside))

    def place(self, v: Tensor) -> Block:
        """v in the frame, the first basis vector last: the half-space's axis stays the last."""
        with mp.workdps(FRAME_DIGITS):
            inside, _ = self._split(v)
            return [mpf(0)] * (self.dim - self.rank) + inside[::-1]

    def distance(self, v: Tensor, coordinates: Block) -> mpf:
        with mp.workdps(FRAME_DIGITS):
            _, outside = self._split(v)
            return mp.sqrt(outside + oracle.norm(oracle.sub(self.place(v), coordinates)) ** 2)


def subnormal(dtype: torch.dtype) -> mpf:
    info = torch.finfo(dtype)
    return mpf(info.tiny) * info.eps


def exact_dot(x: Tensor, y: Tensor) -> mpf:
    (a, m), (b, n) = _integers(x), _integers(y)
    return mp.ldexp(mpf(int(a @ b)), m + n)


def _integers(x: Tensor) -> tuple[np.ndarray, int]:
    """x as Python integers times 2^n."""
    mantissa, exponent = np.frexp(x.detach().double().numpy())
    lowest = int(exponent[mantissa != 0].min(initial=2000))
    shift = np.where(mantissa != 0, exponent - lowest, 0).astype(object)
    return np.ldexp(mantissa, 53).astype(np.int64).astype(object) << shift, lowest - 53


def operator_norm(matrix: list[Block]) -> mpf:
    largest = max(abs(entry) for row in matrix for entry in row)
    if not largest:
        return largest
    scaled = [[float(entry / largest) for entry in row] for row in matrix]
    return largest * float(np.linalg.norm(np.array(scaled), 2))


def _signature(op: str) -> list[str]:
    return [*OPS[op].split(" -> ")[0].split(), "curv"]


def _items(name: str, argument: Tensor) -> Sequence[Tensor]:
    """The blocks of an argument: each point, each weight, or the whole."""
    return argument.unbind() if name in ("points", "weights") else [argument]
