"""Trains CLIP in hyperbolic space: "Accept the Modality Gap" (atmg), MERU (meru), HyCoCLIP, CLIP.

    python examples/train_clip_hyperbolic.py                     emoji, two cores, in minutes
    python examples/train_clip_hyperbolic.py --preset vit-b --shards 'redcaps/{00000..01231}.tar'
    python examples/train_clip_hyperbolic.py --resume RUN        goes on bit for bit
    accelerate launch --num-processes 8 examples/train_clip_hyperbolic.py ...

Writes to --output-dir: config.json, metrics.jsonl, TensorBoard events, checkpoints/ (safetensors),
evaluation.json, report/index.html, and model/, which lorentzkit.clip and transformers load.
"""

from __future__ import annotations

import math
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from clip_hyperbolic import checkpoint, emoji, report
from clip_hyperbolic.checkpoint import Checkpoint, write_json
from clip_hyperbolic.config import Config, UserError, parse
from clip_hyperbolic.evaluate import evaluate, no_pair
from clip_hyperbolic.model import Towers
from clip_hyperbolic.objective import Objective
from clip_hyperbolic.run import Log, Run, signals
from clip_hyperbolic.shards import expand, samples
from clip_hyperbolic.tokenizer import CaptionTokenizer
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

console = Console(stderr=True, soft_wrap=True)


def prepare(config: Config, accelerator: Accelerator) -> None:
    """Without shards, fills in those of the emoji, which one process writes first."""
    if config.shards:
        return
    folder = Path(config.cache_dir or emoji.default_cache())
    if unknown := {*config.vendors, *config.unseen_vendors} - {*emoji.VENDORS}:
        raise UserError(f"vendors {sorted(unknown)}: expected some of {', '.join(emoji.VENDORS)}")
    if accelerator.is_main_process and not emoji.is_complete(folder):
        console.print(f"Emoji drawings of seven vendors, into {folder}. {emoji.LICENCE}")
        with Progress(console=console) as bar:
            task = bar.add_task("preparing", total=1.0)
            emoji.prepare(folder, lambda share: bar.update(task, completed=share))
    accelerator.wait_for_everyone()
    training_fold, test_fold = ("common", "rare") if config.unseen_concepts else ("*", "*")
    config.shards = [f"{folder}/{vendor}-{training_fold}.tar" for vendor in config.vendors]
    config.eval_shards = config.eval_shards or [
        f"{vendor}={folder}/{vendor}-{test_fold}.tar" for vendor in config.unseen_vendors
    ]


def eval_flag(name: str, pattern: str) -> str:
    return f"--eval-shards {name}={pattern}"


def check_eval_shards(config: Config) -> None:
    """An error before training, not after it, if there will be nothing to evaluate on."""
    for name, pattern in config.eval_patterns.items():
        messages: list[str] = []
        if next(samples(expand([pattern]), messages.append), None) is None:
            raise no_pair(eval_flag(name, pattern), messages)


