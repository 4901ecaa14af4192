"""Names that a data set's own lists give, before anything is made or looked for by them."""

from __future__ import annotations

from mmvicreg.errors import UserError


def check_split(split: str, where: str) -> str:
    """A split's name as it is; results are files and folders called after it, and ``a+b`` and ``all`` are unions.

    Raises:
        UserError: it makes a union, or would lead out of the run folder; the message begins with ``where``.
    """
    if "+" in split or split == "all":
        raise UserError(f"{where}: a split cannot be called '{split}'; '+' and 'all' make unions")
    if split.startswith(".") or {"/", "\\"} & {*split} or not split.isprintable():
        raise UserError(
            f"{where}: a split cannot be called {split!r}; results are files of its name, so that it must not begin "
            "with a dot or hold slashes, backslashes or control characters: rename it"
        )
    return split
