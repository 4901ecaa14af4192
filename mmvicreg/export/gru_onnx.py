"""The text encoder as an ONNX graph, of ONNX's own GRU operator: captions of any length, padded or not.

torch's exporters unroll a GRU to one number of tokens; the operator takes the lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmvicreg.branches.gru import GRUText

OPSET, IR = 17, 8


def write(encoder: GRUText, path: Path) -> None:
    """Write ``ids`` int64 ``(n, t)``, ``length`` int64 ``(n,)`` -> ``representation`` float32 ``(n, hidden)``."""
    import onnx
    from onnx import TensorProto, helper

    graph = _Graph()
    graph.build(encoder)
    shapes = {"ids": ["n", "t"], "length": ["n"]}
    whole = helper.make_graph(
        graph.nodes,
        "text",
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in shapes.items()],
        [
            helper.make_tensor_value_info(
                "representation", TensorProto.FLOAT, ["n", int(encoder.out_features)]
            )
        ],
        graph.constants,
    )
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="mmvicreg")
    model.ir_version = IR
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


class _Graph:
    """Nodes and constants, collected in order."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def node(self, kind: str, inputs: Sequence[str], outputs: str | Sequence[str], **attributes: Any) -> str:
        """Add one operator; the name of its first output."""
        from onnx import helper

        names = [outputs] if isinstance(outputs, str) else list(outputs)
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0]

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        """Add one constant."""
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def build(self, encoder: GRUText) -> None:
        """Embedding, layers, pooling."""
        config = encoder.config
        directions = 2 if config.bidirectional else 1
        words = self.constant("words", encoder.embedding.weight.detach().numpy())
        x = self.node("Transpose", [self.node("Gather", [words, "ids"], "read")], "x0", perm=[1, 0, 2])
        length = self.node("Cast", ["length"], "length32", to=6)  # int32, as the operator wants it
        shape = self.constant("joined", np.array([0, 0, directions * config.hidden], np.int64))
        last = states = ""
        for layer in range(config.layers):
            states, last = f"states{layer}", f"last{layer}"
            self.node(
                "GRU",
                [x, *self._weights(encoder, layer), length],
                [states, last],
                hidden_size=config.hidden,
                direction="bidirectional" if config.bidirectional else "forward",
                linear_before_reset=1,  # torch's form
            )
            turned = self.node("Transpose", [states], f"turned{layer}", perm=[0, 2, 1, 3])
            x = self.node("Reshape", [turned, shape], f"x{layer + 1}")
        if config.pooling == "last":
            self.node("ReduceMean", [last], "representation", axes=[0], keepdims=0)
        else:
            self._pool(states, config.pooling)

    def _weights(self, encoder: GRUText, layer: int) -> tuple[str, str, str]:
        """Weights ``(directions, 3 hidden, in)``; ONNX orders the gates update, reset, new; torch reset, update."""
        hidden, gru = encoder.config.hidden, encoder.gru
        suffixes = ("", "_reverse") if encoder.config.bidirectional else ("",)
        order = np.r_[hidden : 2 * hidden, :hidden, 2 * hidden : 3 * hidden]

        def stacked(name: str) -> npt.NDArray[Any]:
            parts = [getattr(gru, f"{name}_l{layer}{suffix}").detach().numpy()[order] for suffix in suffixes]
            return np.stack(parts)

        bias = np.concatenate([stacked("bias_ih"), stacked("bias_hh")], axis=1)
        return (
            self.constant(f"input{layer}", stacked("weight_ih")),
            self.constant(f"recurrent{layer}", stacked("weight_hh")),
            self.constant(f"bias{layer}", bias),
        )

    def _pool(self, states: str, pooling: str) -> None:
        """Mean or maximum over a caption's own tokens, of states ``(t, directions, n, hidden)``."""
        merged = self.node("ReduceMean", [states], "merged", axes=[1], keepdims=0)
        zero, one = self.constant("zero", np.array(0, np.int64)), self.constant("one", np.array(1, np.int64))
        longest = self.node(
            "Gather", [self.node("Shape", ["ids"], "shape"), self.constant("axis", np.array(1))], "longest"
        )
        column = self.constant("column", np.array([1], np.int64))
        steps = self.node(
            "Unsqueeze", [self.node("Range", [zero, longest, one], "range"), column], "positions"
        )
        real = self.node("Less", [steps, "length"], "real")  # (t, n)
        behind = self.constant("behind", np.array([2], np.int64))
        real = self.node("Unsqueeze", [real, behind], "mask")
        if pooling == "max":
            least = self.constant("least", np.array(-np.inf, np.float32))
            masked = self.node("Where", [real, merged, least], "masked")
            self.node("ReduceMax", [masked], "representation", axes=[0], keepdims=0)
            return
        nothing = self.constant("nothing", np.array(0, np.float32))
        masked = self.node("Where", [real, merged, nothing], "masked")
        first = self.constant("first", np.array([0], np.int64))
        total = self.node("ReduceSum", [masked, first], "total", keepdims=0)
        count = self.node("Cast", [self.node("Unsqueeze", ["length", column], "count")], "weight", to=1)
        self.node("Div", [total, count], "representation")
