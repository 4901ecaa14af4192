"""A trained branch as files that other libraries load without this one.

| format | file | read by |
|---|---|---|
| ``torchvision`` | ``.pth``, ``.pt``, ``.safetensors``: a state dict | ``torchvision.models`` |
| ``timm`` | the same, of timm's names | ``timm.create_model`` |
| ``transformers`` | a folder | ``transformers.AutoModel.from_pretrained`` |
| ``safetensors`` | ``.safetensors``: the encoder's tensors by name | ``safetensors`` |
| ``pt2`` | ``.pt2``: a program that needs torch alone | ``torch.export.load`` |
| ``onnx`` | ``.onnx`` | any ONNX runtime |

The encoder is exported: from what the branch's frontend gives to the representation, the expander left out. Beside the
file lies ``FILE.json`` (in a folder ``export.json``) with the lines of Python that load it, what goes in and comes
out, and the preprocessing in full: sizes, means, mel parameters, tokenizer.
"""
