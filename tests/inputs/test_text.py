"""Tokenizers learn from training captions alone, the same every time, and come back from a checkpoint."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_bert

from mmvicreg.data.shapes import Shapes
from mmvicreg.datasets import training_samples
from mmvicreg.errors import UserError
from mmvicreg.inputs import text as text_input
from mmvicreg.inputs import tokenizers
from mmvicreg.inputs.text import TextInput
from mmvicreg.inputs.tokenizers import (
    BEGIN,
    END,
    PAD,
    UNKNOWN,
    SentencePieceTokenizer,
    Tokenizer,
    TransformersTokenizer,
    WordTokenizer,
    evenly,
    restore,
    split_words,
)
from mmvicreg.samples import Sample

CAPTIONS = (
    "A red Circle above a blue square.",
    "the cat's hat, red!",
    "猫が走る、速く走る",
    "Кот сидит на окне",
    "a smiling face 😀 and a cat 🐈",
)


OWN: dict[str, dict[str, object]] = {
    "sentencepiece": {"vocabulary": 120},
    "words": {"min_count": 1},
    "transformers": {},
}
"""What each tokenizer is told here."""


def fitted(captions: tuple[str, ...], **options: object) -> TextInput:
    source = TextInput(TextInput.Config.model_validate(options))
    source.fit([Sample("s", captions=captions)])
    return source


def test_words_are_split_at_marks_and_lower_cased() -> None:
    assert split_words("The cat's hat, RED!  (x2)") == [
        "the",
        "cat's",
        "hat",
        ",",
        "red",
        "!",
        "(",
        "x2",
        ")",
    ]
    assert split_words("Ein  Käfer\n猫 😀") == ["ein", "käfer", "猫", "😀"]


def test_words_most_frequent_first_rare_ones_unknown() -> None:
    captions = ["b b b a a a c c", "C d"]
    tokenizer = WordTokenizer.train(captions, min_count=2)
    assert tokenizer.words == ["<pad>", "<unk>", "<start>", "<end>", "a", "b", "c"]
    assert tokenizer.size == 7
    assert tokenizer.encode("A d c z") == [BEGIN, 4, UNKNOWN, 6, UNKNOWN, END]
    counts = Counter(" ".join(captions).lower().split())
    for least in (1, 2, 3, 4):
        kept = {word for word, n in counts.items() if n >= least}
        if kept:
            assert set(WordTokenizer.train(captions, min_count=least).words[4:]) == kept
        else:
            with pytest.raises(UserError, match="no word occurs 4 times"):
                WordTokenizer.train(captions, min_count=least)


def test_sentencepiece_is_the_same_every_time_and_lower_cases() -> None:
    one, two = (SentencePieceTokenizer.train(CAPTIONS * 3, vocabulary=70) for _ in range(2))
    assert torch.equal(one.state()["model"], two.state()["model"])
    assert one.encode("RED CIRCLE") == one.encode("red circle")
    assert one.encode("a red circle")[0] == BEGIN
    assert one.encode("a red circle")[-1] == END


def test_sentencepiece_learns_from_so_many_captions_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds all of them in memory; those that it takes are the same every time."""
    few = [f"a {color} {shape}" for color in ("red", "green", "blue") for shape in ("circle", "square")]
    many = [caption for one in few for caption in (one, "猫が走る、速く走る")]
    expected = SentencePieceTokenizer.train(few, vocabulary=40).state()["model"]
    monkeypatch.setattr(tokenizers, "LEARNED_FROM", 6)
    assert torch.equal(SentencePieceTokenizer.train(few, vocabulary=40).state()["model"], expected)
    assert torch.equal(SentencePieceTokenizer.train(many, vocabulary=40).state()["model"], expected)
    assert evenly(range(10), 4) == [0, 2, 5, 7]  # type: ignore[arg-type, comparison-overlap]


