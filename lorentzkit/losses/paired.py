"""The loss of a batch as one operation for autograd.

On a GPU, by kernels; on a CPU, of few pairs (x[i], y[i]), with its gradient and all pairs at once.

| ``contrastive_loss`` of | runs |
| --- | --- |
| a batch on a GPU, whatever the targets and the reduction | `fused.triton.anchors` |
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
from dataclasses import replace
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
from lorentzkit.fused.problems import Batch, LossProblem, LossTerms
from lorentzkit.losses.anchors import Anchors, check_positives, of_pairs, reduced


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


def kernel_loss(
    batch: Batch, targets: int | tuple[Tensor, Tensor], reduction: str
) -> tuple[Tensor, ...] | None:
    """By the kernels for GPUs; None if that is not done here.

    Args:
        targets: the offset of each x's pair, or labels of x and of y.
        reduction: "none": the losses of x and of y; else one number.
    """
    inputs = batch[:4]
    if not _plain(*inputs):
        return None
    settings = batch.similarity, batch.precision, reduction
    positives = _positives(batch, targets)
    loss: tuple[Tensor, ...] = _KernelLoss.apply(settings, positives, *inputs)  # type: ignore[no-untyped-call]
    return loss


def _positives(batch: Batch, targets: int | tuple[Tensor, Tensor]) -> Any:
    of = _kernels("positives")
    if isinstance(targets, int):
        return of.of_offset(len(batch.x), len(batch.y), targets, batch.x.device)
    positives = of.of_labels(*(labels.long() for labels in targets))
    check_positives(len(positives.i) > 0)
    return positives


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
            function = partial(_mean_by_reference, ctx.similarity)
            return None, None, *reference.vjp(function, inputs, (grad_output,))
        if values_known(grad_output):
            return None, None, *torch._foreach_mul(gradients, grad_output)
        return None, None, *(grad_output * gradient for gradient in gradients)


class _KernelLoss(Function):
    @staticmethod
    def forward(
        ctx: Any, settings: tuple[str, str, str], positives: Any, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        kernels, (similarity, precision, reduction) = _kernels("anchors"), settings
        found = kernels.losses(_problem(inputs, positives, similarity, precision), positives)
        out: tuple[Tensor, ...] = kernels.reduced(found, reduction, len(inputs[0]))
        ctx.settings = settings
        ctx.positives = positives  # integers, of which no one takes a derivative
        ctx.found = found._replace(losses=None)
        ctx.save_for_backward(*inputs)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        inputs, (similarity, precision, reduction) = ctx.saved_tensors, ctx.settings
        if torch.is_grad_enabled():  # to be differentiated again
            function = partial(_by_reference, similarity, ctx.positives, reduction)
            return None, None, *reference.vjp(function, inputs, grad_outputs)
        problem = _problem(inputs, ctx.positives, similarity, precision)
        arguments = problem, ctx.positives, ctx.found, grad_outputs, reduction
        return None, None, *_kernels("anchors").gradients(*arguments)


def _mean_by_reference(
    similarity: str, x: Tensor, y: Tensor, c: Tensor, scale: Tensor
) -> tuple[Tensor, ...]:
    problem = Batch(x, y, c, scale, similarity).problem()
    terms = LossTerms(*reference.log_sums(problem), reference.selected(problem.positives))
    return reduced(Anchors.paired(problem, terms), "mean")


def _problem(
    inputs: Sequence[Tensor], positives: Any, similarity: str, precision: str
) -> LossProblem:
    """The list of its pairs is empty: kernels have it from `positives`."""
    x, y, c, scale = inputs
    none = positives.row_ids[:0]
    ids = positives.row_ids, positives.column_ids
    return LossProblem(x, y, c, scale, *ids, none, none, similarity, precision)


def _kernels(name: str) -> ModuleType:
    # Triton is slow to import, and absent on many machines.
    return import_module(f"lorentzkit.fused.triton.{name}")


def _by_reference(
    similarity: str, positives: Any, reduction: str, *inputs: Tensor
) -> tuple[Tensor, ...]:
    i, j = positives.pairs()
    problem = replace(_problem(inputs, positives, similarity, "highest"), i=i, j=j)
    terms = LossTerms(*reference.log_sums(problem), reference.selected(problem.positives))
    return reduced(of_pairs(problem, terms), reduction)


__all__ = ["kernel_loss", "paired_loss"]
