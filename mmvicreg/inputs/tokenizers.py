"""Tokenizers: sentencepiece or words learned from the training captions, or a transformers model's own.

Token 0 is padding in all of them. A vocabulary never sees a validation or test caption (VSE++'s did,
fartashf/vsepp #29), needs no download, and is saved with the run.
"""

from __future__ import annotations

import io
import json
import re
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import torch

from mmvicreg.errors import UserError

PAD, UNKNOWN, BEGIN, END = 0, 1, 2, 3
LEARNED_FROM = 1_000_000
"""Captions that sentencepiece learns its pieces from at most."""


class Tokenizer(ABC):
    """From a caption to token ids, and back for people to read."""

    size: int
    """Number of ids, padding included."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of the caption, begin and end marks included, padding not."""

    def encode_within(self, text: str, longest: int) -> list[int]:
        """Ids of the caption, at most ``longest``: one that is longer loses words, and keeps the mark of its end."""
        ids = self.encode(text)
        return ids if len(ids) <= longest else [*ids[: longest - 1], ids[-1]]

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Readable text of the ids."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Everything needed to restore it: plain data and uint8 tensors."""


class WordTokenizer(Tokenizer):
    """Lower-cased words and punctuation marks that occur at least ``min_count`` times."""

    def __init__(self, words: Iterable[str]) -> None:
        self.words = ["<pad>", "<unk>", "<start>", "<end>", *words]
        self._ids = {word: index for index, word in enumerate(self.words)}
        self.size = len(self.words)

    @classmethod
    def train(cls, captions: Iterable[str], *, min_count: int) -> WordTokenizer:
        """Count the words of the captions; most frequent first, ties in alphabetical order."""
        counts = Counter(word for caption in captions for word in split_words(caption))
        kept = sorted((word for word, n in counts.items() if n >= min_count), key=lambda w: (-counts[w], w))
        if not kept:
            raise UserError(f"no word occurs {min_count} times in the training captions; lower min_count")
        return cls(kept)

    def encode(self, text: str) -> list[int]:
        """See :class:`Tokenizer`."""
        return [BEGIN, *(self._ids.get(word, UNKNOWN) for word in split_words(text)), END]

    def knows(self, text: str) -> bool:
        """Whether any word of the text (marks aside) is in the vocabulary."""
        return any(word in self._ids for word in split_words(text) if word[0].isalnum() or word[0] == "_")

    def decode(self, ids: Iterable[int]) -> str:
        """See :class:`Tokenizer`."""
        return " ".join(self.words[i] for i in ids if i not in (PAD, BEGIN, END))

    def state(self) -> dict[str, Any]:
        """See :class:`Tokenizer`."""
        return {"kind": "words", "words": self.words[4:]}


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece unigram model, held as its serialised bytes."""

    def __init__(self, model: bytes) -> None:
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.size = int(self._processor.get_piece_size())

    @classmethod
    def train(cls, captions: Sequence[str], *, vocabulary: int) -> SentencePieceTokenizer:
        """Train on the captions; fewer pieces than ``vocabulary`` where the text has no more.

        Of more than a million captions (``LEARNED_FROM``) a million at even distances are taken: sentencepiece holds
        all that it is given in memory, several times over. Its own limit would draw them anew every time.

        Raises:
            UserError: there are too few pieces for the characters that there are.
        """
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(evenly(captions, LEARNED_FROM)),
                model_writer=model,
                vocab_size=vocabulary,
                model_type="unigram",
                normalization_rule_name="nmt_nfkc_cf",  # NFKC and lower case
                character_coverage=0.9999,
                hard_vocab_limit=False,
                pad_id=PAD,
                unk_id=UNKNOWN,
                bos_id=BEGIN,
                eos_id=END,
                num_threads=1,  # the result must not depend on the machine
                minloglevel=2,
            )
        except RuntimeError as error:
            raise UserError(
                f"sentencepiece cannot train {vocabulary} pieces on these captions ({error}); "
                "set inputs.text.vocabulary to another size"
            ) from error
        return cls(model.getvalue())

    def encode(self, text: str) -> list[int]:
        """See :class:`Tokenizer`."""
        return [BEGIN, *self._processor.encode(text, out_type=int), END]

    def decode(self, ids: Iterable[int]) -> str:
        """See :class:`Tokenizer`."""
        return str(self._processor.decode([int(i) for i in ids if i not in (PAD, BEGIN, END)]))

    def state(self) -> dict[str, Any]:
        """See :class:`Tokenizer`."""
        return {"kind": "sentencepiece", "model": _to_bytes_tensor(self._model)}


class TransformersTokenizer(Tokenizer):
    """The tokenizer that belongs to a ``transformers`` model, by hub name or local folder.

    Its files and its model's configuration are part of the state, so that a run can be evaluated where the
    hub cannot be reached.
    """

    def __init__(self, files: Mapping[str, bytes], model_config: Mapping[str, Any]) -> None:
        from transformers import AutoTokenizer

        self._files, self.model_config = dict(files), dict(model_config)
        with tempfile.TemporaryDirectory() as folder:
            for name, content in self._files.items():
                if Path(name).name != name:  # a checkpoint from elsewhere must not choose where this writes
                    raise UserError(f"the stored tokenizer names a file outside its folder: '{name}'")
                (Path(folder) / name).write_bytes(content)
            self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self._tokenizer.truncation_side = (
            "right"  # a caption loses its last words, whatever the model's files say
        )
        self.size = max(len(self._tokenizer), int(self.model_config.get("vocab_size", 0)))

    @classmethod
    def from_pretrained(cls, model: str) -> TransformersTokenizer:
        """Read the tokenizer and the configuration of ``model``.

        Raises:
            UserError: neither a local folder nor a name that the hub could deliver, or damaged files.
        """
        from transformers import AutoConfig, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
            config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        except (
            Exception
        ) as error:  # a damaged file raises what its own parser does, a bare Exception among them
            raise UserError(
                f"cannot load the transformers model '{model}': give a local folder with config.json and whole "
                f"tokenizer files, or a hub name while the network is up ({first_line(error)})"
            ) from error
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            config.save_pretrained(folder)
            files = {
                path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()
            }
        return cls(files, json.loads(files["config.json"]))

    def encode(self, text: str) -> list[int]:
        """See :class:`Tokenizer`. Ids are the model's own plus one, so that 0 stays padding."""
        return [int(i) + 1 for i in self._tokenizer.encode(text)]

    def encode_within(self, text: str, longest: int) -> list[int]:
        """See :class:`Tokenizer`. Which marks there are, one, two or none, the model's own tokenizer knows."""
        ids = self.encode(text)
        if len(ids) <= longest:
            return ids
        return [int(i) + 1 for i in self._tokenizer.encode(text, truncation=True, max_length=longest)]

    def decode(self, ids: Iterable[int]) -> str:
        """See :class:`Tokenizer`."""
        return str(self._tokenizer.decode([int(i) - 1 for i in ids if i != PAD], skip_special_tokens=True))

    def state(self) -> dict[str, Any]:
        """See :class:`Tokenizer`."""
        return {
            "kind": "transformers",
            "files": {name: _to_bytes_tensor(content) for name, content in self._files.items()},
            "model_config": json.dumps(self.model_config),
        }