@pytest.mark.parametrize("caption", CAPTIONS)
@pytest.mark.parametrize("kind", ["sentencepiece", "words"])
def test_every_script_survives_the_way_there_and_back(kind: str, caption: str) -> None:
    source = fitted(CAPTIONS * 3, tokenizer=kind, **OWN[kind])
    ids = source.encode(caption)["ids"].tolist()
    assert UNKNOWN not in ids
    assert len(ids) >= 3
    assert "".join(source.tokenizer.decode(ids).split()) == "".join(caption.lower().split())


def test_a_vocabulary_larger_than_the_text_has_is_what_it_has() -> None:
    tokenizer = SentencePieceTokenizer.train(["a b", "b a"], vocabulary=8000)
    assert 4 < tokenizer.size < 50
    assert max(tokenizer.encode("a b")) < tokenizer.size


def test_a_vocabulary_smaller_than_the_alphabet_is_refused_with_the_key() -> None:
    with pytest.raises(UserError, match=r"16 pieces.*inputs\.text\.vocabulary"):
        SentencePieceTokenizer.train(CAPTIONS * 3, vocabulary=16)


def test_only_training_captions_are_learned(tmp_path: Path) -> None:
    """A word that only the other splits have is unknown (VSE++'s vocabulary held them)."""
    Shapes.make(tmp_path / "shapes", progress=False, counts={"train": 6, "val": 3, "test": 3})
    for file in (tmp_path / "shapes" / "annotations").glob("captions_*.json"):
        if "train" not in file.name:
            text = file.read_text(encoding="utf-8")
            file.write_text(text.replace('"caption": "', '"caption": "xylophone '), encoding="utf-8")
    dataset = Shapes(tmp_path / "shapes")
    assert all("xylophone" in s.captions[0] for s in dataset.samples("val+test"))
    source = TextInput(TextInput.Config(tokenizer="words", min_count=1))
    source.fit(training_samples(dataset, split="train", fold=1))
    words = {w for s in dataset.samples("train") for c in s.captions for w in split_words(c)}
    assert isinstance(source.tokenizer, WordTokenizer)
    assert set(source.tokenizer.words[4:]) == words
    assert source.encode("xylophone")["ids"].tolist() == [BEGIN, UNKNOWN, END]


@pytest.mark.parametrize("kind", ["sentencepiece", "words", "transformers"])
def test_state_comes_back_through_a_checkpoint(tmp_path: Path, kind: str) -> None:
    options: dict[str, object] = {"tokenizer": kind, **OWN[kind]}
    if kind == "transformers":
        options["model"] = str(tiny_bert(tmp_path / "bert"))
    source = fitted(CAPTIONS * 3, **options)
    torch.save(source.state(), tmp_path / "state.pt")
    if kind == "transformers":
        shutil.rmtree(tmp_path / "bert")  # the run must not need the folder again
    again = TextInput(source.config)
    again.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    for caption in (*CAPTIONS, "something new entirely"):
        assert torch.equal(source.encode(caption)["ids"], again.encode(caption)["ids"])
    assert again.spec() == source.spec()
    ids = source.encode("a red circle")["ids"].tolist()
    assert again.tokenizer.decode(ids) == source.tokenizer.decode(ids)


