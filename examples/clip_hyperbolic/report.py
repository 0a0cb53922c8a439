"""A run's figures, and one page that holds them all and needs no other file."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import textwrap
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib
import torch
from rich import box
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from lorentzkit import ops

from .checkpoint import write_atomically
from .config import Config
from .evaluate import ancestors, embed_images, embed_texts, ranking
from .images import fitted
from .model import Towers
from .shards import expand, samples
from .tokenizer import CaptionTokenizer

matplotlib.use("Agg")  # figures go to files: no display is needed

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lorentzkit import viz

ROOT = "[ROOT]"
plain_text = matplotlib.rc_context({"text.parse_math": False})  # captions may have dollars
COLOURS = ("#2f6fb5", "#e07b27", "#3a9a4c", "#c23b3b", "#7d5bb0", "#8c5a3c", "#d1609f", "#6b7a87")
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}"
    "img{max-width:100%}table{border-collapse:collapse}td,th{padding:.2rem .7rem;text-align:right}"
    "td:first-child{text-align:left}tr:nth-child(even){background:#f4f4f2}summary{cursor:pointer}"
)


def metrics(run: Path) -> list[dict[str, Any]]:
    """What a run has logged, up to the first line that a kill cut off."""
    file, logged = run / "metrics.jsonl", []
    if file.exists():
        for line in file.read_text("utf-8").splitlines():
            try:
                logged.append(json.loads(line))
            except ValueError:
                break
    return logged


# The retrieval measures, by what their row adds to the name of the shards.
SUFFIXES = {
    "retrieval": "",
    "retrieval_keywords": " + keywords",
    "retrieval_midpoints": ", midpoint",
}


def rows(results: dict[str, Any]) -> list[list[str]]:
    """A heading, and for every set of shards what counts most, as text."""
    columns = [(direction, k) for direction in ("t2i", "i2t") for k in (1, 5, 10)]
    lines = [["test", *(f"{direction} R@{k}" for direction, k in columns), "i2t TIE"]]
    for name, result in results.items():
        for measure, suffix in SUFFIXES.items():
            if measure in result:
                scores = result[measure]
                recalls = [scores[direction].get(f"R@{k}", math.nan) for direction, k in columns]
                tie = "" if suffix else f"{result['hierarchy'].get('i2t_TIE', math.nan):.2f}"
                lines.append([name + suffix, *(f"{recall:.3f}" for recall in recalls), tie])
    return lines


def table(results: dict[str, Any]) -> Table:
    """For a terminal of 80 columns: names wrap, numbers do not."""
    heading, *body = rows(results)
    printed = Table(title="retrieval", title_justify="left", box=box.SIMPLE)
    printed.add_column(heading[0], overflow="fold")
    for name in heading[1:]:
        printed.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True)
    for row in body:
        printed.add_row(escape(row[0]), *row[1:])
    return printed


class View:
    """What the figures show of one model: the points of some images, their texts and ancestors."""

    def __init__(
        self, config: Config, model: Towers, tokenizer: CaptionTokenizer, shards: list[str]
    ) -> None:
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
        self.texts = {
            name: embed_texts(model, tokenizer, texts) for name, texts in self.levels.items()
        }
        self.shown = torch.randperm(
            len(self.samples), generator=torch.Generator().manual_seed(0)
        ).tolist()

    @property
    def curv(self) -> Tensor:
        """Of a hyperbolic model."""
        return self.model.model.curv().detach().cpu()

    def path_to_root(self, image: int, steps: int = 50) -> list[str]:
        """The nearest text, or the root, at each step from an image to the origin."""
        names = [name for texts in self.levels.values() for name in texts] + [ROOT]
        origin = torch.zeros_like(self.images[:1])
        points = torch.cat([*self.texts.values(), origin])
        t = torch.linspace(0, 1, steps)
        path = ops.geodesic(t, self.images[image], origin[0], self.curv)
        nearest = ops.pairwise_topk(path, points, self.curv, k=1)[1][:, 0]
        return [_shortened(names[i], 40) for i in nearest.tolist()]

    @plain_text
    def traversals(self, count: int = 4) -> Figure:
        count = min(count, len(self.shown))
        figure = Figure(figsize=(4 * count, 5), layout="constrained")
        panels = figure.subplots(1, count, squeeze=False)[0]
        for axes, image in zip(panels, self.shown[:count], strict=True):
            nearest, *texts_above = self.path_to_root(image)
            viz.traversal([(nearest, self.pictures[image]), *texts_above], ax=axes)
            title = _shortened(self.samples[image].caption, 30)
            axes.set_title(title, loc="left", fontweight="bold")
        return figure

    def radii(self) -> Figure:
        figure = Figure(figsize=(9, 4), layout="constrained")
        viz.radius_histogram(self.texts | {"images": self.images}, self.curv, ax=figure.subplots())
        return figure

    @plain_text
    def disk(self) -> Figure:
        """All points in the plane of the two directions in which captions differ most.

        Their distances from the origin are kept.
        """
        figure = Figure(figsize=(11, 8), layout="constrained")
        axes = viz.poincare_disk(figure.subplots())
        vectors = ops.logmap0(self.texts["captions"], self.curv)
        directions = torch.pca_lowrank(vectors, q=2)[2]

        def project(x: Tensor) -> Tensor:
            v = ops.logmap0(x, self.curv)
            # The mean is taken off: all points share its direction, which tells none apart.
            unit = torch.nn.functional.normalize((v - vectors.mean(0)) @ directions, dim=-1)
            return ops.expmap0(unit * v.norm(dim=-1, keepdim=True), self.curv)

        broadest = next(iter(self.levels))
        # The commonest have a colour and a cone; others would not be told apart.
        commonest = Counter(s.ancestors[0] for s in self.samples if s.ancestors)
        shown = [name for name, _ in commonest.most_common(len(COLOURS))]
        colours = dict(zip(shown, COLOURS, strict=False))
        image_colours = [
            colours.get(s.ancestors[0], "k") if s.ancestors else "k" for s in self.samples
        ]
        viz.points(project(self.images), self.curv, ax=axes, s=3, c=image_colours, alpha=0.5)
        viz.points(project(self.texts["captions"]), self.curv, ax=axes, s=3, c="#9aa1a8")
        for name, apex in zip(self.levels[broadest], project(self.texts[broadest]), strict=True):
            if name in colours:
                style = {"ax": axes, "color": colours[name]}
                viz.cones(apex[None], self.curv, alpha=0.07, **style)
                style |= {"edgecolors": "white", "label": _shortened(name, 40)}
                viz.points(apex[None], self.curv, s=90, **style)
        if len(commonest) > len(colours):
            axes.scatter([], [], color="k", label="others")
        if colours:
            legend = {"bbox_to_anchor": (1, 1), "frameon": False, "title": "cones, images"}
            axes.legend(loc="upper left", **legend)
        # The horizon may be far off: it is left out, or shown whole.
        limit = 1.3 * abs(viz.coordinates(project(self.images), self.curv)).max()
        limit = limit if limit < 0.7 else 1.02
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
        return figure

    @plain_text
    def grid(self, count: int = 10) -> Figure:
        """For some captions the five best images: right ones framed green, wrong ones red."""
        count = min(count, len(self.shown))
        figure = Figure(figsize=(9, 1.25 * count), layout="constrained")
        chosen = [self.samples[i] for i in self.shown[:count]]
        queries = self.texts["captions"][[self.captions.index(s.caption) for s in chosen]]
        ranked = ranking(self.model, queries, self.images, images_ask=False)
        panels = figure.subplots(count, 6, squeeze=False)
        for row, sample, best in zip(panels, chosen, ranked[:, :5].tolist(), strict=True):
            row[0].axis("off")
            # Wrapped here: matplotlib's `wrap` reads dollars as math.
            lines = textwrap.fill(_shortened(sample.caption, 75), 25)
            row[0].text(1, 0.5, lines, ha="right", va="center")
            for axes, i in zip(row[1:], best, strict=False):
                is_right = self.samples[i].concept == sample.concept
                _show(axes, self.pictures[i], "#3a9a4c" if is_right else "#c23b3b")
            for axes in row[1 + len(best) :]:
                axes.axis("off")
        return figure


def _shortened(text: str, length: int) -> str:
    """A text, without its middle if it is longer."""
    end = (length - 3) // 2
    return text if len(text) <= length else f"{text[:end]}...{text[-end:]}"


def _show(axes: Axes, picture: Any, frame: str) -> None:
    axes.imshow(picture)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=frame, linewidth=3)


def curves(logged: list[dict[str, Any]]) -> Figure:
    """Each logged number, over the steps."""
    names = [name for name in logged[-1] if name not in ("step", "broken")]
    figure = Figure(figsize=(14, 2.6 * -(-len(names) // 3)), layout="constrained")
    for axes, name in zip(figure.subplots(-(-len(names) // 3), 3).flat, names, strict=False):
        lines = [line for line in logged if name in line]
        axes.plot([line["step"] for line in lines], [line[name] for line in lines], color="#2f6fb5")
        axes.set_title(name.replace("_", " "), loc="left", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw(
    folder: Path, config: Config, model: Towers, tokenizer: CaptionTokenizer
) -> dict[str, Figure]:
    """The figures of a run, by their titles."""
    figures = {"Training": curves(metrics(folder))}
    if config.eval_shards:
        view = View(config, model, tokenizer, [next(iter(config.eval_patterns.values()))])
        figures["Texts and their five best images"] = view.grid()
        if model.hyperbolic:
            figures["Distance from the origin, by level"] = view.radii()
            if len(view.captions) > 2:  # which span a plane
                figures[
                    "In the Poincare disk: images, captions in grey, cones of the broadest texts"
                ] = view.disk()
            figures["From an image to the root: the nearest texts"] = view.traversals()
    return figures


def write(
    folder: Path,
    config: Config,
    model: Towers,
    tokenizer: CaptionTokenizer,
    results: dict[str, Any],
) -> Path:
    """The figures as files in `report/`, and `report/index.html` with all of them inside."""
    sections = []
    for number, (title, figure) in enumerate(draw(folder, config, model, tokenizer).items(), 1):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=90)
        file = folder / "report" / f"{number}.png"
        png = buffer.getvalue()
        write_atomically(file, lambda path, png=png: path.write_bytes(png))
        encoded = base64.b64encode(png).decode()
        image = f"<img alt='{title}' src='data:image/png;base64,{encoded}'>"
        sections.append(f"<h2>{title}</h2>{image}")
    settings, measures = (
        html.escape(json.dumps(content, indent=2, ensure_ascii=False))
        for content in (vars(config), results)
    )
    page = (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{config.objective}</title>"
        f"<style>{STYLE}</style><h1>{config.objective}: {config.steps} steps</h1>"
        f"<table>{html_rows(results)}</table>{''.join(sections)}"
        f"<h2>Details</h2><details><summary>All measures</summary><pre>{measures}</pre></details>"
        f"<details><summary>Configuration</summary><pre>{settings}</pre></details></html>"
    )
    file = folder / "report" / "index.html"
    write_atomically(file, lambda path: path.write_text(page, "utf-8"))
    return file


def html_rows(results: dict[str, Any]) -> str:
    heading, *body = rows(results)
    lines = [f"<tr>{''.join(f'<th>{cell}</th>' for cell in heading)}</tr>"]
    lines += [
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in body
    ]
    return "".join(lines)