def restore(state: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that :meth:`Tokenizer.state` describes."""
    if state["kind"] == "words":
        return WordTokenizer(state["words"])
    if state["kind"] == "sentencepiece":
        return SentencePieceTokenizer(_from_bytes_tensor(state["model"]))
    files = {name: _from_bytes_tensor(content) for name, content in state["files"].items()}
    return TransformersTokenizer(files, json.loads(state["model_config"]))


def evenly(captions: Sequence[str], most: int) -> Sequence[str]:
    """At most so many of the captions, at even distances, so that every run takes the same; all if they are fewer."""
    if len(captions) <= most:
        return captions
    return [captions[place * len(captions) // most] for place in range(most)]


def split_words(text: str) -> list[str]:
    """Lower-cased runs of letters and digits (with inner apostrophes), and single other marks."""
    return re.findall(r"\w+(?:['’]\w+)*|[^\w\s]", text.lower())


def _to_bytes_tensor(content: bytes) -> torch.Tensor:
    return (
        torch.frombuffer(bytearray(content), dtype=torch.uint8)
        if content
        else torch.empty(0, dtype=torch.uint8)
    )


def _from_bytes_tensor(content: torch.Tensor) -> bytes:
    return bytes(content.numpy().tobytes())


def first_line(error: Exception) -> str:
    """What an exception of elsewhere says, in one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
