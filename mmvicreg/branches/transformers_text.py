"""Any text model of the transformers library as a text encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mmvicreg.branches.frontends import TextBatch, check_kind
from mmvicreg.errors import UserError
from mmvicreg.inputs.base import InputSpec
from mmvicreg.inputs.tokenizers import first_line
from mmvicreg.strict import Strict

_FIRST_IS_BLIND = ("clip_text_model",)
"""Kinds of models whose first token, the same in every caption, sees no other."""


class TransformersText(nn.Module):
    """A model by hub name or local folder, pooled over its last hidden states.

    Needs ``inputs.text.tokenizer: transformers`` with the same model, whose configuration travels with the run, so that
    a trained run is rebuilt without the hub. Of an encoder-decoder it is the encoder, of CLIP the text half.

    Raises:
        UserError: another tokenizer, a model that cannot be loaded or is of more than text, pooling that would make all
            captions alike, or captions longer than it has positions.
    """

    reads: ClassVar[tuple[str, ...]] = ("text",)

    class Config(Strict):
        """Where the weights come from and how token states become one vector."""

        model: str | None = None
        """Hub name or local folder; null: that of ``inputs.text.model``, and no other."""
        weights: Literal["pretrained", "none"] = "pretrained"
        pooling: Literal["mean", "first"] = "mean"
        """``mean`` over the real tokens, or the ``first`` one ([CLS])."""

    def __init__(self, config: Config, spec: InputSpec, *, pretrained: bool = True) -> None:
        super().__init__()
        check_kind(spec, self.reads, f"the encoder {type(self).__name__}")
        from transformers import AutoConfig, AutoModel

        if spec.model_config is None:
            raise UserError(
                f"the encoder transformers reads its own tokens: set inputs.text.tokenizer to transformers and "
                f"inputs.text.model to {config.model or 'the name or folder of a model'}"
            )
        self.config = config
        if pretrained:  # a trained run holds both, whatever became of the names
            _check_same(config.model, spec.model)
        if pretrained and config.weights == "pretrained":
            model = str(config.model or spec.model)
            try:
                self.network = AutoModel.from_pretrained(model, dtype=torch.float32)
            except Exception as error:  # SafetensorError, UnpicklingError, ...: as many kinds as formats
                raise UserError(
                    f"cannot load the weights of the transformers model '{model}' ({first_line(error)}): a file is "
                    "absent or damaged; get it again, or name another model as inputs.text.model and "
                    "branches.text.encoder.model"
                ) from error
        else:
            fields = {k: v for k, v in spec.model_config.items() if k not in ("dtype", "torch_dtype")}
            described = AutoConfig.for_model(fields.pop("model_type"), **fields)
            self.network = AutoModel.from_config(described)  # type: ignore[no-untyped-call]
        if getattr(self.network.config, "is_encoder_decoder", False):
            self.network = self.network.get_encoder()
        self.network = _text_half(self.network, str(config.model or spec.model))
        if pretrained and config.pooling == "first" and self.network.config.model_type in _FIRST_IS_BLIND:
            raise UserError(
                f"branches.text.encoder.pooling is first, and in the transformers model '{config.model or spec.model}' "
                "no token sees those behind it: all captions would be alike; set pooling to mean"
            )
        if getattr(self.network, "pooler", None) is not None:
            self.network.pooler = None  # nothing reads it; without a gradient it would stop DDP
        _check_positions(self.network, spec.longest)
        self.out_features = int(self.network.config.hidden_size)

    def forward(self, text: TextBatch) -> Tensor:
        """Representation ``(n, hidden_size)`` of token ids ``(n, longest)``, shifted by one for padding 0."""
        length = text.length.to(text.ids.device)
        real = torch.arange(text.ids.shape[1], device=text.ids.device) < length[:, None]
        ids = (text.ids - 1).clamp_min(0)
        states: Tensor = self.network(input_ids=ids, attention_mask=real.long()).last_hidden_state
        if self.config.pooling == "first":
            return states[:, 0]
        return (states * real[:, :, None]).sum(dim=1) / real.sum(dim=1, keepdim=True)


def _check_same(model: str | None, tokenizer: str | None) -> None:
    """Token ids mean nothing to another model than the tokenizer's, and most of them would be in its range."""
    if model is None or tokenizer is None or model == tokenizer:
        return
    if Path(model).is_dir() and Path(tokenizer).is_dir() and Path(model).samefile(tokenizer):
        return
    raise UserError(
        f"inputs.text.model is {tokenizer} and the text branch's encoder.model is {model}: a model reads the tokens of "
        "its own tokenizer alone. Give both the same name, or leave out the encoder's"
    )


def _text_half(network: Any, model: str) -> Any:
    """The text encoder of CLIP; of other models, which must be of text alone, the model itself."""
    if network.config.model_type == "clip":
        return network.text_model
    if not isinstance(getattr(network.config, "hidden_size", None), int):
        raise UserError(
            f"the transformers model '{model}' is a {type(network).__name__}, which is of more than text (its "
            "configuration has no hidden_size): give as inputs.text.model one that is of text alone, or the text "
            "half of it, saved by itself with its tokenizer"
        )
    return network


def _check_positions(network: Any, longest: int) -> None:
    """Refuse captions that could be longer than the model has positions for."""
    positions = getattr(network.config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return  # relative ones
    table = getattr(getattr(network, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    if padding is not None:  # RoBERTa and its kin count from behind it
        positions -= padding + 1
    if longest > positions:
        raise UserError(
            f"inputs.text.max_length is {longest} tokens, and the transformers model has {positions} positions: set "
            f"inputs.text.max_length to {positions} or less"
        )
