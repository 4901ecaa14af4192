"""``mmvicreg data``: list, describe, make, download and verify data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="List, describe, make, download and verify data sets.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A data set; `mmvicreg data list` shows them.")]
Root = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        help="Its folder (for a manifest, its file). Default: $MMVICREG_DATA/NAME, else the cache folder.",
    ),
]
Mirror = Annotated[
    str | None,
    typer.Option(
        "--mirror",
        envvar="MMVICREG_MIRROR",
        help="Take files from URL/<file name> instead of from their publisher.",
    ),
]


@app.command("list")
def list_datasets(
    root: Annotated[
        Path | None,
        typer.Option("--data-root", help="Look in this folder's subfolders, one a data set."),
    ] = None,
) -> None:
    """Show every data set, where it is looked for, and whether it is there."""
    from rich.table import Table

    from mmvicreg import registry
    from mmvicreg.data.card import card_of
    from mmvicreg.datasets import OWN_DATA
    from mmvicreg.errors import UserError
    from mmvicreg.tables import print_table

    table = Table("name", "pairs", "licence", "looked for in", "there")
    for name in registry.DATASETS.names():
        place = root / name if root is not None else _place(name, None)
        try:
            card = card_of(name)
        except UserError:
            table.add_row(name, "", "", str(place), _presence(place))
            continue
        if name in OWN_DATA:
            where = "--data-root " + ("FILE" if "FILE" in OWN_DATA[name] else "DIR")
            table.add_row(name, ", ".join(card.pairs), card.licence, where, "")
            continue
        there = _presence(place)
        if there == "no":
            made = "no; made on first use" if card.made else "no; by hand" if not card.files else "no"
            there = made
        table.add_row(name, ", ".join(card.pairs), card.licence, str(place), there)
    print_table(table)


@app.command()
def info(name: Name, root: Root = None) -> None:
    """Show a data set's card: source, licence, splits and counts, files, sizes and checksums."""
    from rich.table import Table

    from mmvicreg.data.card import card_of
    from mmvicreg.tables import print_table

    card = card_of(name)
    place = _place(name, root)
    facts = Table.grid(padding=(0, 2))
    rows = {
        "name": f"{card.name} ({card.title})",
        "description": card.description,
        "pairs": ", ".join(card.pairs),
        "source": "\n".join(card.source),
        "licence": card.licence,
        "splits": ", ".join(card.splits),
        "classes": "" if card.classes is None else f"{card.classes:,}",
        "citation": card.citation,
        "by hand": card.manual,
        "looked for in": f"{place} ({'there' if _presence(place) == 'yes' else 'not there'})",
    }
    for key, value in rows.items():
        if value:
            facts.add_row(key, value)
    print_table(facts)
    if card.counts:
        table = Table("layout", "split", "samples")
        for layout, counts in card.counts.items():
            for split, count in counts.items():
                table.add_row(layout, split, f"{count:,}")
        print_table(table)
    if card.files:
        table = Table("file", "layout", "size", "checksum", "from")
        for file in card.files:
            size = f"{file.size:,} bytes" if file.size is not None else "not published / not checked"
            layouts = ", ".join(file.layouts) or "all"
            table.add_row(file.path, layouts, size, file.checksum, file.url)
        print_table(table)
    if card.made or card.files or card.manual:
        typer.echo(card.way_out(place))


@app.command()
def make(name: Name, root: Root = None) -> None:
    """Make a data set that the project makes itself (shapes, tones); nothing is overwritten."""
    from mmvicreg import registry
    from mmvicreg.data.card import card_of
    from mmvicreg.errors import UserError

    cls = registry.DATASETS.load(name)
    place = _place(name, root)
    if not hasattr(cls, "make"):
        raise UserError(f"{name} is not made. {card_of(name).way_out(place)}")
    already = place.is_dir() and any(place.iterdir())
    cls.make(place)
    typer.echo(f"{name} {'is already' if already else 'is made'} at {place}")


@app.command()
def download(
    name: Name,
    root: Root = None,
    mirror: Mirror = None,
    layout: Annotated[
        str | None,
        typer.Option("--layout", help="Which published layout (see `data info`). Default: the first."),
    ] = None,
    unchecked: Annotated[
        bool,
        typer.Option("--unchecked", help="Take what comes, whatever its size and checksum (a part, say)."),
    ] = False,
) -> None:
    """Download a data set: resumed where it stopped, checked against its card, unpacked."""
    from mmvicreg.data.card import card_of
    from mmvicreg.data.download import Downloader

    card = card_of(name)
    place = _place(name, root)
    for line in Downloader(mirror=mirror, checked=not unchecked).get(card, place, layout=layout):
        typer.echo(line)
    if card.manual:
        typer.echo(f"Still to do by hand: {card.manual}")
    typer.echo(f"{card.title}: {place}. Check it with: mmvicreg data verify {name} --data-root {place}")


@app.command()
def verify(name: Name, root: Root = None) -> None:
    """Count a data set against its card and read every file of it; status 2 unless all is there."""
    from rich.table import Table

    from mmvicreg.data.verify import verify as run
    from mmvicreg.tables import print_table

    report = run(name, _place(name, root))
    columns = ["split", "published", "listed", "readable"]
    each = report.captions_each
    if any(split.captions for split in report.splits):
        columns += ["captions", *([f"the first {each} of each"] if each else [])]
    table = Table(*columns, title=f"{name} at {report.root}", title_justify="left")
    for split in report.splits:
        published = "" if split.published is None else f"{split.published:,}"
        numbers = (split.listed, split.readable, split.captions, split.judged)
        table.add_row(*[split.split, published, *(f"{n:,}" for n in numbers)][: len(columns)])
    print_table(table)
    report.check()
    typer.echo(f"{name} is whole{_how_compared(report.compared)}")


def _how_compared(files: int | None) -> str:
    """What stands behind the verdict, for a data set whose files come in zips."""
    if files is None:
        return ""
    if files:
        return f"; the bytes of {files:,} files are those that the archive held (CRC-32)"
    return (
        " by names, counts and form, and every file can be read; no checksum stands behind it: data download keeps "
        "those of the archive, and did not fetch this copy"
    )


def _place(name: str, root: Path | None) -> Path:
    """Where a data set is looked for; the place of one that holds it too where its own is absent."""
    from mmvicreg import registry
    from mmvicreg.datasets import dataset_root

    cls = registry.DATASETS.load(name)
    place = dataset_root(name, root)
    if root is None and not place.exists():
        for other in getattr(cls, "alternatives", ()):
            if dataset_root(other).exists():
                return dataset_root(other)
    return place


def _presence(place: Path) -> str:
    if not place.exists():
        return "no"
    return "yes" if place.is_file() or any(place.iterdir()) else "no (an empty folder)"
