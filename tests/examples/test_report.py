"""A page for any shards: few samples, any text, any number of ancestors."""

import io
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from clip_hyperbolic import report
from clip_hyperbolic.model import Towers
from clip_hyperbolic.shards import samples
from clip_hyperbolic.tokenizer import CaptionTokenizer
from pictures import small_config
from rich.console import Console
from test_shards import files_with
from test_shards import write as write_shard


def page_of(shard: str, folder: Path, **changes: Any) -> str:
    """The page of a model that was trained for no step, about the samples of a shard."""
    config = small_config(shard, eval_shards=[f"test={shard}"], **changes)
    tokenizer = CaptionTokenizer.from_samples(config, samples([shard], pytest.fail))
    torch.manual_seed(0)
    model = Towers.from_config(config, len(tokenizer))
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n', "utf-8")
    return report.write(folder, config, model, tokenizer, {}).read_text("utf-8")


DOLLARS = ["from $20 (50% off) to $10", "a $100% off$ sale & $#", "was $20, now $10", "$\\foo$"]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_few_samples_have_a_page(count: int, tmp_path: Path) -> None:
    files = {f"{i}": files_with(caption=f"number {i}") for i in range(count)}
    page = page_of(write_shard(tmp_path / "shard.tar", files), tmp_path / "run")
    assert "Texts and their five best images" in page
    assert ("Poincare" in page) == (count > 2)


def test_dollars_and_long_texts_are_plain_text(tmp_path: Path) -> None:
    captions = [*DOLLARS, "long " * 2000, "白" * 300]
    files = {
        f"{i}": files_with(caption=caption, ancestors=[DOLLARS[i % 4], "b"])
        for i, caption in enumerate(captions)
    }
    assert "Poincare" in page_of(write_shard(tmp_path / "shard.tar", files), tmp_path / "run")


def test_many_ancestors_have_a_page(tmp_path: Path) -> None:
    """The commonest have a cone."""
    names = ["common", *(f"rare {i}" for i in range(99)), "common"]
    files = {
        f"{i}": files_with(caption=f"number {i}", ancestors=[name, "b"])
        for i, name in enumerate(names)
    }
    shard = write_shard(tmp_path / "shard.tar", files)
    config = small_config(shard)
    tokenizer = CaptionTokenizer.from_samples(config, samples([shard], pytest.fail))
    view = report.View(config, Towers.from_config(config, len(tokenizer)), tokenizer, [shard])
    legend = view.disk().axes[0].get_legend()
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels.count("common") == labels.count("others") == 1
    assert len(labels) == len(report.COLOURS) + 1
    assert matplotlib.rcParams["text.parse_math"]  # for log axes of others


@pytest.mark.parametrize("name", ["Twtr", "redcaps-validation-2021"])
def test_the_table_is_legible_at_80_columns(name: str) -> None:
    recalls = {f"R@{k}": 0.123 for k in (1, 5, 10)}
    scores = {"t2i": recalls, "i2t": recalls}
    result = {**dict.fromkeys(report.SUFFIXES, scores), "hierarchy": {"i2t_TIE": 4.56}}
    console = Console(width=80, file=io.StringIO(), soft_wrap=True)
    console.print(report.table({name: result}))
    output = console.file.getvalue()
    assert max(map(len, output.splitlines())) <= 80
    assert "…" not in output
    assert output.count("0.123") == 18
    for word in ("keywords", "midpoint", "R@10", "t2i", "i2t", "TIE", "4.56"):
        assert word in output
    assert "".join(line[:24].strip() for line in output.splitlines()).count(name) == 3


def test_a_name_in_the_table_is_no_markup() -> None:
    scores = {direction: {f"R@{k}": 0.5 for k in (1, 5, 10)} for direction in ("t2i", "i2t")}
    console = Console(width=80, file=io.StringIO())
    console.print(report.table({"goo[cd].tar": {"retrieval": scores, "hierarchy": {}}}))
    assert "goo[cd].tar" in console.file.getvalue()
