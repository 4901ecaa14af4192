"""The command line: one file a verb, thin; nothing heavy is imported before a command runs."""

from __future__ import annotations

import sys

import typer

import mmvicreg.cli.bench as bench
import mmvicreg.cli.data as data
import mmvicreg.cli.embed as embed
import mmvicreg.cli.evaluate as evaluate
import mmvicreg.cli.export as export
import mmvicreg.cli.sweep as sweep
import mmvicreg.cli.train as train
from mmvicreg.errors import UserError, for_want_of_access, for_want_of_memory

app = typer.Typer(
    name="mmvicreg",
    help="Train joint embeddings across modalities with VICReg, and measure what the encoders learned.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("train")(train.train)
app.add_typer(evaluate.app, name="eval")
app.command("sweep")(sweep.sweep)
app.command("embed")(embed.embed)
app.command("export")(export.export)
app.add_typer(data.app, name="data")
app.add_typer(bench.app, name="bench")


@app.callback(invoke_without_command=True)
def _version(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    if version:
        from mmvicreg import __version__

        typer.echo(f"mmvicreg {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command line; a user's mistake is one message on stderr and status 2."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except (MemoryError, RuntimeError, OSError) as error:
        told = for_want_of_access(error) if isinstance(error, OSError) else for_want_of_memory(error)
        if told is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
