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
from clip_hyperbolic.config import Config, UserError, load, parse
from clip_hyperbolic.evaluate import evaluate
from clip_hyperbolic.model import Towers
from clip_hyperbolic.objective import Objective
from clip_hyperbolic.run import Log, Run, signals
from clip_hyperbolic.shards import expand, samples
from clip_hyperbolic.tokenizer import Words
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

console = Console(stderr=True, soft_wrap=True)


def prepare(config: Config, accelerator: Accelerator) -> None:
    """Fills in the shards where none are given: those of the emoji, which one process writes."""
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
    trained, tested = ("common", "rare") if config.unseen_concepts else ("*", "*")
    config.shards = [f"{folder}/{vendor}-{trained}.tar" for vendor in config.vendors]
    config.eval_shards = config.eval_shards or [
        f"{vendor}={folder}/{vendor}-{tested}.tar" for vendor in config.unseen_vendors
    ]


def learning_rate(step: int, config: Config) -> float:
    if step <= config.warmup:
        return config.lr * step / config.warmup
    done = (step - 1 - config.warmup) / (config.steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


def backward(
    batch: dict[str, Any], model: Any, objective: Objective, accelerator: Accelerator, micro: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch and its parts; gradients are left in the parameters.

    With `micro`, every pair is still contrasted with the whole batch: points are computed without
    gradients, piece by piece, then the loss and its gradient at the points, then each piece again,
    into which that gradient is sent back (Gao et al. 2021, GradCache): exact, one piece in memory.
    """
    whole = (batch["pixels"], *batch["tokens"])
    targets = [batch[name] for name in ("index", "labels", "boxes") if name in batch]
    count = min(math.ceil(len(whole[0]) / micro), len(whole[1])) if micro else 1
    if count == 1:
        loss, parts = objective(*model(*whole), *targets)
        accelerator.backward(loss)
        return loss.detach(), parts

    pieces = [*zip(*(t.tensor_split(count) for t in whole), strict=True)]
    with torch.no_grad():
        images, texts, curvs, scales = zip(*(model(*piece) for piece in pieces), strict=True)
    found = [torch.cat(images), torch.cat(texts), curvs[0], scales[0]]
    found = [t.detach().requires_grad_() for t in found]
    loss, parts = objective(*found, *targets)
    accelerator.backward(loss)
    at = [torch.zeros_like(t) if t.grad is None else t.grad for t in found]
    for i, (piece, *of_points) in enumerate(
        zip(pieces, *(g.tensor_split(count) for g in at[:2]), strict=True)
    ):
        last = i == count - 1  # where processes exchange gradients, and those of numbers count
        with nullcontext() if last else accelerator.no_sync(model):
            gradients = [*of_points, *(g * last for g in at[2:])]
            sum((x * g).sum() for x, g in zip(model(*piece), gradients, strict=True)).backward()
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


def finish(config: Config, folder: Path, model: Towers, words: Words) -> None:
    """Saves the model for transformers, evaluates on all that was asked for, writes the report."""
    model.save(folder / "model", words, config.image_size)
    results: dict[str, Any] = {}
    for name, pattern in config.evaluated.items():
        lost: list[str] = []
        stream = samples(expand([pattern]), lost.append)
        source = f"--eval-shards {name}={pattern}"
        results[name] = evaluate(model, words, config.objective, config.image_size, stream, source)
        for message in lost:
            console.print(f"skipped: {message}", markup=False)
    write_json(folder / "evaluation.json", results)
    if results:
        console.print(report.table(results))
    console.print(f"The report: {report.write(folder, config, model, words, results)}")


def start(argv: list[str] | None) -> None:
    config, flags = parse(__doc__ or "", argv)
    accelerator = Accelerator(mixed_precision=config.precision, cpu=not torch.cuda.is_available())
    begun, saved = time.perf_counter(), None
    if flags.resume:
        folder = Path(flags.resume)
        config = load(folder / "config.json")
        if checkpoint.all_of(folder):  # else it was killed before its first: from the start
            saved = Checkpoint.of(folder)
    else:
        prepare(config, accelerator)
        stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.objective}"
        folder = Path(config.output_dir or Path("runs", stamp))
    if flags.dry_run:
        describe(config)
        return
    expand(config.evaluated.values())  # what is missing is missing before hours of training
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
        finish(config, folder, run.towers, run.words)
        console.print(f"{time.perf_counter() - begun:.0f} s in all")
    accelerator.end_training()


def main(argv: list[str] | None = None) -> int:
    try:
        start(argv)
    except UserError as error:
        console.print(f"error: {error}", markup=False, style="red")
        return 2
    except KeyboardInterrupt as stopped:
        where = f"; it goes on with --resume {stopped.args[0]}" if stopped.args else ""
        console.print(f"interrupted{where}", markup=False)
        return 130
    return 0


def describe(config: Config) -> None:
    words = Words.of(config, samples(expand(config.shards)[:1], [].append))
    with torch.device("meta"):
        model = Towers.of(config, len(words))
    console.print_json(data=vars(config))
    towers = {"image tower": model.model.vision_model, "text tower": model.model.text_model}
    for name, part in towers.items():
        console.print(f"{name}: {sum(p.numel() for p in part.parameters()):,} parameters")


if __name__ == "__main__":
    sys.exit(main())
