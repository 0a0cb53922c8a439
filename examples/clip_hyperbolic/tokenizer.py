"""Texts to tokens, by a tokenizer of transformers from a folder or one made for the captions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import chain
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from .config import Config, UserError
from .schema import Sample

SPECIAL = ("pad_token", "bos_token", "eos_token")


class Words:
    """Texts to tokens: a tokenizer of transformers from a folder, or one made for the captions."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    @classmethod
    def of(cls, config: Config, samples: Iterable[Sample]) -> Words:
        """The tokenizer asked for, or one made for the texts of samples."""
        if config.tokenizer:
            return cls(_from_folder(config.tokenizer), config.max_tokens)
        texts = ((*sample.captions, *sample.keywords, *sample.ancestors) for sample in samples)
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel()
        ends = ["<start>", "<end>"]
        last = config.text_pooling == "eos"  # as CLIP's: a text ends with the largest of its ids
        trainer = trainers.BpeTrainer(
            vocab_size=config.vocab_size - len(ends) * last,
            special_tokens=["<pad>"] if last else ["<pad>", *ends],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        bpe.train_from_iterator(chain.from_iterable(texts), trainer)
        if last:
            bpe.add_special_tokens(ends)
            pairs = [(end, bpe.token_to_id(end)) for end in ends]
            bpe.post_processor = processors.TemplateProcessing(
                single="<start> $A <end>", special_tokens=pairs
            )
        special = dict(zip(SPECIAL, ("<pad>", "<start>", "<end>"), strict=True))
        return cls(PreTrainedTokenizerFast(tokenizer_object=bpe, **special), config.max_tokens)

    @classmethod
    def from_text(cls, text: str, max_tokens: int) -> Words:
        """From what `text` gives: a checkpoint carries its tokenizer."""
        about = json.loads(text)
        backend = Tokenizer.from_str(about.pop("tokenizer"))
        return cls(PreTrainedTokenizerFast(tokenizer_object=backend, **about), max_tokens)

    def text(self) -> str:
        special = {name: getattr(self.tokenizer, name) for name in SPECIAL}
        return json.dumps({"tokenizer": self.tokenizer.backend_tokenizer.to_str(), **special})

    def __len__(self) -> int:
        return len(self.tokenizer)

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        found = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        return found["input_ids"], found["attention_mask"]


def _from_folder(folder: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"--tokenizer {folder}: transformers finds none there: {error}") from None
