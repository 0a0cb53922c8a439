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

# The special tokens of a tokenizer that is made here, by the names of transformers.
SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<start>", "eos_token": "<end>"}


class CaptionTokenizer:
    """Turns texts into tokens of the same number, and a mask of those that count."""

    def __init__(self, pretrained: Any, max_tokens: int) -> None:
        self.pretrained, self.max_tokens = pretrained, max_tokens
        pretrained.pad_token = pretrained.pad_token or pretrained.eos_token

    @classmethod
    def from_samples(cls, config: Config, samples: Iterable[Sample]) -> CaptionTokenizer:
        """The tokenizer of `config.tokenizer`; without one, a BPE trained on the samples' texts."""
        if config.tokenizer:
            return cls(_from_folder(config.tokenizer), config.max_tokens)
        texts = ((*sample.captions, *sample.keywords, *sample.ancestors) for sample in samples)
        bpe = _trained_bpe(config, chain.from_iterable(texts))
        pretrained = PreTrainedTokenizerFast(tokenizer_object=bpe, **SPECIAL_TOKENS)
        return cls(pretrained, config.max_tokens)

    @classmethod
    def from_text(cls, text: str, max_tokens: int) -> CaptionTokenizer:
        """The tokenizer that `to_text` wrote, as a checkpoint carries it."""
        settings = json.loads(text)
        backend = Tokenizer.from_str(settings.pop("tokenizer"))
        return cls(PreTrainedTokenizerFast(tokenizer_object=backend, **settings), max_tokens)

    def to_text(self) -> str:
        special_tokens = {name: getattr(self.pretrained, name) for name in SPECIAL_TOKENS}
        backend = self.pretrained.backend_tokenizer.to_str()
        return json.dumps({"tokenizer": backend, **special_tokens})

    def __len__(self) -> int:
        return len(self.pretrained)

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        encoding = self.pretrained(
            texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        ids, mask = encoding["input_ids"], encoding["attention_mask"]
        if not ids.shape[1]:  # none of the texts has a token
            ids, mask = (
                ids.new_full((len(texts), 1), self.pretrained.pad_token_id),
                mask.new_zeros(len(texts), 1),
            )
        return ids, mask


def _trained_bpe(config: Config, texts: Iterable[str]) -> Tokenizer:
    """A byte-level BPE of `config.vocab_size` tokens.

    A text tower that pools at the end finds it as CLIP's does: by the largest id of a text. So for
    it texts get a start and an end, whose ids come after all others.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel()
    pad, *boundaries = SPECIAL_TOKENS.values()
    boundaries_last = config.text_pooling == "eos"
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size - len(boundaries) * boundaries_last,
        special_tokens=[pad] if boundaries_last else [pad, *boundaries],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    if boundaries_last:
        bpe.add_special_tokens(boundaries)
        bpe.post_processor = processors.TemplateProcessing(
            single="<start> $A <end>",
            special_tokens=[(token, bpe.token_to_id(token)) for token in boundaries],
        )
    return bpe


def _from_folder(folder: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"--tokenizer {folder}: transformers finds none there: {error}") from None
