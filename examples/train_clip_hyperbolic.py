"""Trains CLIP in hyperbolic space: "Accept the Modality Gap" (atmg), MERU (meru), or CLIP itself.

    python examples/train_clip_hyperbolic.py                     emoji, two cores, in minutes
    python examples/train_clip_hyperbolic.py --preset vit-b --shards 'redcaps/{00000..01231}.tar'
    python examples/train_clip_hyperbolic.py --resume RUN        goes on bit for bit
    accelerate launch --num-processes 8 examples/train_clip_hyperbolic.py ...

Writes to --output-dir: config.json, metrics.jsonl, TensorBoard events, checkpoints/ (safetensors),
evaluation.json and report/index.html.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from clip_hyperbolic import checkpoint, emoji, report
from clip_hyperbolic.checkpoint import Checkpoint, write_atomically
from clip_hyperbolic.config import Config, UserError, load, parse
from clip_hyperbolic.data import Batches, expand, samples
from clip_hyperbolic.evaluate import evaluate
from clip_hyperbolic.model import Objective, TwoTowers, Words
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

console = Console(stderr=True, soft_wrap=True)


def prepare(config: Config, accelerator: Accelerator) -> None:
    """Fills in the shards where none are given: those of the emoji, which one process writes."""
    if config.shards:
        return
    folder = Path(config.cache_dir or emoji.default_cache())
    unknown = {*config.vendors, *config.unseen_vendors} - {*emoji.VENDORS}
    if unknown:
        raise UserError(f"vendors {sorted(unknown)}: expected some of {', '.join(emoji.VENDORS)}")
    if accelerator.is_main_process and not emoji.is_complete(folder):
        console.print(f"Emoji drawings, seven vendors, into {folder}. {emoji.LICENCE}")
        with Progress(console=console) as bar:
            task = bar.add_task("preparing", total=1.0)
            emoji.prepare(folder, lambda share: bar.update(task, completed=share))
    accelerator.wait_for_everyone()
    folds = emoji.FOLDS[:1] if config.unseen_concepts else emoji.FOLDS
    config.shards = [f"{folder}/{vendor}-{fold}.tar" for vendor in config.vendors for fold in folds]
    if not config.eval_shards:
        tested = "rare" if config.unseen_concepts else "{common,rare}"
        config.eval_shards = [f"{v}={folder}/{v}-{tested}.tar" for v in config.unseen_vendors]


def vocabulary(config: Config) -> Words:
    """The tokenizer asked for, or one trained on the texts of (at most ten of) the shards."""
    if config.tokenizer:
        return Words.load(config.tokenizer, config.max_tokens)

    def texts() -> Iterator[str]:
        for sample in samples(expand(config.shards)[:10], lambda message: None):
            yield from (sample.caption, *sample.keywords, *sample.ancestors)

    return Words.trained(texts(), config)


def optimiser(model: TwoTowers, config: Config) -> torch.optim.AdamW:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2), fused=True)


def learning_rate(step: int, config: Config) -> float:
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


def backward(
    batch: dict[str, Any], model: Any, objective: Objective, accelerator: Accelerator, micro: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch and its parts; gradients are left in the parameters.

    With `micro`, every pair is still contrasted with the whole batch: points are computed without
    gradients, piece by piece, then the loss and its gradient at the points, then each piece again,
    into which that gradient is sent back (Gao et al. 2021, GradCache): exact, one piece in memory.
    """
    pixels, (tokens, mask) = batch["pixels"], batch["tokens"]
    index, labels = batch["index"], batch["labels"]
    count = min(math.ceil(len(pixels) / micro), len(tokens)) if micro else 1
    if count == 1:
        images, texts, curv, scale = model(pixels, (tokens, mask))
        loss, parts = objective(images, texts, curv, scale, index, labels)
        accelerator.backward(loss)
        return loss.detach(), parts

    pieces = [
        (some, (words, counting))
        for some, words, counting in zip(
            *(t.tensor_split(count) for t in (pixels, tokens, mask)), strict=True
        )
    ]
    with torch.no_grad():
        found = [model(*piece) for piece in pieces]
    images, texts = (torch.cat([f[i] for f in found]).requires_grad_() for i in (0, 1))
    curv, scale = (found[0][i].detach().requires_grad_() for i in (2, 3))
    loss, parts = objective(images, texts, curv, scale, index, labels)
    accelerator.backward(loss)
    at = [g.tensor_split(count) for g in (images.grad, texts.grad)]
    for i, piece in enumerate(pieces):
        last = i == count - 1
        with nullcontext() if last else accelerator.no_sync(model):
            some, words, curv_, scale_ = model(*piece)
            sent = (some * at[0][i]).sum() + (words * at[1][i]).sum()
            for number, grad in ((curv_, curv.grad), (scale_, scale.grad)):
                # In every piece, so that each has the same parameters; it counts in the last.
                sent = sent + number * (grad if last and grad is not None else 0.0)
            sent.backward()
    return loss.detach(), parts