def learning_rate(step: int, config: Config) -> float:
    if step <= config.warmup:
        return config.lr * step / config.warmup
    progress = (step - 1 - config.warmup) / (config.steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def backward(
    batch: dict[str, Any], model: Any, objective: Objective, accelerator: Accelerator, micro: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch and its parts; gradients are left in the parameters.

    With `micro`, one piece of the batch at a time is in memory, and the gradient is still exact:
    every pair is contrasted with the whole batch (Gao et al. 2021, GradCache). First all points are
    computed without gradients, piece by piece. Then come the loss and its gradient at the points.
    Then each piece is computed again, and its part of that gradient is sent back through it.
    """
    inputs = (batch["pixels"], *batch["tokens"])
    targets = [batch[name] for name in ("index", "labels", "boxes") if name in batch]
    count = min(math.ceil(len(inputs[0]) / micro), len(inputs[1])) if micro else 1
    if count == 1:
        loss, parts = objective(*model(*inputs), *targets)
        accelerator.backward(loss)
        return loss.detach(), parts

    pieces = [*zip(*(t.tensor_split(count) for t in inputs), strict=True)]
    with torch.no_grad():
        images, texts, numbers = zip(*(model(*piece) for piece in pieces), strict=True)
    points = [torch.cat(z).requires_grad_() for z in (images, texts)]
    leaves = {name: t.detach().requires_grad_() for name, t in numbers[0].items()}
    loss, parts = objective(*points, leaves, *targets)
    accelerator.backward(loss)
    point_grads, number_grads = (
        [torch.zeros_like(t) if t.grad is None else t.grad for t in tensors]
        for tensors in (points, leaves.values())
    )
    pieces_with_grads = zip(pieces, *(g.tensor_split(count) for g in point_grads), strict=True)
    for i, (piece, *grads_of_piece) in enumerate(pieces_with_grads):
        # With the last piece processes exchange gradients. As all pieces return the same curvature
        # and logit scale, the gradients of these two are sent back once, there as well.
        is_last = i == count - 1
        with nullcontext() if is_last else accelerator.no_sync(model):
            *piece_points, piece_numbers = model(*piece)
            outputs = [*piece_points, *piece_numbers.values()]
            grad_outputs = [*grads_of_piece, *(g * is_last for g in number_grads)]
            sum((x * g).sum() for x, g in zip(outputs, grad_outputs, strict=True)).backward()
    return loss.detach(), parts


def train(run: Run) -> None:
    config, state, accelerator = run.config, run.state, run.accelerator
    log = Log(run, console)
    with log.bar, signals() as received:
        for step, batch in zip(
            range(state.step + 1, config.steps + 1), run.batches(), strict=False
        ):
            for message in batch["broken"]:
                log.say(f"skipped: {message}")
            for group in run.optimizer.param_groups:
                group["lr"] = learning_rate(step, config)
            loss, parts = backward(batch, run.model, run.objective, accelerator, config.micro_batch)
            norm = float(accelerator.clip_grad_norm_(run.model.parameters(), config.clip_norm))
            metrics = run.metrics(loss, parts, norm)
            if run.is_finite(metrics):
                run.optimizer.step()
                run.losses.append(metrics["loss"])
            else:
                log.say(run.skip(step, batch["keys"], metrics))
            run.optimizer.zero_grad()
            state.step = step
            log(step, metrics)
            if step % config.save_every == 0 or step == config.steps or received:
                run.save()
            if received:
                raise KeyboardInterrupt(run.folder)


def finish(config: Config, folder: Path, model: Towers, tokenizer: CaptionTokenizer) -> None:
    """Saves the model for transformers, evaluates on all `eval_shards`, writes the report."""
    model.save(folder / "model", tokenizer, config.image_size)
    results: dict[str, Any] = {}
    for name, pattern in config.eval_patterns.items():
        messages: list[str] = []
        stream = samples(expand([pattern]), messages.append)
        source = eval_flag(name, pattern)
        results[name] = evaluate(model, tokenizer, config.image_size, stream, source)
        for message in messages:
            console.print(f"skipped: {message}", markup=False)
    write_json(folder / "evaluation.json", results)
    if results:
        console.print(report.table(results))
    console.print(f"The report: {report.write(folder, config, model, tokenizer, results)}")


def start(argv: list[str] | None) -> None:
    config, flags = parse(__doc__ or "", argv)
    accelerator = Accelerator(mixed_precision=config.precision, cpu=not torch.cuda.is_available())
    started, saved = time.perf_counter(), None
    if flags.resume:
        folder = Path(flags.resume)
        if checkpoint.checkpoints_of(folder):  # a run killed before its first starts anew
            saved = Checkpoint.latest(folder)
    else:
        prepare(config, accelerator)
        default_name = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.objective}"
        folder = Path(config.output_dir or Path("runs", default_name))
    if flags.dry_run:
        describe(config)
        return
    check_eval_shards(config)
    if not flags.resume and accelerator.is_main_process:
        if (folder / "config.json").exists():
            raise UserError(
                f"{folder} holds a run already: --resume {folder} goes on with it, or choose "
                "another --output-dir"
            )
        write_json(folder / "config.json", vars(config))
    run = Run(config, folder, accelerator, saved)
    train(run)
    if accelerator.is_main_process:
        finish(config, folder, run.towers, run.tokenizer)
        console.print(f"{time.perf_counter() - started:.0f} s in all")
    accelerator.end_training()


def main(argv: list[str] | None = None) -> int:
    try:
        start(argv)
    except UserError as error:
        console.print(f"error: {error}", markup=False, style="red")
        return 2
    except KeyboardInterrupt as interrupt:
        hint = f"; it goes on with --resume {interrupt.args[0]}" if interrupt.args else ""
        console.print(f"interrupted{hint}", markup=False)
        return 130
    return 0


def describe(config: Config) -> None:
    """Prints the configuration and the sizes of the towers."""
    first_shard = samples(expand(config.shards)[:1], lambda message: None)
    tokenizer = CaptionTokenizer.from_samples(config, first_shard)
    with torch.device("meta"):
        model = Towers.from_config(config, len(tokenizer))
    console.print_json(data=vars(config))
    towers = {"image tower": model.model.vision_model, "text tower": model.model.text_model}
    for name, tower in towers.items():
        console.print(f"{name}: {sum(p.numel() for p in tower.parameters()):,} parameters")


if __name__ == "__main__":
    sys.exit(main())
