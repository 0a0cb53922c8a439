"""Trains CLIP in hyperbolic space: "Accept the Modality Gap" (atmg), MERU (meru), HyCoCLIP, CLIP.

    python examples/train_clip_hyperbolic.py                     emoji, two cores, in minutes
    python examples/train_clip_hyperbolic.py --preset vit-b --shards 'redcaps/{00000..01231}.tar'
    python examples/train_clip_hyperbolic.py --resume RUN        goes on bit for bit
    accelerate launch --num-processes 8 examples/train_clip_hyperbolic.py ...

Writes to --output-dir: config.json, metrics.jsonl, TensorBoard events, checkpoints/ (safetensors),
evaluation.json and report/index.html; of the presets vit-* model/, which lorentzkit.clip and
transformers load.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from clip_hyperbolic import checkpoint, emoji, report
from clip_hyperbolic.boxes import objective_of
from clip_hyperbolic.checkpoint import Checkpoint, write_atomically, write_json
from clip_hyperbolic.config import Config, UserError, load, parse
from clip_hyperbolic.data import Batches
from clip_hyperbolic.evaluate import evaluate
from clip_hyperbolic.model import Objective, TwoTowers, Words
from clip_hyperbolic.published import Towers, towers
from clip_hyperbolic.shards import expand, samples
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

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


def optimiser(model: TwoTowers | Towers, config: Config) -> torch.optim.AdamW:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2), fused=True)


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


class Log:
    """metrics.jsonl and TensorBoard events, from a step on."""

    def __init__(self, folder: Path, step: int) -> None:
        self.file = folder / "metrics.jsonl"
        kept = [line for line in report.metrics(folder) if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(self.file, lambda path: path.write_text(text, "utf-8"))
        self.events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def __call__(self, step: int, values: dict[str, float]) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self.events.add_scalar(name, value, step)


def train(
    config: Config, folder: Path, accelerator: Accelerator, saved: Checkpoint | None
) -> tuple[TwoTowers | Towers, Words]:
    main, rank, processes = (
        accelerator.is_main_process,
        accelerator.process_index,
        accelerator.num_processes,
    )
    if config.batch_size % processes:
        raise UserError(f"--batch-size {config.batch_size}: no multiple of {processes} processes")
    set_seed(config.seed)
    words = (
        saved.words if saved else Words.of(config, samples(expand(config.shards)[:10], [].append))
    )
    bare = towers(config, len(words))
    model, optimizer = accelerator.prepare(bare, optimiser(bare, config))
    objective = objective_of(config)
    state: dict[str, Any] = {"step": 0, "best": math.inf, "skipped": 0, "broken": 0}
    positions = torch.zeros(processes, max(1, config.workers), dtype=torch.int64)
    if saved:
        saved.restore(bare, optimizer.optimizer)
        state, positions = saved.state, saved.tensors["positions"]
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
    if positions.shape != (processes, max(1, config.workers)):
        raise UserError(f"--resume: the run had {len(positions)} processes; start as many")
    mine = positions[rank].to(accelerator.device)
    # A signal waits for the end of the step, and of its checkpoint; in workers it does nothing.
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stop.append(number))
    stream = Batches(config, rank, processes, state["step"], mine.tolist())
    loader = iter(DataLoader(stream, batch_size=None, num_workers=config.workers))
    if saved:  # after all that draws random numbers to begin with
        torch.set_rng_state(saved.tensors["random"])
    log = Log(folder, state["step"]) if main else None

    def save() -> None:
        everyone = accelerator.gather(mine).view(positions.shape).cpu()
        mean = sum(since_save) / max(1, len(since_save))
        is_best, state["best"] = mean < state["best"], min(mean, state["best"])
        since_save.clear()
        if accelerator.scaler is not None:
            state["scaler"] = accelerator.scaler.state_dict()
        if main:
            checkpoint.save(
                folder, config, words, bare, optimizer.optimizer, state, everyone, is_best
            )

    since_save: list[float] = []
    since, begun = state["step"], time.perf_counter()
    numbers_column = TextColumn("{task.description}", table_column=Column(no_wrap=False))
    columns = (BarColumn(10), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, numbers_column, console=console, disable=not main) as bar:
        task = bar.add_task("", total=config.steps, completed=state["step"])
        for step in range(state["step"] + 1, config.steps + 1):
            batch = next(loader)
            mine[batch["worker"]] = batch["position"]
            for message in batch["broken"]:
                state["broken"] += 1
                bar.console.print(f"skipped: {message}", markup=False)
            batch = send_to_device({**batch, "tokens": words(batch["texts"])}, accelerator.device)
            rate = learning_rate(step, config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, parts = backward(batch, model, objective, accelerator, config.micro_batch)
            norm = float(accelerator.clip_grad_norm_(model.parameters(), config.clip_norm))
            numbers = {
                name: accelerator.reduce(part.detach(), "mean").item()
                for name, part in {"loss": loss, **parts}.items()
            }
            numbers |= {"curvature": bare.curv().item(), "logit_scale": bare.logit_scale().item()}
            numbers |= {"gradient_norm": norm, "lr": rate, "broken": state["broken"]}
            # fp16 answers an infinite gradient with a smaller scale, and skips the step by itself
            if math.isfinite(numbers["loss"] + (0.0 if config.precision == "fp16" else norm)):
                optimizer.step()
                since_save.append(numbers["loss"])
            else:
                state["skipped"] += 1
                dump = folder / f"nonfinite-{step}-{rank}.json"
                write_json(dump, {"step": step, "keys": batch["keys"], **numbers})
                if state["skipped"] > config.skip_nonfinite:
                    raise UserError(
                        f"step {step}: the loss or its gradient is not finite; {dump} has the keys "
                        "of the batch and the parts. Lower --lr, or let some such steps pass with "
                        "--skip-nonfinite N; the last checkpoint is from before"
                    )
                bar.console.print(f"step {step} skipped, not finite: {dump}", markup=False)
            optimizer.zero_grad()
            state["step"] = step
            if log and (step % config.log_every == 0 or step == config.steps):
                now = time.perf_counter()
                numbers["images_per_second"] = config.batch_size * (step - since) / (now - begun)
                since, begun = step, now
                log(step, numbers)
                hidden = ("gradient_norm", "lr", "broken")
                shown = [f"{k} {v:.3g}" for k, v in numbers.items() if k not in hidden]
                bar.update(task, description=", ".join(shown).replace("_", " "))
            bar.update(task, completed=step)
            if step % config.save_every == 0 or step == config.steps or stop:
                save()
            if stop:
                raise KeyboardInterrupt(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return bare, words


def finish(config: Config, folder: Path, model: TwoTowers | Towers, words: Words) -> None:
    """Saves the model for transformers, evaluates on all that was asked for, writes the report."""
    if isinstance(model, Towers):
        model.save(folder / "model", words)
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


def run(argv: list[str] | None) -> None:
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
    model, words = train(config, folder, accelerator, saved)
    if accelerator.is_main_process:
        finish(config, folder, model, words)
        console.print(f"{time.perf_counter() - begun:.0f} s in all")
    accelerator.end_training()


def main(argv: list[str] | None = None) -> int:
    try:
        run(argv)
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
        model = towers(config, len(words))
    console.print_json(data=vars(config))
    for name, part in (("image tower", model.image_tower), ("text tower", model.text_tower)):
        console.print(f"{name}: {sum(p.numel() for p in part.parameters()):,} parameters")


if __name__ == "__main__":
    sys.exit(main())
