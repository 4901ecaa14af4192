"""mmvicreg: joint embeddings across modalities, trained with VICReg."""

from __future__ import annotations

from pathlib import Path

__version__ = "0.1.0"

# In a source checkout data/, configs/ and eval/ stand beside this package, at the top of the repository;
# in the wheel they are inside it. Extending the search path makes mmvicreg.data the same module in both.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "configs").is_dir():
    __path__.append(str(_checkout))
