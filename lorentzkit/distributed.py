"""A batch spread over processes: a ring of exchanges, and differentiable gathering.

Every process holds a share of the batch. `losses.contrastive_loss(group=...)` sends the shares of
y round the ring: in as many rounds as there are processes each meets every share, keeps the sums
of its own rows, and hands those of the columns on with the share they belong to. The memory of a
process is O(n D) for a share of n, and the traffic of a step 3 D numbers for each point of the
whole batch's y: the share, and backward the share and its gradient.

**Gradients** follow `torch.nn.parallel.DistributedDataParallel`, which averages those of
parameters over the processes: a loss is that of a process's own anchors, the mean over the
processes is that of the whole batch, and what flows back into a process's points is the gradient
of the *sum* over the processes. Averaged, that is the gradient of the whole batch's loss on one
process, to rounding.

Every process must call the same functions in the same order, with shares of equal size. They first
tell each other whether their arguments are well: a bad one on one process raises on all. Under
``torchrun`` or ``accelerate launch`` there is nothing to set up beyond their own process group,
with NCCL for CUDA tensors and Gloo for those of the CPU. How long a process waits for a lost one
is that group's timeout: ``init_process_group(timeout=timedelta(minutes=2))``,
``InitProcessGroupKwargs(timeout=...)`` for accelerate. (Under NCCL a watchdog ends the process.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

Group = Any
"""A `torch.distributed.ProcessGroup`, or None; unnamed, for torch is built without them on some
platforms."""

_T = TypeVar("_T")
_LONGEST = 512  # bytes that a process says of its arguments
_WELL = "+"


def gather(x: Tensor, group: Group = None) -> Tensor:
    """The shares of all processes, one after the other: ``(n, ...) -> (processes * n, ...)``.

    Args:
        x: of the same shape and dtype on every process.
        group: the processes; None for all.

    Returns:
        The same tensor on every process, in the order of their ranks. Its gradient is the sum over
        the processes of what flows back into this process's share.

    Raises:
        ValueError: on every process, if the shapes, dtypes or devices differ.
        RuntimeError: if a process is lost; the message has its rank.

    Source: Radford et al. 2021 (CLIP) gather features so; the gradient is that of OpenCLIP's
    ``gather_with_grad``.
    """
    ring = Ring(group)
    return ring.gather(ring.check("x", lambda: (described(x), x)))


def described(*tensors: Tensor) -> list[object]:
    """What exchanged tensors must have in common; raises if one is none."""
    for x in tensors:
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a torch.Tensor, got {type(x).__name__}")
    return [(tuple(t.shape), str(t.dtype), t.device.type) for t in tensors]


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ring: Ring) -> Tensor:
        ctx.ring = ring
        return torch.cat(ring.all_of(x.contiguous()))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        ring: Ring = ctx.ring
        # Each share's sum ends where it belongs if it sets out from the process after that one.
        shares = grad_output.contiguous().chunk(ring.size)
        total = shares[ring.rank - 1]
        for round_ in range(2, ring.size + 1):
            (total,) = ring.hand_on(total)()
            total = total + shares[ring.rank - round_]
        return total, None


class Ring:
    """The processes of a group, each of which hears from the one before and tells the one after."""

    def __init__(self, group: Group = None) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "group: torch.distributed has no process group; call init_process_group first, or "
                "start the script with torchrun or accelerate launch"
            )
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("group: this process does not belong to it")

    def round(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The tensors of this process, then those of the one before it, and so on."""
        for last in [False] * (self.size - 1) + [True]:
            received = None if last else self.hand_on(*tensors)  # while the caller computes
            yield tensors
            if received:
                tensors = received()

    def hand_on(self, *tensors: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        """Sends to the process after this one; the result waits for those of the one before."""
        if self.size == 1:
            return lambda: tensors
        after, before = ((self.rank + step) % self.size for step in (1, -1))
        contiguous = [t.contiguous() for t in tensors]
        received = tuple(torch.empty_like(t) for t in contiguous)
        operations = [
            *(self._operation(dist.isend, t, after) for t in contiguous),
            *(self._operation(dist.irecv, t, before) for t in received),
        ]
        peers = [after] * len(tensors) + [before] * len(tensors)
        with self._lost(after):
            works = dist.batch_isend_irecv(operations)

        def wait() -> tuple[Tensor, ...]:
            # NCCL has one piece of work for the whole batch.
            for work, peer in zip(works, peers, strict=False):
                with self._lost(peer):
                    work.wait()
            del contiguous[:]  # they had to live until here
            return received

        return wait

    def all_of(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes, by rank."""
        shares = [share for (share,) in self.round(tensor)]
        return [shares[(self.rank - rank) % self.size] for rank in range(self.size)]

    def gather(self, x: Tensor) -> Tensor:
        """As `gather`, of checked shares."""
        gathered: Tensor = _Gather.apply(x, self)  # type: ignore[no-untyped-call]
        return gathered

    def check(self, names: str, validate: Callable[[], tuple[list[object], _T]]) -> _T:
        """What ``validate()`` found on this process, once every process knows that all is well.

        Args:
            names: of the arguments, for the error.
            validate: checks the arguments of this process; gives what must be the same on all, and
                what it found.

        Raises:
            TypeError, ValueError: on every process, if ``validate`` raises on one.
        """
        error = None
        try:
            same, result = validate()
            mine = f"{_WELL}{same!r}"
        except Exception as caught:  # the others wait for this process: first it tells them
            error, mine = caught, str(caught)
        said = self._said(mine)
        wrong = {rank: what for rank, what in enumerate(said) if not what.startswith(_WELL)}
        if wrong:
            got = "; ".join(f"rank {rank}: {what}" for rank, what in wrong.items())
            raise (TypeError if type(error) is TypeError else ValueError)(got) from error
        if len(set(said)) > 1:
            got = "; ".join(f"rank {rank}: {what[1:]}" for rank, what in enumerate(said))
            raise ValueError(
                f"{names}: expected the same shapes, dtypes and settings on every process, got "
                f"{got}; leave out an incomplete last batch (DataLoader(drop_last=True))"
            )
        return result

    def _said(self, text: str) -> list[str]:
        """The texts of all processes, of which the ends are cut off, in one exchange."""
        code = text.encode()[:_LONGEST].ljust(_LONGEST)
        mine = torch.frombuffer(bytearray(code), dtype=torch.uint8).to(self._device())
        return [bytes(c.tolist()).decode(errors="ignore").strip() for c in self.all_of(mine)]

    def _device(self) -> torch.device:
        """One that the group exchanges between, whatever tensors this process was given."""
        backends = str(dist.get_backend_config(self.group)).split(",")  # as "cpu:gloo,cuda:nccl"
        kinds = [backend.partition(":")[0] for backend in backends]
        return torch.device("cpu" if "cpu" in kinds else kinds[0])

    def _operation(self, operation: Callable[..., Any], tensor: Tensor, peer: int) -> dist.P2POp:
        return dist.P2POp(operation, tensor, self._global(peer), self.group)

    def _global(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)

    @contextmanager
    def _lost(self, peer: int) -> Iterator[None]:
        """Turns a failed exchange into an error that names the process."""
        try:
            yield
        except RuntimeError as error:
            lost = self._first_lost(self._global(peer))
            raise RuntimeError(
                f"rank {dist.get_rank()}: lost the exchange with rank {lost}, which has died, does "
                f"not answer within the process group's timeout, or left the common order of "
                f"calls: {error}"
            ) from error

    @staticmethod
    def _first_lost(peer: int) -> str:
        """The rank that was missed first: those after it are missed because they miss it."""
        try:
            store = dist.distributed_c10d._get_default_store()
            return store.compare_set("lorentzkit/lost", "", str(peer)).decode()
        except Exception:  # the store went with the process that kept it
            return str(peer)


__all__ = ["Group", "Ring", "gather"]
