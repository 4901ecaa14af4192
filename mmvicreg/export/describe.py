"""Preprocessing in full, as plain data: enough to feed an exported encoder without this library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmvicreg.branches.frontends import ImageFrontend, WaveformFrontend
from mmvicreg.branches.log_mel import LogMelFrontend
from mmvicreg.export.subject import Subject
from mmvicreg.inputs.audio import AudioInput
from mmvicreg.inputs.image import ImageInput
from mmvicreg.inputs.text import TextInput
from mmvicreg.inputs.tokenizers import BEGIN, END, PAD, UNKNOWN

TRAINING_ONLY = frozenset(
    {"gain_db", "equalise_db", "resize_time", "resize_frequency", "time_mask", "frequency_mask"}
)


def preprocessing(subject: Subject, folder: Path, stem: str) -> dict[str, Any]:
    """How to make what the encoder reads; a tokenizer's files are written into ``folder``, their names begin so.

    Returns:
        Plain values: the parameters, and under ``steps`` what to do with them, in words.
    """
    source, frontend = subject.source, subject.branch.frontend
    if isinstance(source, ImageInput) and isinstance(frontend, ImageFrontend):
        return picture(source, frontend)
    if isinstance(source, AudioInput):
        found = recording(source)
        if isinstance(frontend, WaveformFrontend):
            return waveform(found, frontend)
        if isinstance(frontend, LogMelFrontend):
            return log_mel(found, frontend)
    if isinstance(source, TextInput):
        return text(source, folder, stem)
    return {
        "input": subject.run.recipe.inputs[subject.branch.config.input],
        "frontend": subject.branch.config.frontend,
        "steps": ["as the frontend's package documents it"],
    }


def picture(source: ImageInput, frontend: ImageFrontend) -> dict[str, Any]:
    """Geometry and normalisation of a picture in evaluation."""
    config = source.config
    resize = config.eval_resize or round(config.size * 256 / 224)
    return {
        "kind": "image",
        "size": config.size,
        "resize": max(resize, config.size),
        "interpolation": config.interpolation,
        "mean": list(frontend.config.mean),
        "std": list(frontend.config.std),
        "steps": [
            "decode to upright RGB, 8 bits a channel",
            "take the centre square whose side is size / resize of the shorter side (it may fall between pixels)",
            "resize it to size x size, antialiased (PIL's resize with box), and round to 0..255",
            "x = (pixel / 255 - mean) / std, by channel; float32 (n, 3, size, size)",
        ],
    }


def recording(source: AudioInput) -> dict[str, Any]:
    """Rate and length of a recording in evaluation."""
    return {
        "sample_rate": source.config.sample_rate,
        "samples": source.length,
        "channels": 1,
        "steps": [
            "mix to one channel and resample to sample_rate; int16",
            "a longer recording: its middle; a shorter one: zeros at its end, to samples",
            "x = sample / 32768",
        ],
    }


def waveform(found: dict[str, Any], frontend: WaveformFrontend) -> dict[str, Any]:
    """Scaling of a waveform."""
    steps = list(found["steps"])
    if frontend.config.normalise:
        steps += [
            "x = x - mean(x), by recording",
            "x = x / max(std(x), std_floor), by recording; the standard deviation over samples - 1",
        ]
    return {
        **found,
        "kind": "waveform",
        "normalise": frontend.config.normalise,
        "std_floor": 1e-4,
        "steps": [*steps, "float32 (n, 1, samples)"],
    }


def log_mel(found: dict[str, Any], frontend: LogMelFrontend) -> dict[str, Any]:
    """Every parameter of the spectrogram, and its scaling."""
    config = frontend.config.model_dump(mode="json", exclude=set(TRAINING_ONLY))
    level = frontend.level.tolist() if frontend.learns else None
    scaling = {
        "peak": [
            "0 at top_db below the recording's largest value, 1 at that value; what is below is clipped",
        ],
        "minmax": [
            "clip at top_db below the recording's largest value; 0 at the smallest value then, 1 at the largest"
        ],
        "training": ["0.5 + (dB - level[0]) / (6 * level[1]), clipped to 0..1"],
    }[frontend.config.scaling]
    silence = (
        []
        if level
        else ["a recording whose largest value is not above silence_db (dB), or a constant one: all zeros"]
    )
    return {
        **found,
        **config,
        "f_max": config["f_max"] or config["sample_rate"] / 2,
        "kind": "log_mel",
        "window": "hann, periodic",
        "center": True,
        "pad_mode": "constant",
        "floor": 1e-10,
        "level": level,
        "steps": [
            *found["steps"],
            "magnitude of the STFT (window, n_fft, win_length, hop_length, center with zeros) to the given power",
            "mel filters of librosa (mel_scale, mel_norm, f_min, f_max), n_mels of them",
            "dB = 20 / power * log10(max(value, floor))",
            *scaling,
            *silence,
            "float32 (n, 1, n_mels, frames)",
        ],
    }


def text(source: TextInput, folder: Path, stem: str) -> dict[str, Any]:
    """The tokenizer: its words, or the file it is in."""
    tokenizer = source.tokenizer
    state = tokenizer.state()
    found: dict[str, Any] = {"kind": "text", "max_length": source.config.max_length}
    tail = (
        "of more than max_length ids the first max_length - 1 and end; "
        "int64 (n, longest), padded with 0, and the lengths, int64 (n,)"
    )
    marks = {"padding": PAD, "unknown": UNKNOWN, "begin": BEGIN, "end": END}
    if state["kind"] == "words":
        return {
            **found,
            **marks,
            "tokenizer": "words",
            "pattern": r"\w+(?:['’]\w+)*|[^\w\s]",
            "words": ["<pad>", "<unk>", "<start>", "<end>", *state["words"]],
            "steps": ["lower case; re.findall(pattern)", "positions in words, between begin and end", tail],
        }
    if state["kind"] == "sentencepiece":
        file = f"{stem}.sentencepiece.model"
        (folder / file).write_bytes(state["model"].numpy().tobytes())
        return {
            **found,
            **marks,
            "tokenizer": "sentencepiece",
            "file": file,
            "steps": ["SentencePieceProcessor(model_file=file).encode(caption), between begin and end", tail],
        }
    files = folder / f"{stem}.tokenizer"
    files.mkdir()
    for name, content in state["files"].items():
        (files / name).write_bytes(content.numpy().tobytes())
    return {
        **found,
        "tokenizer": "transformers",
        "file": files.name,
        "steps": [
            "AutoTokenizer.from_pretrained(file)(captions, truncation=True, max_length=max_length, padding=True)"
        ],
    }