class Run:
    """What a run writes as it goes: metrics.jsonl, TensorBoard events, checkpoints."""

    def __init__(self, folder: Path, step: int, main: bool) -> None:
        self.folder, self.main = folder, main
        self.file = folder / "metrics.jsonl"
        if main:
            folder.mkdir(parents=True, exist_ok=True)
            kept = [line for line in report.metrics(folder) if line["step"] <= step]
            text = "".join(json.dumps(line) + "\n" for line in kept)
            write_atomically(self.file, lambda path: path.write_text(text, "utf-8"))
            self.events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        if self.main:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
            for name, value in values.items():
                self.events.add_scalar(name, value, step)

    def write(self, name: str, content: Any) -> Path:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_atomically(self.folder / name, lambda path: path.write_text(text, "utf-8"))
        return self.folder / name


def train(
    config: Config, folder: Path, accelerator: Accelerator, saved: Checkpoint | None
) -> tuple[TwoTowers, Words]:
    set_seed(config.seed)
    if config.batch_size % accelerator.num_processes:
        raise UserError(
            f"--batch-size {config.batch_size}: not a multiple of {accelerator.num_processes}, the "
            "number of processes"
        )
    words = saved.words if saved else vocabulary(config)
    bare = TwoTowers(config, len(words))
    model, optimizer = accelerator.prepare(bare, optimiser(bare, config))
    objective = Objective(config)
    state: dict[str, Any] = {"step": 0, "best": math.inf, "skipped": 0, "broken": 0}
    positions = torch.zeros(accelerator.num_processes, max(1, config.workers), dtype=torch.int64)
    if saved:
        saved.restore(bare, optimizer.optimizer)
        state, positions = saved.state, saved.tensors["positions"]
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
    mine = positions[accelerator.process_index].to(accelerator.device)
    stream = Batches(
        config, accelerator.process_index, accelerator.num_processes, state["step"], mine.tolist()
    )
    loader = iter(DataLoader(stream, batch_size=None, num_workers=config.workers))
    if saved:  # after all that draws random numbers to begin with
        torch.set_rng_state(saved.tensors["random"])
    run = Run(folder, state["step"], accelerator.is_main_process)
    stop: list[int] = []
    handlers = {s: signal.signal(s, lambda s, _: stop.append(s)) for s in (2, 15)}

    def save(mean: float) -> None:
        everyone = accelerator.gather(mine).view(positions.shape).cpu()
        is_best, state["best"] = mean < state["best"], min(mean, state["best"])
        if accelerator.scaler is not None:
            state["scaler"] = accelerator.scaler.state_dict()
        if accelerator.is_main_process:
            checkpoint.save(
                folder, config, words, bare, optimizer.optimizer, state, everyone, is_best
            )

    since_save: list[float] = []
    since, begun = state["step"], time.perf_counter()
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not accelerator.is_main_process,
    ) as bar:
        task = bar.add_task("", total=config.steps, completed=state["step"])
        for step in range(state["step"] + 1, config.steps + 1):
            batch = next(loader)
            mine[batch["worker"]] = batch["position"]
            for message in batch["broken"]:
                state["broken"] += 1
                bar.console.print(f"skipped: {message}", markup=False)
            batch["tokens"] = words(batch["texts"])
            batch = _moved(batch, accelerator.device)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step - 1, config)
            loss, parts = backward(batch, model, objective, accelerator, config.micro_batch)
            norm = accelerator.clip_grad_norm_(model.parameters(), config.clip_norm)
            mean = accelerator.reduce(loss, "mean").item()
            numbers = {
                "loss": mean,
                **{
                    name: accelerator.reduce(p.detach(), "mean").item() for name, p in parts.items()
                },
                "curvature": bare.curv().item(),
                "logit_scale": bare.logit_scale().item(),
                "gradient_norm": float(norm),
                "lr": learning_rate(step - 1, config),
            }
            # fp16 answers an infinite gradient with a smaller scale, and skips the step itself
            if not math.isfinite(mean if config.precision == "fp16" else mean + float(norm)):
                state["skipped"] += 1
                _nonfinite(config, run, step, batch["keys"], numbers, state["skipped"])
            else:
                optimizer.step()
                since_save.append(mean)
            optimizer.zero_grad()
            state["step"] = step
            if step % config.log_every == 0 or step == config.steps:
                now = time.perf_counter()
                numbers["images_per_second"] = config.batch_size * (step - since) / (now - begun)
                since, begun = step, now
                run.log(step, numbers | {"broken": state["broken"]})
                bar.update(task, description=_line(numbers))
            bar.update(task, completed=step)
            if step % config.save_every == 0 or step == config.steps or stop:
                save(sum(since_save) / len(since_save) if since_save else math.inf)
                since_save.clear()
            if stop:
                raise KeyboardInterrupt
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return bare, words


