"""``mmvicreg bench``: what things cost here, against how others do them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mmvicreg.errors import UserError

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
    from mmvicreg.bench import objective as bench
    from mmvicreg.bench.peers import HOW_TO_GET_LIGHTLY, installed

    wanted = bench.settings(
        shapes=shapes,
        processes=processes,
        device=device,
        precision=precision,
        peers=peers,
        repeats=repeats,
        share=share,
    )
    _check_folder(json_file)
    if peers is None and not installed("lightly"):
        typer.echo(f"{HOW_TO_GET_LIGHTLY}; its rows are left out", err=True)
    found = bench.bench_objective(wanted)
    _tell(bench.rows(found, wanted), bench.table(found, wanted), json_file)


@app.command("input")
def input_(
    pair: Annotated[
        str, typer.Option(help="image-text or image-image: pictures; wave-mel: recordings.")
    ] = "image-image",
    files: Annotated[
        int | None, typer.Option(min=1, help="Files in a round. Default: 16 pictures, 64 recordings.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds of each pipeline, in turns.")] = 5,
    device: Annotated[
        str, typer.Option(help="Pictures: where the colours are made: auto, cpu or cuda.")
    ] = "auto",
    json_file: Annotated[
        str | None,
        typer.Option(
            "--json", help="Write the rows as JSON; '-' prints them instead of the table.", metavar="FILE"
        ),
    ] = None,
) -> None:
    """What one core of a loader makes a second: two views of a picture against the authors' pipeline, or the
    waveform and its mel spectrogram against librosa on every clip. The files are made on the spot.
    """
    from mmvicreg.registry import check_pair

    check_pair(pair)
    _check_folder(json_file)
    if pair == "wave-mel":
        from mmvicreg.bench import audio_input

        heard = audio_input.run(passes=repeats, clips=files or 64)
        _tell([asdict(result) for result in heard], audio_input.table(heard), json_file)
    else:
        from mmvicreg.bench import input as pictures

        wanted = pictures.Settings(pictures=files or 16, repeats=repeats, device=device)
        seen = pictures.bench_input(wanted)
        _tell(pictures.rows(seen, wanted), pictures.table(seen, wanted), json_file)


@app.command("lars")
def lars(
    width: Annotated[int, typer.Option(help="Of the expander's three layers.")] = 8192,
    repeats: Annotated[int, typer.Option(min=1, help="Timed steps of each, in turns.")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    json_file: Annotated[
        str | None,
        typer.Option(
            "--json", help="Write the rows as JSON; '-' prints them instead of the table.", metavar="FILE"
        ),
    ] = None,
) -> None:
    """A step of LARS on a ResNet-50 and its expander (175 M weights, 4.2 GB) against the authors' loop.

    Seconds, memory beyond weights, gradients and momenta, and whether the weights stay equal.
    """
    from mmvicreg.bench import lars as bench

    _check_folder(json_file)
    wanted = bench.Settings(width=width, repeats=repeats, device=device)
    found = bench.bench_lars(wanted)
    _tell(bench.rows(found, wanted), bench.table(found, wanted), json_file)


@app.command("step")
def step(
    encoder: Annotated[str, typer.Option(help="A ResNet by name.")] = "resnet18",
    width: Annotated[int, typer.Option(help="Of the expander's three layers.")] = 8192,
    batch_size: Annotated[int, typer.Option(min=2, help="Pictures, two views each.")] = 128,
    size: Annotated[int, typer.Option(help="Side of a view, pixels; the small stem up to 64.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Timed steps of each, in turns.")] = 3,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, or bf16: autocast for both.")] = "fp32",
    json_file: Annotated[
        str | None,
        typer.Option(
            "--json", help="Write the rows as JSON; '-' prints them instead of the table.", metavar="FILE"
        ),
    ] = None,
) -> None:
    """A training step on pictures against the step of the authors' script, on one network, batch and device.

    Seconds, the share of every phase, peak memory, and the input that one core of a loader makes.
    """
    from mmvicreg.bench import step as bench

    _check_folder(json_file)
    wanted = bench.Settings(encoder, width, batch_size, size, repeats, device, precision)
    found = bench.bench_step(wanted)
    _tell(bench.rows(found, wanted), bench.table(found, wanted), json_file)


@app.command("ranking")
def ranking(
    images: Annotated[int, typer.Option(help="How many.")] = 5000,
    captions_per_image: Annotated[int, typer.Option(help="Captions of each.")] = 5,
    width: Annotated[int, typer.Option(help="Of an embedding.")] = 1024,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each, in turns.")] = 1,
    json_file: Annotated[
        str | None,
        typer.Option(
            "--json", help="Write the rows as JSON; '-' prints them instead of the table.", metavar="FILE"
        ),
    ] = None,
) -> None:
    """Ranks of retrieval in both directions, COCO's 5 000 images and 25 000 captions, against VSE++'s loops.

    Seconds, memory beyond the embeddings, and how many ranks differ. The default takes minutes.
    """
    from mmvicreg.bench import ranking as bench

    _check_folder(json_file)
    wanted = bench.Settings(images, captions_per_image, width, repeats)
    found = bench.bench_ranking(wanted)
    _tell(bench.rows(found, wanted), bench.table(found, wanted), json_file)


def _check_folder(json_file: str | None) -> None:
    """Refuse a file that could not be written before anything is measured."""
    if json_file not in (None, "-") and not Path(str(json_file)).absolute().parent.is_dir():
        raise UserError(f"--json {json_file}: there is no folder {Path(str(json_file)).absolute().parent}")
    if json_file not in (None, "-") and Path(str(json_file)).is_dir():
        raise UserError(f"--json {json_file} is a folder; name a file in it")


def _tell(rows: list[dict[str, Any]], table: Any, json_file: str | None) -> None:
    """The rows as JSON on request, the table for people otherwise."""
    text = json.dumps(rows, indent=2, allow_nan=False) + "\n"
    if json_file == "-":
        typer.echo(text, nl=False)
        return
    if json_file is not None:
        from mmvicreg.runs import write_whole

        try:
            write_whole(Path(json_file), text)
        except OSError as error:
            raise UserError(f"cannot write {json_file}: {error.strerror or error}") from error
    from mmvicreg.tables import print_table

    print_table(table)
