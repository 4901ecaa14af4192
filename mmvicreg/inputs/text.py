"""Captions: tokenise, and pad a batch to its longest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch.nn.utils.rnn import pad_sequence

from mmvicreg.errors import UserError
from mmvicreg.inputs.base import Input, InputSpec, Item
from mmvicreg.inputs.tokenizers import (
    PAD,
    SentencePieceTokenizer,
    Tokenizer,
    TransformersTokenizer,
    WordTokenizer,
    evenly,
    restore,
)
from mmvicreg.samples import Sample
from mmvicreg.strict import Strict

LOOKED_AT = 100_000
"""So many captions are tokenised before a run to say how many are cut; a transformers tokenizer takes 10 s and more."""

READ_BY = MappingProxyType({"vocabulary": "sentencepiece", "min_count": "words"})
"""Options that one tokenizer alone reads -> which."""


class TextInput(Input):
    """One caption of the sample: drawn at random in training unless told which."""

    field = "captions"

    class Config(Strict):
        """Which tokenizer, and how long a caption may be."""

        tokenizer: Literal["sentencepiece", "words", "transformers"] = "sentencepiece"
        vocabulary: Annotated[int, Field(ge=16)] = 8000
        """Pieces of a ``sentencepiece`` model; fewer where the captions have no more."""
        min_count: Annotated[int, Field(ge=1)] = 4
        """Words rarer than this are unknown, for ``words``. 4 is VSE++'s."""
        model: str | None = None
        """Hub name or local folder, for ``transformers``."""
        max_length: Annotated[int, Field(ge=3)] = 64
        """Longer captions are cut, tokens, the marks of beginning and end among them; how many is said at the start."""

        @model_validator(mode="after")
        def _model_named(self) -> TextInput.Config:
            if (self.tokenizer == "transformers") != (self.model is not None):
                raise ValueError("'model' is needed with tokenizer: transformers, and only there")
            return self

        @model_validator(mode="after")
        def _options_of_its_own(self) -> TextInput.Config:
            # a saved recipe names every option, so what is at its default is not held against it
            for option, name in READ_BY.items():
                default = type(self).model_fields[option].default
                if self.tokenizer != name and getattr(self, option) != default:
                    raise ValueError(
                        f"{option} is an option of the tokenizer {name}, and tokenizer is {self.tokenizer}: leave it "
                        f"out, or set it to {default}, its default"
                    )
            return self

    def __init__(self, config: Config) -> None:
        self.config = config
        self._tokenizer: Tokenizer | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The fitted tokenizer."""
        if self._tokenizer is None:
            raise RuntimeError("the text input has no tokenizer yet: call fit or load_state first")
        return self._tokenizer

    def fit(self, samples: Sequence[Sample]) -> None:
        """Learn the vocabulary from the captions of the training samples, and from nothing else."""
        captions = [caption for sample in samples for caption in sample.captions]
        if not captions:
            fault = next((f" ({sample.fault})" for sample in samples if sample.fault), "")
            raise UserError(f"the training samples have no captions, and the pair has a text branch{fault}")
        if self.config.tokenizer == "transformers":
            self._tokenizer = TransformersTokenizer.from_pretrained(str(self.config.model))
        elif self.config.tokenizer == "words":
            self._tokenizer = WordTokenizer.train(captions, min_count=self.config.min_count)
        else:
            self._tokenizer = SentencePieceTokenizer.train(captions, vocabulary=self.config.vocabulary)

    def survey(self, samples: Sequence[Sample], *, skip: bool = False) -> list[str]:
        """Count captions that are cut, and those that say nothing in this vocabulary, so that all of them are alike."""
        captions = [caption for sample in samples for caption in sample.captions]
        return [*self._cut(captions), *self._lost(captions)]

    def _cut(self, captions: Sequence[str]) -> list[str]:
        looked_at = evenly(captions, LOOKED_AT)
        cut = sum(len(self.tokenizer.encode(caption)) > self.config.max_length for caption in looked_at)
        if not cut:
            return []
        part = f" that were looked at, out of {len(captions):,}," if len(looked_at) < len(captions) else ""
        return [
            f"{cut:,} of {len(looked_at):,} training captions{part} are cut to {self.config.max_length} tokens "
            "(inputs.text.max_length)"
        ]

    def _lost(self, captions: Sequence[str]) -> list[str]:
        if not isinstance(self.tokenizer, WordTokenizer):
            return []
        lost = [caption for caption in captions if not self.tokenizer.knows(caption)]
        if not lost:
            return []
        return [
            f"warning: {len(lost):,} of {len(captions):,} training captions hold no word that occurs "
            f"{self.config.min_count} times, such as '{lost[0].strip()}': lower inputs.text.min_count, or set "
            "inputs.text.tokenizer to sentencepiece (for text without spaces between words, say)"
        ]

    def load(self, sample: Sample, rng: np.random.Generator | None, *, caption: int | None = None) -> Item:
        """``ids``: int64 ``(length,)``; ``length``: int64 scalar."""
        if not sample.captions:
            raise UserError(
                sample.fault or f"sample '{sample.id}' has no caption; choose a --dataset that has captions"
            )
        if caption is None:
            caption = 0 if rng is None else int(rng.integers(len(sample.captions)))
        return self.encode(sample.captions[caption], where=f"caption {caption + 1} of sample '{sample.id}'")

    def encode(self, text: str, *, where: str = "the text") -> Item:
        """Tokenise one caption, cut to ``max_length`` without its last words; the mark of its end stays.

        Raises:
            UserError: the caption is empty; ``where`` says which.
        """
        if not text.strip():
            raise UserError(f"{where} is empty; remove it or write one")
        ids = self.tokenizer.encode_within(text, self.config.max_length)
        return {"ids": torch.tensor(ids, dtype=torch.int64), "length": torch.tensor(len(ids))}

    def collate(self, items: Sequence[Item]) -> Item:
        """``ids``: int64 ``(n, longest)``, padded with 0; ``length``: int64 ``(n,)``."""
        ids = pad_sequence([item["ids"] for item in items], batch_first=True, padding_value=PAD)
        return {"ids": ids, "length": torch.stack([item["length"] for item in items])}

    def state(self) -> dict[str, Any]:
        """The tokenizer."""
        return {"tokenizer": self.tokenizer.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the tokenizer.

        Raises:
            UserError: it is of another kind than the recipe asks for, so of another run.
        """
        kind = state["tokenizer"]["kind"]
        if kind != self.config.tokenizer:
            raise UserError(
                f"the checkpoint's vocabulary is of the tokenizer '{kind}' and the recipe's of "
                f"'{self.config.tokenizer}': they are not of one run; put the checkpoint or the recipe.yaml back "
                "that belong together"
            )
        self._tokenizer = restore(state["tokenizer"])

    def spec(self) -> InputSpec:
        """The vocabulary's size, the longest caption, and a transformers tokenizer's model and its configuration."""
        tokenizer = self.tokenizer
        config = tokenizer.model_config if isinstance(tokenizer, TransformersTokenizer) else None
        return InputSpec(
            "text",
            vocabulary=tokenizer.size,
            model_config=config,
            model=self.config.model,
            longest=self.config.max_length,
        )
