"""A run's figures, and one page that holds them all and needs no other file."""

from __future__ import annotations

import base64
import html
import io
import json
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib
import torch
from rich import box
from rich.table import Table
from torch import Tensor

from lorentzkit import ops

from .checkpoint import write_atomically
from .config import Config
from .evaluate import ancestors, embed_images, embed_texts, ranking
from .images import fitted
from .model import Towers
from .shards import expand, samples
from .tokenizer import Words

matplotlib.use("Agg")  # figures go to files: no display is needed

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lorentzkit import viz

ROOT = "[ROOT]"
COLOURS = ("#2f6fb5", "#e07b27", "#3a9a4c", "#c23b3b", "#7d5bb0", "#8c5a3c", "#d1609f", "#6b7a87")
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}"
    "img{max-width:100%}table{border-collapse:collapse}td,th{padding:.2rem .7rem;text-align:right}"
    "td:first-child{text-align:left}tr:nth-child(even){background:#f4f4f2}summary{cursor:pointer}"
)


def metrics(run: Path) -> list[dict[str, Any]]:
    """What a run has logged; a line that a kill cut off is left out, with all behind it."""
    file, lines = run / "metrics.jsonl", []
    if file.exists():
        for line in file.read_text("utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
    return lines


FORMS = {
    "retrieval": "",
    "retrieval_keywords": " + keywords",
    "retrieval_midpoints": ", midpoint",
}


def rows(results: dict[str, Any]) -> list[list[str]]:
    """A heading, and for every set of shards what counts most, as text."""
    made = [["test", *(f"{way} R@{k}" for way in ("t2i", "i2t") for k in (1, 5, 10)), "i2t TIE"]]
    for name, result in results.items():
        for key, suffix in FORMS.items():
            if key in result:
                found = [
                    f"{result[key][way].get(f'R@{k}', float('nan')):.3f}"
                    for way in ("t2i", "i2t")
                    for k in (1, 5, 10)
                ]
                tie = "" if suffix else f"{result['hierarchy'].get('i2t_TIE', float('nan')):.2f}"
                made.append([name + suffix, *found, tie])
    return made


def table(results: dict[str, Any]) -> Table:
    """For a terminal of 80 columns: names wrap, figures do not."""
    heading, *others = rows(results)
    made = Table(title="retrieval", title_justify="left", box=box.SIMPLE)
    made.add_column(heading[0], overflow="fold")
    for name in heading[1:]:
        made.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True)
    for row in others:
        made.add_row(*row)
    return made


class View:
    """What the figures show of one model: some images, all their texts and ancestors, as points."""

    def __init__(self, config: Config, model: Towers, words: Words, shards: list[str]) -> None:
        model.eval()
        self.config, self.model = config, model
        self.samples = list(samples(expand(shards), lambda message: None))
        self.pictures = [fitted(sample.image, 72) for sample in self.samples]
        self.images, _ = embed_images(model, self.samples, config.image_size)
        captions = chain.from_iterable(sample.captions for sample in self.samples)
        self.captions = list(dict.fromkeys(captions))
        self.levels = {
            f"ancestors {i}": [path[-1] for path in paths]
            for i, paths in enumerate(ancestors(self.samples), 1)
        } | {"captions": self.captions}
        self.texts = {name: embed_texts(model, words, texts) for name, texts in self.levels.items()}
        self.curv = model.curv().detach().cpu()
        self.shown = torch.randperm(
            len(self.samples), generator=torch.Generator().manual_seed(0)
        ).tolist()

    def way_to_root(self, image: int, steps: int = 50) -> list[str]:
        """The nearest text, the root among them, at each step from an image to the origin."""
        names = [name for texts in self.levels.values() for name in texts] + [ROOT]
        origin = torch.zeros_like(self.images[:1])
        points = torch.cat([*self.texts.values(), origin])
        t = torch.linspace(0, 1, steps)
        way = ops.geodesic(t, self.images[image], origin[0], self.curv)
        nearest = ops.pairwise_topk(way, points, self.curv, k=1)[1][:, 0]
        return [names[i] for i in nearest.tolist()]

    def traversals(self, count: int = 4) -> Figure:
        figure = Figure(figsize=(4 * count, 5), layout="constrained")
        panels = figure.subplots(1, count, squeeze=False)[0]
        for axes, image in zip(panels, self.shown, strict=False):
            first, *others = self.way_to_root(image)
            viz.traversal([(first, self.pictures[image]), *others], ax=axes)
            axes.set_title(self.samples[image].caption, loc="left", fontweight="bold")
        return figure

    def radii(self) -> Figure:
        figure = Figure(figsize=(9, 4), layout="constrained")
        viz.radius_histogram(self.texts | {"images": self.images}, self.curv, ax=figure.subplots())
        return figure

    def disk(self) -> Figure:
        """The first two directions in which captions differ; how far out points are is kept."""
        figure = Figure(figsize=(11, 8), layout="constrained")
        axes = viz.poincare_disk(figure.subplots())
        vectors = ops.logmap0(self.texts["captions"], self.curv)
        directions = torch.pca_lowrank(vectors, q=2)[2]

        def place(x: Tensor) -> Tensor:
            v = ops.logmap0(x, self.curv)  # less the middle, which all share: it tells none apart
            unit = torch.nn.functional.normalize((v - vectors.mean(0)) @ directions, dim=-1)
            return ops.expmap0(unit * v.norm(dim=-1, keepdim=True), self.curv)

        broadest = next(iter(self.levels))
        colour = dict(zip(self.levels[broadest], COLOURS * 99, strict=False))
        of_images = [colour.get(s.ancestors[0], "k") if s.ancestors else "k" for s in self.samples]
        viz.points(place(self.images), self.curv, ax=axes, s=3, c=of_images, alpha=0.5)
        viz.points(place(self.texts["captions"]), self.curv, ax=axes, s=3, c="#9aa1a8")
        for name, apex in zip(self.levels[broadest], place(self.texts[broadest]), strict=True):
            if broadest != "captions":
                style = {"ax": axes, "color": colour[name]}
                viz.cones(apex[None], self.curv, alpha=0.07, **style)
                viz.points(apex[None], self.curv, s=90, edgecolors="white", label=name, **style)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, title="cones, images")
        # the horizon may be far off
        reach = 1.3 * abs(viz.coordinates(place(self.images), self.curv)).max()
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach))
        return figure

    def grid(self, count: int = 10) -> Figure:
        """For some captions the five best images, right ones framed green and wrong ones red."""
        figure = Figure(figsize=(9, 1.25 * count), layout="constrained")
        chosen = [self.samples[i] for i in self.shown[:count]]
        asked = self.texts["captions"][[self.captions.index(s.caption) for s in chosen]]
        found = ranking(self.model, self.config.objective, asked, self.images, images_ask=False)[
            :, :5
        ]
        for line, sample, best in zip(
            figure.subplots(count, 6, squeeze=False), chosen, found.tolist(), strict=True
        ):
            line[0].axis("off")
            line[0].text(1, 0.5, sample.caption, ha="right", va="center", wrap=True)
            for axes, i in zip(line[1:], best, strict=False):
                right = self.samples[i].concept == sample.concept
                _picture(axes, self.pictures[i], "#3a9a4c" if right else "#c23b3b")
            for axes in line[1 + len(best) :]:
                axes.axis("off")
        return figure


