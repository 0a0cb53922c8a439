"""The mean loss of a batch of pairs (x[i], y[i]) as one operation for autograd.

On a CPU, with its gradient and all pairs at once; on a GPU, by kernels.

| ``contrastive_loss`` of | runs |
| --- | --- |
| pairs (x[i], y[i]), mean, "auto", float32, on a CPU, after enough work | `fused.batch_compiled` |
| the same before that, if the batch is very small | `fused.batch_numpy` |
| all else, in blocks | the backend that `registry.choose` names |

A small batch takes nearly all of its time to start operations. So the whole loss is one operation
for autograd, and its gradient is found along with its value: by one compiled function once the
batches have been work enough to earn that (`fused.batch_compiled`), until then, if they are very
small, in NumPy (`fused.batch_numpy`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lorentzkit._geometry.special import values_known
from lorentzkit._geometry.vectors import eager, wide_dtype
from lorentzkit.fused import batch_compiled, batch_numpy, reference
from lorentzkit.fused.problems import Batch, LossTerms
from lorentzkit.losses.anchors import Anchors


def paired_loss(batch: Batch) -> Tensor | None:
    """The mean over all x and all y of their losses; None if that is not done here."""
    inputs = batch[:4]
    if not _serves(*inputs):
        return None
    wanted = torch.is_grad_enabled() and any(z.requires_grad for z in inputs)
    run = (batch_compiled.earned(batch) if wanted else None) or batch_numpy.prepared(batch, wanted)
    if run is None:
        return None
    loss: Tensor = _PairedLoss.apply(batch, run, *inputs)  # type: ignore[no-untyped-call]
    return loss


def kernel_loss(batch: Batch) -> Tensor | None:
    """The same by the kernels for GPUs; None if that is not done here."""
    inputs = batch[:4]
    if not _plain(*inputs):
        return None
    loss: Tensor = _KernelLoss.apply(batch[4:], *inputs)  # type: ignore[no-untyped-call]
    return loss


def _serves(x: Tensor, *others: Tensor) -> bool:
    if x.dtype != torch.float32 or x.device.type != "cpu" or wide_dtype(x) == x.dtype:
        return False
    return _plain(x, *others)


def _plain(x: Tensor, *others: Tensor) -> bool:
    """Whether these are tensors with values, and nothing traces or transforms them."""
    if torch.compiler.is_compiling() or not eager(x):
        return False
    return not any(map(is_traceable_wrapper_subclass, (x, *others)))


class _PairedLoss(Function):
    @staticmethod
    def forward(ctx: Any, batch: Batch, run: batch_compiled.Run, *inputs: Tensor) -> Tensor:
        loss = run()
        ctx.similarity = batch.similarity
        ctx.save_for_backward(*inputs, *loss.gradients)
        return loss.value

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        inputs, gradients = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        if torch.is_grad_enabled():  # to be differentiated again
            function = partial(_by_reference, ctx.similarity)
            return None, None, *reference.vjp(function, inputs, (grad_output,))
        if values_known(grad_output):
            return None, None, *torch._foreach_mul(gradients, grad_output)
        return None, None, *(grad_output * gradient for gradient in gradients)


class _KernelLoss(Function):
    @staticmethod
    def forward(ctx: Any, settings: tuple[str, str], *inputs: Tensor) -> Tensor:
        mean: Tensor
        mean, *saved = _kernels().loss(_batch(inputs, settings).problem())
        ctx.settings = settings
        ctx.save_for_backward(*inputs, *saved)
        return mean

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, saved = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
        if torch.is_grad_enabled():  # to be differentiated again
            function = partial(_by_reference, ctx.settings[0])
            return None, *reference.vjp(function, inputs, (grad,))
        problem = _batch(inputs, ctx.settings).problem()
        return None, *_kernels().gradients(problem, saved, grad)


def _batch(inputs: Sequence[Tensor], settings: tuple[str, str]) -> Batch:
    x, y, c, scale = inputs
    return Batch(x, y, c, scale, *settings)


def _kernels() -> ModuleType:
    # Triton is slow to import, and absent on many machines.
    return import_module("lorentzkit.fused.triton.paired")


def _by_reference(similarity: str, x: Tensor, y: Tensor, c: Tensor, scale: Tensor) -> tuple[Tensor]:
    problem = Batch(x, y, c, scale, similarity).problem()
    terms = LossTerms(*reference.log_sums(problem), reference.selected(problem.positives))
    x_mean, y_mean = (side.losses().mean() for side in Anchors.paired(problem, terms))
    return ((x_mean + y_mean) / 2,)


__all__ = ["kernel_loss", "paired_loss"]
