"""The linear protocol's report as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table as RichTable

from mmvicreg.eval.output import Report, number, say_skipped, spread
from mmvicreg.tables import console, print_table


def show(report: Report) -> None:
    """Print every method with its folds, chance, and, where there are any, published rows."""
    out = console()
    folds = list(report["folds"])
    several = len(folds) > 1
    where = f"{len(folds)} folds" if several else ("fold " if folds[0].isdigit() else "") + folds[0]
    out.print(
        f"Linear probe, {report['dataset']}, {where}, {report['setting']}: {report['classes']} "
        f"classes, {report['train']:,} training and {report['test']:,} test samples",
        style="bold",
        soft_wrap=True,
    )
    say_skipped(report)
    table, has_top5 = RichTable(), report["top5"] is not None
    for column in ("method", "frozen representation"):
        table.add_column(column)
    for column in (
        "top-1",
        *(["top-5"] if has_top5 else []),
        *(f"fold {f}" for f in folds if several),
        "width",
    ):
        table.add_column(column, justify="right")
    for place, method in enumerate(report["methods"]):
        _add(table, _label(method, own=place == 0), method, folds=folds if several else [], has_top5=has_top5)
    table.add_row("chance", "", number(report["chance"]), style="dim", end_section=True)
    for row in report["published"]:
        table.add_row(f"{row['method']}, paper", "one split", number(row["top1"]))
    for row in report["published_elsewhere"]:
        table.add_row(row["method"], row["reads"], number(row["top1"]))
    print_table(table)
    for line in _remarks(report, several=several):
        out.print(line, soft_wrap=True)


def _label(method: Report, *, own: bool) -> str:
    name = f"{method['method']}, this run" if own else str(method["method"])
    return f"{name} (transductive)" if method["transductive"] else name


def _add(table: RichTable, label: str, method: Report, *, folds: Sequence[str], has_top5: bool) -> None:
    names = list(method["branches"])
    for name, found in method["branches"].items():
        table.add_row(
            label if name == names[0] else "",
            name,
            spread(found["top1"], found["std"]),
            *([number(found["top5"])] if has_top5 else []),
            *(number(found["folds"][fold]["top1"]) for fold in folds),
            str(found["width"]) if "width" in found else "",
            end_section=name == names[-1],
        )


def _remarks(report: Report, *, several: bool) -> list[str]:
    over = " ± standard deviation over folds" if several else ""
    lines = [f"Accuracy in percent{over}; run {report['run']} after epoch {report['epoch']}."]
    if not several and next(iter(report["folds"])).isdigit():
        lines.append(
            "One fold alone, which may be an easy or a hard one: figures that compare with others' are means over all, "
            "of runs that train --fold all makes."
        )
    for method in report["methods"]:
        if method["method"] == "supervised":
            lines.append(
                f"supervised: encoder and linear layer trained on the labels, {method['epochs']} epochs; both: "
                f"{method['both']}."
            )
        elif "differs" in method:
            told = "; ".join(method["differs"]) or "nothing"
            lines.append(
                f"{method['method']}: run {method['run']} after epoch {method['epoch']}; differs in {told}."
            )
    doubts = [report["doubt"] if "doubt" not in method else method["doubt"] for method in report["methods"]]
    lines += [
        f"Counted as transductive: {doubt}, so that whether it saw the test samples is not known."
        for doubt in dict.fromkeys(doubts)
        if doubt is not None
    ]
    if any(
        method["transductive"] and doubt is None
        for method, doubt in zip(report["methods"], doubts, strict=True)
    ):
        lines.append(
            "Transductive: pretraining saw the test samples (without their labels); not comparable with a "
            "run that held them out."
        )
    if report["published"]:
        lines.append("Paper (Table 6): one split of 1 600 / 400 clips; which fold is not published.")
        lines += [f"{row['method']}: {row['source']}." for row in report["published_elsewhere"]]
    else:
        lines.append(f"No published row for {report['dataset']}.")
    return lines
