"""``mmvicreg bench``: what things cost here, against how others do them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="bench", help="Measure time and memory against other implementations.", no_args_is_help=True
)


@app.command("objective")
def objective(
    shapes: Annotated[
        str, typer.Option(help="Samples of the global batch x dimensions.", metavar="NxD,...")
    ] = "256x2048,256x4096,512x8192,2048x2048,4096x1024",
    processes: Annotated[
        str,
        typer.Option(help="Processes that share the batch: gloo on a CPU, NCCL on GPUs.", metavar="P,..."),
    ] = "1",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            help="fp32; tf32: float32 products of peers in TF32 (ours never are); bf16: embeddings in bfloat16."
        ),
    ] = "fp32",
    peers: Annotated[
        str | None, typer.Option(help="authors, lightly, solo-learn. Default: all that are installed.")
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, help="Timed runs of each, in turns; their median counts.")
    ] = 5,
    share: Annotated[
        bool,
        typer.Option("--share", help="Also our share of a step of two D-D-D expanders (encoders left out)."),
    ] = False,
    json_file: Annotated[
        str | None,
        typer.Option(
            "--json", help="Write the rows as JSON; '-' prints them instead of the table.", metavar="FILE"
        ),
    ] = None,
) -> None:
    """VICReg forward and backward against the authors' formula, lightly's loss and solo-learn's formula.

    Time, peak memory beyond the inputs, and our error against float64. The default takes minutes on a CPU.
    """
    import json

    from mmvicreg.bench import objective as bench
    from mmvicreg.bench.peers import HOW_TO_GET_LIGHTLY, installed
    from mmvicreg.errors import UserError

    wanted = bench.settings(
        shapes=shapes,
        processes=processes,
        device=device,
        precision=precision,
        peers=peers,
        repeats=repeats,
        share=share,
    )
    if json_file not in (None, "-") and not Path(str(json_file)).absolute().parent.is_dir():
        raise UserError(f"--json {json_file}: there is no folder {Path(str(json_file)).absolute().parent}")
    if peers is None and not installed("lightly"):
        typer.echo(f"{HOW_TO_GET_LIGHTLY}; its rows are left out", err=True)
    found = bench.bench_objective(wanted)
    if json_file is not None:
        text = json.dumps(bench.rows(found, wanted), indent=2, allow_nan=False) + "\n"
        if json_file == "-":
            typer.echo(text, nl=False)
            return
        from mmvicreg.runs import write_whole

        try:
            write_whole(Path(json_file), text)
        except OSError as error:
            raise UserError(f"cannot write {json_file}: {error.strerror or error}") from error
    from mmvicreg.eval.output import console

    console().print(bench.table(found, wanted))
