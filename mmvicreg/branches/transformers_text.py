"""Any text model of the transformers library as a text encoder."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mmvicreg.branches.frontends import TextBatch, check_kind
from mmvicreg.errors import UserError
from mmvicreg.inputs.base import InputSpec
from mmvicreg.strict import Strict


class TransformersText(nn.Module):
    """A model by hub name or local folder, pooled over its last hidden states.

    Needs ``inputs.text.tokenizer: transformers`` with the same model, whose configuration travels with the
    run, so that a trained run is rebuilt without the hub.
    """

    reads: ClassVar[tuple[str, ...]] = ("text",)

    class Config(Strict):
        """Where the weights come from and how token states become one vector."""

        model: str
        """Hub name or local folder."""
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
                f"inputs.text.model to {config.model}"
            )
        self.config = config
        if pretrained and config.weights == "pretrained":
            try:
                self.network = AutoModel.from_pretrained(config.model, dtype=torch.float32)
            except (OSError, ValueError) as error:
                raise UserError(f"cannot load the transformers model '{config.model}': {error}") from error
        else:
            fields = {k: v for k, v in spec.model_config.items() if k not in ("dtype", "torch_dtype")}
            described = AutoConfig.for_model(fields.pop("model_type"), **fields)
            self.network = AutoModel.from_config(described)  # type: ignore[no-untyped-call]
        if getattr(self.network.config, "is_encoder_decoder", False):
            self.network = self.network.get_encoder()
        if getattr(self.network, "pooler", None) is not None:
            self.network.pooler = None  # nothing reads it; without a gradient it would stop DDP
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