def test_transformers_ids_are_the_models_plus_one(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = tiny_bert(tmp_path / "bert")
    tokenizer = TransformersTokenizer.from_pretrained(str(folder))
    theirs = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.encode("a red circle .")
    assert ids == [3, 6, 7, 9, 12, 4]  # [CLS] a red circle . [SEP]
    assert ids == [i + 1 for i in theirs("a red circle .")["input_ids"]]
    assert PAD not in ids
    assert tokenizer.decode([*ids, PAD, PAD]).replace(" .", ".") == "a red circle."
    assert tokenizer.model_config["vocab_size"] == 12


def test_a_stored_tokenizer_cannot_write_outside_its_folder(tmp_path: Path) -> None:
    state = TransformersTokenizer.from_pretrained(str(tiny_bert(tmp_path / "bert"))).state()
    outside = tmp_path / "outside.txt"
    state["files"][str(outside)] = torch.tensor([1, 2, 3], dtype=torch.uint8)
    with pytest.raises(UserError, match=r"outside\.txt"):
        restore(state)
    assert not outside.exists()


def test_captions_are_cut_and_batches_padded() -> None:
    source = fitted(("one two three four five six",), tokenizer="words", min_count=1, max_length=5)
    long, short = source.encode("one two three four five six"), source.encode("two")
    whole = source.tokenizer.encode("one two three four five six")
    assert long["ids"].tolist() == [*whole[:4], END]
    assert (int(long["length"]), int(short["length"])) == (5, 3)
    batch = source.collate([short, long, source.encode("one two")])
    assert batch["ids"].shape == (3, 5)
    assert batch["ids"].dtype == batch["length"].dtype == torch.int64
    assert batch["length"].tolist() == [3, 5, 4]
    for row, length in zip(batch["ids"], batch["length"], strict=True):
        assert (row[:length] != PAD).all()
        assert (row[length:] == PAD).all()


def marked(folder: Path, template: str | None) -> Path:
    """A tokenizer's folder with a model's other habits of marking a caption; None: it has no marks."""
    from tokenizers import Tokenizer as Rust
    from tokenizers.processors import TemplateProcessing

    rust = Rust.from_file(str(folder / "tokenizer.json"))
    rust.post_processor = TemplateProcessing(
        single=template or "$A", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    rust.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize(
    ("kind", "template", "begin", "end"),
    [
        ("words", None, [BEGIN], [END]),
        ("sentencepiece", None, [BEGIN], [END]),
        ("transformers", "[CLS] $A [SEP]", [3], [4]),
        ("transformers", "$A [SEP]", [], [4]),
        ("transformers", "$A [SEP] [CLS]", [], [4, 3]),
        ("transformers", None, [], []),
    ],
)
def test_a_cut_caption_keeps_its_marks_and_its_first_words(
    tmp_path: Path, kind: str, template: str | None, begin: list[int], end: list[int]
) -> None:
    """And one that fits, to the last token, is what it was."""
    options: dict[str, object] = {"tokenizer": kind, **OWN[kind]}
    if kind == "transformers":
        options["model"] = str(marked(tiny_bert(tmp_path / "bert"), template))
    caption = "a red circle above a zebra and a blue zebra"  # unknown words, and one at the end
    learned = ("a red circle above a blue square .",) * 3
    whole = fitted(learned, **options).encode(caption)["ids"].tolist()
    words = whole[len(begin) : len(whole) - len(end)]
    assert whole == [*begin, *words, *end]
    for longest in range(3, len(whole) + 2):
        source = fitted(learned, max_length=longest, **options)
        kept = longest - len(begin) - len(end)
        expected = whole if longest >= len(whole) else [*begin, *words[:kept], *end]
        assert source.encode(caption)["ids"].tolist() == expected
        assert source.encode(caption)["ids"].tolist() == expected  # cutting one changes none after it
        again = TextInput(source.config)
        again.load_state(source.state())
        assert again.encode(caption)["ids"].tolist() == expected


def test_captions_that_are_cut_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    captions = ("one two three", "one two three four", "one", "one two three four five")
    samples = [Sample("s", captions=captions[:2]), Sample("t", captions=captions[2:])]
    source = fitted(captions, tokenizer="words", min_count=1, max_length=5)
    assert source.survey(samples) == ["2 of 4 training captions are cut to 5 tokens (inputs.text.max_length)"]
    assert fitted(captions, tokenizer="words", min_count=1, max_length=7).survey(samples) == []
    monkeypatch.setattr(text_input, "LOOKED_AT", 2)
    assert source.survey([Sample("s", captions=(captions[1], "one", "one", captions[1]))]) == [
        "1 of 2 training captions that were looked at, out of 4, are cut to 5 tokens (inputs.text.max_length)"
    ]


def test_a_batch_is_only_as_wide_as_its_longest() -> None:
    source = fitted(("one two three four",), tokenizer="words", min_count=1)
    assert source.collate([source.encode("one"), source.encode("one two")])["ids"].shape == (2, 4)


@pytest.mark.parametrize("blank", ["", "  ", "\n\t"])
def test_an_empty_caption_is_named(blank: str) -> None:
    source = fitted(("a cat", "a dog"), tokenizer="words", min_count=1)
    with pytest.raises(UserError, match=r"caption 2 of sample 'img9\.jpg' is empty"):
        source.load(Sample("img9.jpg", captions=("a cat", blank)), None, caption=1)


def test_samples_without_captions_are_refused() -> None:
    with pytest.raises(UserError, match="no captions"):
        TextInput(TextInput.Config()).fit([Sample("a"), Sample("b")])
    with pytest.raises(UserError, match="'a' has no caption"):
        fitted(("a cat",), tokenizer="words", min_count=1).load(Sample("a"), None)


def test_which_caption() -> None:
    captions = ("one", "two", "three", "four", "five")
    source = fitted(captions, tokenizer="words", min_count=1)
    sample = Sample("s", captions=captions)
    first = source.load(sample, None)["ids"]
    assert torch.equal(first, source.encode("one")["ids"])
    for k, caption in enumerate(captions):
        for rng in (None, np.random.default_rng(0)):
            assert torch.equal(source.load(sample, rng, caption=k)["ids"], source.encode(caption)["ids"])
    rng = np.random.default_rng(0)
    drawn = Counter(int(source.load(sample, rng)["ids"][1]) for _ in range(1000))
    assert len(drawn) == 5
    assert max(abs(n - 200) for n in drawn.values()) < 60  # 4.7 standard deviations


@pytest.mark.parametrize(
    "tokenizer", [WordTokenizer(["a", "cat"]), SentencePieceTokenizer.train(["a cat"] * 3, vocabulary=30)]
)
def test_padding_and_marks_are_not_shown(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([BEGIN, *tokenizer.encode("a cat")[1:-1], END, PAD, PAD]) == "a cat"


@pytest.mark.parametrize(
    ("option", "owner"), [({"vocabulary": 20_000}, "sentencepiece"), ({"min_count": 2}, "words")]
)
@pytest.mark.parametrize("kind", ["sentencepiece", "words", "transformers"])
def test_an_option_of_another_tokenizer_is_refused(kind: str, option: dict[str, int], owner: str) -> None:
    """It would have no effect, and the saved recipe would say otherwise."""
    model = {"model": "x"} if kind == "transformers" else {}
    if kind == owner:
        assert TextInput.Config.model_validate({"tokenizer": kind, **option})
    else:
        (name,) = option
        with pytest.raises(
            ValueError, match=f"{name} is an option of the tokenizer {owner}.*tokenizer is {kind}"
        ):
            TextInput.Config.model_validate({"tokenizer": kind, **model, **option})
    whole = TextInput.Config.model_validate({"tokenizer": kind, **model}).model_dump()
    assert {"vocabulary", "min_count"} <= whole.keys()
    assert TextInput.Config.model_validate(whole)  # as a saved recipe has it


def test_a_vocabulary_of_another_kind_is_refused_by_name() -> None:
    state = fitted(CAPTIONS, tokenizer="words", min_count=1).state()
    other = TextInput(TextInput.Config(tokenizer="sentencepiece"))
    with pytest.raises(
        UserError, match=r"'words' and the recipe's of 'sentencepiece': they are not of one run"
    ):
        other.load_state(state)


def test_captions_that_say_nothing_in_the_vocabulary_are_counted() -> None:
    """Text without spaces has no words that come again; sentencepiece has pieces of it."""
    captions = ("a cat", "a dog", "a cat", "猫が走る", "犬が走る。", "🐈", "a 🐕")
    words = fitted(captions, tokenizer="words", min_count=2)
    (note,) = words.survey([Sample("s", captions=captions)])
    assert "3 of 7 training captions hold no word that occurs 2 times, such as '猫が走る'" in note
    assert "sentencepiece" in note
    assert words.survey([Sample("s", captions=captions[:3])]) == []
    pieces = fitted(captions, vocabulary=40)
    assert pieces.survey([Sample("s", captions=captions)]) == []
    for text in captions:
        assert set(pieces.encode(text)["ids"].tolist()) - {PAD, UNKNOWN, 2, 3}, text
