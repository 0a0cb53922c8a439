"""Pictures and texts to what the model takes."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer, ProcessorMixin

MERGES = 49152 - 256 - 2  # of CLIP's file; what follows in it is not used


class HyperbolicCLIPProcessor(ProcessorMixin):
    r"""An image processor and a tokenizer as one: ``processor(text=..., images=...)``.

    Args:
        image_processor: such as ``transformers.CLIPImageProcessorPil``.
        tokenizer: such as ``transformers.CLIPTokenizer``; `tokenizer_from_bpe` makes one.

    Texts are padded to the longest and cut at the tokenizer's ``model_max_length``. They are padded
    with the end-of-text token, as transformers' CLIP does; the features are those of padding with
    zeros, for the model sees nothing after the first end-of-text token.
    """

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        """``pixel_values`` of images, and ``input_ids`` of texts."""
        kwargs = {"padding": True, "truncation": True} | kwargs
        return super().__call__(images=images, text=text, **kwargs)


def tokenizer_from_bpe(file: str | Path, max_length: int = 77) -> CLIPTokenizer:
    r"""The tokenizer of CLIP's byte-pair file, ``bpe_simple_vocab_16e6.txt.gz``.

    Args:
        file: a line that is left out, then one merge a line; compressed or not.
        max_length: of a text, in tokens.

    Texts should be free of encoding errors and HTML entities: the original tokenizer repairs them,
    this one does not.
    """
    raw = Path(file).read_bytes()
    text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8")
    merges: list[Any] = [
        tuple(line.split()) for line in text.split("\n")[1 : MERGES + 1] if line.strip()
    ]
    if not merges or any(len(merge) != 2 for merge in merges):
        raise ValueError(
            f"file: expected a line, then two symbols a line, got {file}; CLIP's is "
            "bpe_simple_vocab_16e6.txt.gz"
        )
    symbols = _bytes()
    names = [
        *symbols,
        *(f"{symbol}</w>" for symbol in symbols),
        *("".join(merge) for merge in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocabulary = {name: number for number, name in enumerate(names)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)


def _bytes() -> list[str]:
    """A character for each byte: those that print themselves, then others for the rest."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printed] + [chr(256 + n) for n in range(256 - len(printed))]


__all__ = ["HyperbolicCLIPProcessor", "tokenizer_from_bpe"]
