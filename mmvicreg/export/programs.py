"""Encoders as programs that need neither this library nor its classes: torch.export's, and ONNX graphs."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from mmvicreg.branches.gru import GRUText
from mmvicreg.errors import UserError
from mmvicreg.export import gru_onnx
from mmvicreg.export.subject import Subject
from mmvicreg.inputs.text import TextInput

OPSET = 18


class PaddedGRU(nn.Module):
    """:class:`GRUText` without packing, which no exporter can follow: the same states from padded captions.

    Forwards a state depends on what came before alone, so padding behind a caption changes nothing. Backwards, every
    caption is turned round within its own length, and its states are turned back.
    """

    def __init__(self, encoder: GRUText) -> None:
        super().__init__()
        self.embedding = encoder.embedding
        self.pooling = encoder.config.pooling
        self.directions = 2 if encoder.config.bidirectional else 1
        layers = nn.ModuleList()
        for number in range(encoder.config.layers):
            for suffix in ("", "_reverse")[: self.directions]:
                weights = {
                    f"{name}_l0": getattr(encoder.gru, f"{name}_l{number}{suffix}").detach()
                    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                }
                layer = nn.GRU(weights["weight_ih_l0"].shape[1], encoder.config.hidden, batch_first=True)
                layer.load_state_dict(weights)
                layers.append(layer)
        self.layers = layers

    def forward(self, ids: Tensor, length: Tensor) -> Tensor:
        """Representation ``(n, hidden)`` of ids ``(n, t)`` padded with 0 and lengths ``(n,)``, both int64."""
        longest = ids.shape[1]
        position = torch.arange(longest, device=ids.device)
        turned = (length[:, None] - 1 - position).remainder(longest)
        x: Tensor = self.embedding(ids)
        for number in range(0, len(self.layers), self.directions):
            states = [self.layers[number](x)[0]]
            if self.directions == 2:
                back, _ = self.layers[number + 1](_rows(x, turned))
                states.append(_rows(back, turned))
            x = torch.cat(states, dim=2)
        n, _, width = x.shape
        states_ = x.view(n, longest, self.directions, width // self.directions)
        if self.pooling == "last":
            forwards = _rows(states_[:, :, 0], (length - 1)[:, None])
            if self.directions == 1:
                return forwards[:, 0]
            return torch.stack([forwards[:, 0], states_[:, 0, 1]]).mean(dim=0)
        merged = states_.mean(dim=2)
        real = (position < length[:, None])[:, :, None]
        if self.pooling == "max":
            return merged.masked_fill(~real, float("-inf")).amax(dim=1)
        return (merged * real).sum(dim=1) / length[:, None]


def program_inputs(subject: Subject) -> dict[str, Tensor]:
    """What a program of torch.export is fed: captions padded to the longest there may be."""
    if not isinstance(subject.source, TextInput):
        return subject.inputs
    ids, most = subject.inputs["ids"], subject.source.config.max_length
    return {**subject.inputs, "ids": nn.functional.pad(ids, (0, most - ids.shape[1]))}


def write_pt2(subject: Subject, path: Path) -> None:
    """Write a program for any number of samples at once; captions are padded to the longest allowed.

    Raises:
        UserError: torch.export cannot follow the encoder.
    """
    encoder = subject.branch.encoder
    module = PaddedGRU(encoder) if isinstance(encoder, GRUText) else encoder
    inputs = program_inputs(subject)
    batch = torch.export.Dim("n", min=1)
    with _exporting(subject, "pt2"):
        program = torch.export.export(
            module.eval(), tuple(inputs.values()), dynamic_shapes=tuple({0: batch} for _ in inputs)
        )
    torch.export.save(program, path)


def write_onnx(subject: Subject, path: Path) -> None:
    """Write an ONNX graph for any number of samples at once, and captions of any length.

    Raises:
        UserError: the exporter cannot follow the encoder.
    """
    encoder = subject.branch.encoder
    if isinstance(encoder, GRUText):
        gru_onnx.write(encoder, path)
        return
    batch = torch.export.Dim("n", min=1)
    with _exporting(subject, "onnx"):
        torch.onnx.export(
            encoder.eval(),
            tuple(subject.inputs.values()),
            path,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(subject.inputs),
            output_names=["representation"],
            dynamic_shapes=tuple({0: batch} for _ in subject.inputs),
            external_data=False,
            verbose=False,
        )


def _rows(x: Tensor, place: Tensor) -> Tensor:
    """``x (n, t, d)`` at ``place (n, k)``: ``(n, k, d)``."""
    return x.gather(1, place[:, :, None].expand(-1, -1, x.shape[2]))


@contextlib.contextmanager
def _exporting(subject: Subject, format: str) -> Iterator[None]:
    """Quietly, in evaluation mode; what an exporter cannot follow is the user's to know, in one message."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stdout(io.StringIO()),
            torch.no_grad(),
        ):
            yield
    except OSError:
        raise
    except Exception as error:  # exporters raise whatever the module makes them stumble over
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the encoder {subject.encoder} of the branch '{subject.name}' cannot be exported as {format} ({first}); "
            "choose --format safetensors"
        ) from error
    finally:
        log.setLevel(level)
