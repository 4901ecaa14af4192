"""Loads an exported file where this library cannot be imported, and says what it gives.

Run as a script, by its path: ``python alone.py ORDER.json``. The order names the file, the lines of Python that load
it (those that are written beside the file), the inputs and what is expected; the answer is the last line printed.
"""

from __future__ import annotations

import importlib.abc
import importlib.metadata
import json
import sys
from pathlib import Path


class _Refuse(importlib.abc.MetaPathFinder):
    """Makes ``import mmvicreg`` fail, wherever it is installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == "mmvicreg":
            raise ImportError("mmvicreg must not be needed here")


def main(order_file: str) -> None:
    """Carry out one order."""
    sys.path[0] = ""  # this script's own folder is a part of the library
    sys.meta_path.insert(0, _Refuse())
    order = json.loads(Path(order_file).read_text(encoding="utf-8"))

    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(order["threads"])
    scope: dict[str, object] = {"FILE": order["file"]}
    exec("\n".join(order["load"]), scope)  # written by the parent a moment ago
    expected = load_file(order["expected"])
    if order["tensors"]:
        found = scope["model"]
        assert isinstance(found, dict)
        if found.keys() != expected.keys():
            raise SystemExit(f"other names: {sorted(found.keys() ^ expected.keys())[:5]}")
    else:
        inputs, model = load_file(order["inputs"]), scope["model"]
        assert callable(model)
        rows = [inputs[name] for name in order["names"]]
        with torch.inference_mode():
            found = {"all": model(*rows), "first": model(*(row[:1] for row in rows))}
    most, scale = 0.0, 0.0
    for name, value in expected.items():
        if found[name].shape != value.shape:
            raise SystemExit(f"{name} has the shape {tuple(found[name].shape)}, not {tuple(value.shape)}")
        if value.numel() and not torch.equal(found[name], value):
            gap = (found[name].double() - value.double()).abs().max()
            most = max(most, float(gap) if gap.isfinite() else float("inf"))
        scale = max(scale, float(value.double().abs().max()) if value.numel() else 0.0)
    assert not [name for name in sys.modules if name.partition(".")[0] == "mmvicreg"]
    known = ("torchvision", "timm", "transformers", "onnxruntime", "safetensors", "torch")
    used = next(name for name in (order["library"], *known) if name in sys.modules)
    print(
        json.dumps(
            {"difference": most, "scale": scale, "library": f"{used} {importlib.metadata.version(used)}"}
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