def _picture(axes: Axes, picture: Any, frame: str = "none") -> None:
    axes.imshow(picture)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=frame, linewidth=3)


def curves(logged: list[dict[str, Any]]) -> Figure:
    """All that was logged, each over the steps."""
    names = [name for name in logged[-1] if name not in ("step", "broken")]
    figure = Figure(figsize=(14, 2.6 * -(-len(names) // 3)), layout="constrained")
    for axes, name in zip(figure.subplots(-(-len(names) // 3), 3).flat, names, strict=False):
        lines = [line for line in logged if name in line]
        axes.plot([line["step"] for line in lines], [line[name] for line in lines], color="#2f6fb5")
        axes.set_title(name.replace("_", " "), loc="left", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def write(
    folder: Path, config: Config, model: Towers, words: Words, results: dict[str, Any]
) -> Path:
    """The figures as files in `report/`, and `report/index.html` with all of them inside."""
    figures = {"Training": curves(metrics(folder))}
    if config.eval_shards:
        view = View(config, model, words, [next(iter(config.evaluated.values()))])
        figures["Texts and their five best images"] = view.grid()
        if model.hyperbolic:
            figures["Distance from the origin, by level"] = view.radii()
            figures[
                "In the Poincare disk: images, captions in grey, cones of the broadest texts"
            ] = view.disk()
            figures["From an image to the root: the nearest texts"] = view.traversals()
    parts = []
    for number, (title, figure) in enumerate(figures.items(), 1):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=90)
        picture = buffer.getvalue()
        write_atomically(
            folder / "report" / f"{number}.png", lambda path, data=picture: path.write_bytes(data)
        )
        data = base64.b64encode(picture).decode()
        parts.append(f"<h2>{title}</h2><img alt='{title}' src='data:image/png;base64,{data}'>")
    heading, *others = rows(results)
    lines = [f"<tr>{''.join(f'<th>{cell}</th>' for cell in heading)}</tr>"]
    lines += [
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in others
    ]
    settings, measured = (
        html.escape(json.dumps(content, indent=2, ensure_ascii=False))
        for content in (vars(config), results)
    )
    page = (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{config.objective}</title>"
        f"<style>{STYLE}</style><h1>{config.objective}: {config.steps} steps</h1>"
        f"<table>{''.join(lines)}</table>{''.join(parts)}"
        f"<h2>Details</h2><details><summary>All measures</summary><pre>{measured}</pre></details>"
        f"<details><summary>Configuration</summary><pre>{settings}</pre></details></html>"
    )
    file = folder / "report" / "index.html"
    write_atomically(file, lambda path: path.write_text(page, "utf-8"))
    return file
