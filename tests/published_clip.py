"""The published architecture of MERU and its relatives once more, of torch.nn alone.

With the names of the parameters in the published files, and a tokenizer that merges pair by pair.
Nothing here is shared with lorentzkit.clip.
"""

from __future__ import annotations

import gzip
import math
from itertools import pairwise
from pathlib import Path

import regex
import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        parts = self.qkv(x).reshape(n, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(width // self.heads)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, length, width))


class Hidden(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class VisionBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width), Hidden(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Patches(nn.Module):
    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, size, stride=size)


class Vision(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, image: int, patch: int) -> None:
        super().__init__()
        self.patch_embed = Patches(width, patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(positions(image // patch, width), requires_grad=False)
        self.blocks = nn.ModuleList(VisionBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed.proj(x).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


def positions(side: int, width: int) -> Tensor:
    """One number at a time: sin and cos of the row, then sin and cos of the column."""
    table = torch.zeros(1, 1 + side * side, width, dtype=torch.float64)
    quarter = width // 4
    for place in range(side * side):
        row, column = divmod(place, side)
        for k in range(quarter):
            rate = 10_000 ** (-k / quarter)
            for part, value in enumerate((row, row, column, column)):
                wave = math.cos if part % 2 else math.sin
                table[0, 1 + place, part * quarter + k] = wave(value * rate)
    return table.float()


class TextBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))

    def forward(self, x: Tensor, unseen: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=unseen, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Text(nn.Module):
    attn_mask: Tensor

    def __init__(self, width: int, layers: int, heads: int, vocabulary: int, longest: int) -> None:
        super().__init__()
        self.token_embed = nn.Embedding(vocabulary, width)
        self.posit_embed = nn.Parameter(torch.randn(longest, width))
        self.resblocks = nn.ModuleList(TextBlock(width, heads) for _ in range(layers))
        self.ln_final = nn.LayerNorm(width)
        later = torch.ones(longest, longest, dtype=torch.bool).triu(1)
        self.register_buffer("attn_mask", later)

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        x = self.token_embed(ids) + self.posit_embed[:length]
        for block in self.resblocks:
            x = block(x, self.attn_mask[:length, :length])
        return self.ln_final(x)[torch.arange(len(ids)), ids.argmax(-1)]


class Published(nn.Module):
    """format: "clip", "meru" (HyCoCLIP's and ATMG's, too), "uncha" or "phyclip"."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        format: str = "meru",
        *,
        width: int = 32,
        heads: int = 4,
        layers: int = 2,
        image: int = 32,
        patch: int = 16,
        vocabulary: int = 600,
        longest: int = 77,
        dim: int = 16,
        curv: float = 0.7,
        factors: int = 4,
    ) -> None:
        super().__init__()
        self.format, self.factors = format, factors
        self.visual = Vision(width, layers, heads, image, patch)
        self.textual = Text(width, layers, heads, vocabulary, longest)
        self.visual_proj = nn.Linear(width, dim, bias=False)
        self.textual_proj = nn.Linear(width, dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(20.0).log())
        self.register_buffer("pixel_mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(STD).view(3, 1, 1))
        if format != "clip":
            self.curv = nn.Parameter(torch.tensor(curv).log())
            self.visual_alpha = nn.Parameter(torch.tensor(0.3).log())
            self.textual_alpha = nn.Parameter(torch.tensor(0.2).log())
        if format == "uncha":
            self.global_logit_scale = nn.Parameter(torch.tensor(30.0).log())
            self.local_logit_scale = nn.Parameter(torch.tensor(40.0).log())
            self.global_local_logit_scale = nn.Parameter(torch.tensor(50.0).log())
        if format == "phyclip":
            scalars = [torch.tensor(0.3 + 0.1 * k).log() for k in range(factors)]
            self.curvs = nn.ParameterList(scalars)
            self.visual_concept_alphas = nn.ParameterList([s.clone() for s in scalars])
            self.textual_concept_alphas = nn.ParameterList([s / 2 for s in scalars])
        for parameter in self.parameters():  # nothing is 0 or 1 that could be left out
            if parameter.requires_grad and parameter.ndim:
                nn.init.normal_(parameter, std=0.3 if parameter.ndim > 1 else 0.5)

    def image(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1], not normalised."""
        return self.visual_proj(self.visual((pixels - self.pixel_mean) / self.pixel_std))

    def text(self, ids: Tensor) -> Tensor:
        return self.textual_proj(self.textual(ids))

    def points(self, features: Tensor, tower: str) -> Tensor:
        """The exponential map at the origin by its definition, in float64."""
        if self.format == "clip":
            return features / features.norm(dim=-1, keepdim=True)
        if self.format == "phyclip":
            curv = torch.stack(list(self.curvs)).double().exp().view(-1, 1)
            alphas = getattr(self, f"{tower}_concept_alphas")
            alpha = torch.stack(list(alphas)).double().exp().view(-1, 1)
            features = features.unflatten(-1, (self.factors, -1))
        else:
            curv = self.curv.double().exp()
            alpha = getattr(self, f"{tower}_alpha").double().exp()
        v = features.double() * alpha
        size = curv.sqrt() * v.norm(dim=-1, keepdim=True)
        found = v * size.sinh() / size
        return found.flatten(-2) if self.format == "phyclip" else found


class PairByPair:
    """CLIP's byte-pair encoding as it is defined: the first pair of the list merges."""

    WORDS = regex.compile(
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
        regex.IGNORECASE,
    )

    def __init__(self, file: Path) -> None:
        raw = file.read_bytes()
        lines = (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode().splitlines()
        self.merges = [tuple(line.split()) for line in lines[1:48895]]
        shown = [b for b in range(256) if chr(b).isprintable() and b not in (0x20, 0xA0, 0xAD)]
        hidden = [b for b in range(256) if b not in shown]
        letters = {b: chr(b) for b in shown} | {b: chr(256 + n) for n, b in enumerate(hidden)}
        self.letters = letters
        order = [letters[b] for b in (*shown, *hidden)]
        symbols = [*order, *(x + "</w>" for x in order), *("".join(m) for m in self.merges)]
        self.ids = {symbol: n for n, symbol in enumerate(symbols)}
        self.size = len(symbols) + 2
        self.rank = {merge: n for n, merge in enumerate(self.merges)}

    def word(self, word: str) -> list[int]:
        parts = [self.letters[b] for b in word.encode()]
        parts[-1] += "</w>"
        while True:
            ranks = [self.rank.get(pair, math.inf) for pair in pairwise(parts)]
            if not ranks or min(ranks) == math.inf:
                return [self.ids[part] for part in parts]
            left, right = self.merges[int(min(ranks))]
            merged: list[str] = []
            for part in parts:
                if merged and merged[-1] == left and part == right:
                    merged[-1] = left + right
                else:
                    merged.append(part)
            parts = merged

    def __call__(self, text: str) -> list[int]:
        words = self.WORDS.findall(" ".join(text.split()).lower())
        inside = [number for word in words for number in self.word(word)]
        return [self.size - 2, *inside, self.size - 1]
