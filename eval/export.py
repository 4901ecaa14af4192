"""A ranking as a file of ids, in the form that ECCV Caption's package judges.

``{"i2t": {"<image id>": [<caption id>, ...], ...}, "t2i": {"<caption id>": [<image id>, ...], ...}}``, best
first. On COCO the ids are COCO's image and annotation ids, as numbers; elsewhere the publisher's, or
``<image id>#<position of the caption>``, as text. JSON has text for keys, and the package wants numbers::

    from eccv_caption import Metrics

    tree = json.load(open("ranking.json"))
    i2t, t2i = ({int(query): ids for query, ids in tree[way].items()} for way in ("i2t", "t2i"))
    Metrics().compute_all_metrics(i2t, t2i, target_metrics=("eccv_map_at_r", "eccv_rprecision", "eccv_r1",
        "cxc_recalls", "coco_5k_recalls", "coco_1k_recalls"), Ks=(1, 5, 10))

Chun, Kim, Park, Chang, Oh 2022, "ECCV Caption: Correcting False Negatives by Collecting
Machine-and-Human-verified Image-Caption Associations for MS-COCO"; https://github.com/naver-ai/eccv-caption.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmvicreg.encode import row_ids
from mmvicreg.errors import UserError
from mmvicreg.eval.output import write_file
from mmvicreg.metrics.scores import Integers
from mmvicreg.runs import check_writable
from mmvicreg.samples import Sample

DEPTH = 200
"""Candidates kept per query. ECCV Caption has at most 48 right answers a query, so 50 would do for it; the
recalls on COCO 1K look for ten among the fifth of a ranking that belongs to a query's own fold."""


def check_export(path: Path | None, depth: int) -> None:
    """Refuse, before any work, a file that is there already or cannot be written, and a depth of nothing."""
    if depth < 1:
        raise UserError(f"--export-depth must be at least 1, got {depth}")
    if path is None:
        return
    check_writable(path)
    if path.exists():
        raise UserError(f"{path} exists; remove it, or give --export another name")


def write_ranking(
    path: Path,
    samples: Sequence[Sample],
    owner: Integers,
    image_to_text: Integers,
    text_to_image: Integers,
) -> None:
    """Write the ranking of ``n`` images and ``m`` captions.

    Args:
        path: JSON file.
        samples: the ``n`` samples.
        owner: ``(m,)`` the sample of each caption, in the samples' order.
        image_to_text: ``(n, depth)`` rows of captions, best first.
        text_to_image: ``(m, depth)`` rows of samples, best first.

    Raises:
        UserError: it cannot be written, or an id occurs twice.
    """
    images = [_as_published(sample.id) for sample in samples]
    captions = [_as_published(name) for name in row_ids(samples, owner, text=True)]
    for names, what in ((images, "pictures"), (captions, "captions")):
        if len(set(names)) < len(names):
            twice = next(name for name, count in Counter(names).items() if count > 1)
            raise UserError(
                f"--export needs an id for each of the {what}; several of them have the id {twice}"
            )

    def lines() -> Iterator[str]:
        yield '{"i2t": {\n'
        yield from _lines(images, captions, image_to_text)
        yield '}, "t2i": {\n'
        yield from _lines(captions, images, text_to_image)
        yield "}}\n"

    write_file(path, lines())


def _lines(queries: Sequence[int | str], candidates: Sequence[int | str], found: Integers) -> Iterator[str]:
    for position, (query, row) in enumerate(zip(queries, found.tolist(), strict=True)):
        ids = json.dumps([candidates[place] for place in row], ensure_ascii=False)
        yield f"{',' if position else ''}{json.dumps(str(query), ensure_ascii=False)}: {ids}\n"


def _as_published(name: str) -> int | str:
    return int(name) if name.isascii() and name.isdecimal() and str(int(name)) == name else name
