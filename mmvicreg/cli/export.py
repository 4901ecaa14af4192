"""``mmvicreg export``: a trained branch as a file that other libraries load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    branch: Annotated[str, typer.Option(metavar="NAME", help="Which branch of the run.")],
    format: Annotated[
        str, typer.Option(help="torchvision, timm, transformers, safetensors, pt2 (torch.export) or onnx.")
    ] = "safetensors",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File to write; for transformers a folder. Default: RUN/export/NAME and the format's ending.",
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Load it where mmvicreg cannot be imported, and compare its outputs with ours."
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
) -> None:
    """Write a branch's encoder for use without mmvicreg, and beside it how it is loaded and fed."""
    from mmvicreg.export.write import export as write
    from mmvicreg.runs import open_run

    written = write(open_run(run), branch, format=format, out=out, overwrite=overwrite, prove=check)
    for path in written.files:
        typer.echo(str(path))
    if written.verdict is not None:
        found = written.verdict
        typer.echo(
            f"check: max abs difference {found.difference:.3g} over {found.what}, largest value {found.scale:.3g} "
            f"({found.library}, without mmvicreg)"
        )