def _moved(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    def move(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    return {
        name: tuple(map(move, value)) if isinstance(value, tuple) else move(value)
        for name, value in batch.items()
    }


def _line(numbers: dict[str, float]) -> str:
    skipped = ("gradient_norm", "lr", "images_per_second")
    parts = [f"{name} {value:.3g}" for name, value in numbers.items() if name not in skipped]
    return ", ".join([*parts, f"{numbers['images_per_second']:.0f} images/s"])


def _nonfinite(
    config: Config, run: Run, step: int, keys: list[str], numbers: dict[str, float], count: int
) -> None:
    """Writes down what led to a loss or gradient that is not finite; an error unless tolerated."""
    rank = os.environ.get("RANK", "0")
    dump = run.write(f"nonfinite-{step}-{rank}.json", {"step": step, "keys": keys, **numbers})
    if count > config.skip_nonfinite:
        raise UserError(
            f"step {step}: the loss or its gradient is not finite; {dump} has the batch and the "
            "parts. Lower --lr, or tolerate some such steps with --skip-nonfinite N; the last "
            "checkpoint is from before"
        )
    console.print(f"step {step} skipped, not finite: {dump}")


def finish(config: Config, run: Run, model: TwoTowers, words: Words) -> dict[str, Any]:
    """Evaluates on all that was asked for, and writes the report."""
    results: dict[str, Any] = {}
    for named in config.eval_shards:
        name, pattern = named.split("=", 1) if "=" in named else (Path(named).stem, named)
        lost: list[str] = []
        for suffix, keywords in (("", False), (" + keywords", True)):
            stream = samples(expand([pattern]), lost.append)
            found = evaluate(model, words, config, stream, keywords)
            if found["n_images"] == 0:
                raise UserError(f"--eval-shards {named}: no pair of image and text in there")
            results[name + suffix] = found
            if not keywords_matter(expand([pattern])):
                break
        for message in dict.fromkeys(lost):
            console.print(f"skipped: {message}", markup=False)
    run.write("evaluation.json", results)
    return results


def keywords_matter(shards: list[str]) -> bool:
    return bool(next(iter(samples(shards, lambda message: None))).keywords)


def main(argv: list[str] | None = None) -> int:
    config, flags = parse(__doc__ or "", argv)
    accelerator = Accelerator(mixed_precision=config.precision, cpu=not torch.cuda.is_available())
    begun = time.perf_counter()
    try:
        saved = None
        if flags.resume:
            config, folder = load(Path(flags.resume) / "config.json"), Path(flags.resume)
            saved = Checkpoint.of(folder)
        else:
            prepare(config, accelerator)
            stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.objective}"
            folder = Path(config.output_dir or Path("runs", stamp))
        if flags.dry_run:
            describe(config)
            return 0
        if not saved and accelerator.is_main_process:
            if (folder / "config.json").exists():
                raise UserError(
                    f"{folder} holds a run already: --resume {folder} goes on with it, or choose "
                    "another --output-dir"
                )
            config.save(folder)
        model, words = train(config, folder, accelerator, saved)
        if accelerator.is_main_process:
            run = Run(folder, config.steps, True)
            results = finish(config, run, model, words)
            console.print(report.table(results))
            page = report.write(folder, config, model, words, results)
            seconds = time.perf_counter() - begun
            console.print(f"{seconds:.0f} s in all; the report is {page}")
        accelerator.end_training()
        return 0
    except UserError as error:
        console.print(f"error: {error}", markup=False, style="red")
        return 2
    except KeyboardInterrupt:
        console.print(f"interrupted; it goes on with --resume {folder}")
        return 130


def describe(config: Config) -> None:
    words = vocabulary(config)
    with torch.device("meta"):
        model = TwoTowers(config, len(words))
    console.print_json(data=vars(config))
    for name, part in (("image tower", model.image_tower), ("text tower", model.text_tower)):
        console.print(f"{name}: {sum(p.numel() for p in part.parameters()):,} parameters")


if __name__ == "__main__":
    sys.exit(main())
