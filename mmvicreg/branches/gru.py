"""Word or piece embedding followed by a GRU: VSE++'s text encoder."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from mmvicreg.branches.frontends import TextBatch, check_kind
from mmvicreg.errors import UserError
from mmvicreg.inputs.base import InputSpec
from mmvicreg.inputs.tokenizers import PAD
from mmvicreg.strict import Strict


class GRUText(nn.Module):
    """Embedding (300) and GRU (1024); the sizes are VSE++'s (Faghri et al. 2018, section 4.1)."""

    reads: ClassVar[tuple[str, ...]] = ("text",)

    class Config(Strict):
        """Sizes, and what of the GRU's states is kept."""

        word_features: Annotated[int, Field(ge=1)] = 300
        hidden: Annotated[int, Field(ge=1)] = 1024
        layers: Annotated[int, Field(ge=1)] = 1
        bidirectional: bool = False
        """Average the two directions, so that the representation stays ``hidden`` wide."""
        pooling: Literal["last", "mean", "max"] = "last"
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
        """On the word embeddings, in training."""

    def __init__(self, config: Config, spec: InputSpec, *, pretrained: bool = True) -> None:
        super().__init__()
        check_kind(spec, self.reads, f"the encoder {type(self).__name__}")
        self.config = config
        self.embedding = nn.Embedding(spec.vocabulary, config.word_features, padding_idx=PAD)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)  # VSE++'s
        self.dropout = nn.Dropout(config.dropout)
        self.gru = nn.GRU(
            config.word_features,
            config.hidden,
            config.layers,
            batch_first=True,
            bidirectional=config.bidirectional,
        )
        self.out_features = config.hidden

    def forward(self, text: TextBatch) -> Tensor:
        """Representation ``(n, hidden)`` of token ids ``(n, longest)`` with their lengths.

        Raises:
            UserError: a caption of length 0; its position in the batch is named.
        """
        if int(text.length.min()) < 1:
            raise UserError(f"caption {int(text.length.argmin())} of the batch has no tokens")
        words = self.dropout(self.embedding(text.ids))
        packed = pack_padded_sequence(words, text.length, batch_first=True, enforce_sorted=False)
        with own_precision(words.device):
            states, last = run_packed(self.gru, packed)
        directions = 2 if self.config.bidirectional else 1
        if self.config.pooling == "last":
            final: Tensor = last[-directions:].mean(dim=0)
            return final
        unpacked, _ = pad_packed_sequence(states, batch_first=True)
        n, longest, _ = unpacked.shape
        padded: Tensor = unpacked.view(n, longest, directions, self.config.hidden).mean(dim=2)
        real = torch.arange(padded.shape[1], device=padded.device) < text.length.to(padded.device)[:, None]
        if self.config.pooling == "max":
            return padded.masked_fill(~real[:, :, None], float("-inf")).amax(dim=1)
        return (padded * real[:, :, None]).sum(dim=1) / real.sum(dim=1, keepdim=True)


def run_packed(gru: nn.GRU, words: PackedSequence) -> tuple[PackedSequence, Tensor]:
    """What ``gru(words)`` gives, on a CPU step by step where the GRU has one direction.

    torch's own takes a slice of the inputs' products at every step, and the backward of every slice writes zeros for
    all of them: quadratic in the captions' length. Split at once they cost one copy. Forward and backward took 45 %
    of its time with 64 captions of up to 64 tokens and 256 hidden features, 81 % with 128 of up to 23 and 1 024.

    Args:
        gru: without dropout between its layers.
        words: features ``(tokens, input_size)``.

    Returns:
        The last layer's states, packed alike, and the last state of each layer ``(layers, n, hidden)`` in the order
        that the captions had before packing.
    """
    if gru.bidirectional or words.data.device.type != "cpu":
        packed, last = gru(words)
        return packed, last
    running: list[int] = words.batch_sizes.tolist()
    data, ends = words.data, []
    for layer in range(gru.num_layers):
        weight_ih, weight_hh, bias_ih, bias_hh = (
            getattr(gru, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        state = data.new_zeros(running[0], gru.hidden_size)
        states, ended = [], []
        for x in torch.split(nn.functional.linear(data, weight_ih, bias_ih), running):
            if len(x) < len(state):  # captions are sorted by length, so those that ended are the last
                state, done = torch.split(state, [len(x), len(state) - len(x)])
                ended.append(done)
            h = nn.functional.linear(state, weight_hh, bias_hh)
            (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, dim=1), h.chunk(3, dim=1)
            candidate = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
            state = torch.lerp(candidate, state, torch.sigmoid(x_z + h_z))
            states.append(state)
        data = torch.cat(states)
        ends.append(torch.cat([state, *reversed(ended)]))
    unsorted = words.unsorted_indices
    last = torch.stack(ends)
    return PackedSequence(data, words.batch_sizes, words.sorted_indices, unsorted), (
        last if unsorted is None else last[:, unsorted]
    )


def own_precision(device: torch.device) -> AbstractContextManager[object]:
    """The GRU in its parameters' precision on a CPU, whatever autocast says; on a GPU nothing changes.

    In bfloat16 oneDNN compiles and keeps a kernel for every number of captions still running at some step. With
    packed captions nearly every batch brings new numbers, so that a run's memory grows by megabytes a step; and
    float32 costs the GRU a tenth more time.
    """
    return torch.autocast("cpu", enabled=False) if device.type == "cpu" else nullcontext()
