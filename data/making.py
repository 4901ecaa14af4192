"""Writing a made data set so that it is there whole or not at all.

It is written into a hidden folder beside its place and renamed at the end, so a reader never sees a part
of it. A maker holds a lock on the folder that holds both: a second maker waits for it, so what a hidden folder
that is there then holds was left by one that was killed, and is swept up.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from mmvicreg.errors import UserError
from mmvicreg.locking import locked


def make_folder(
    root: Path, write: Callable[[Path], None], *, name: str, marker: str, facts: Mapping[str, object]
) -> bool:
    """Have ``write`` fill a folder that then becomes ``root``.

    Args:
        root: where the data set goes; absent, or an empty folder, or the same data set made before.
        write: fills the folder it is given.
        name: the data set, for messages.
        marker: the file, written last, that says what was made.
        facts: what the marker holds (seed, version, sizes); a root with other facts is another data set.

    Returns:
        Whether anything was made: False where the same data set was there already.

    Raises:
        UserError: something else is at ``root``, or nothing can be written beside it.
    """
    root = root.expanduser().resolve()
    try:
        if _made_before(root, name=name, marker=marker, facts=facts):
            return False
        root.parent.mkdir(parents=True, exist_ok=True)
        with locked(root.parent):
            if _made_before(root, name=name, marker=marker, facts=facts):
                return False
            for left in root.parent.glob(f"{_prefix(root)}*"):
                shutil.rmtree(left, ignore_errors=True)
            folder = Path(tempfile.mkdtemp(prefix=_prefix(root), dir=root.parent))
            try:
                folder.chmod(0o755)  # mkdtemp's folders are the owner's alone
                write(folder)
                (folder / marker).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
                return _publish(folder, root, name=name, marker=marker, facts=facts)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"cannot make {name} at {root}: {error.strerror or error}. Choose another place with --data-root, "
            "or by the variable MMVICREG_DATA."
        ) from error


def _publish(folder: Path, root: Path, *, name: str, marker: str, facts: Mapping[str, object]) -> bool:
    try:
        folder.rename(root)
    except OSError:
        # Only where the system has no such locks can another maker have been first.
        if not _made_before(root, name=name, marker=marker, facts=facts):
            raise
        return False
    return True


def _made_before(root: Path, *, name: str, marker: str, facts: Mapping[str, object]) -> bool:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        told = json.loads((root / marker).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(
            f"{root} holds something that is not {name}; nothing was overwritten. "
            "Give an empty or new folder with --data-root."
        ) from None
    if told != dict(facts):
        raise UserError(
            f"{root} holds another make of {name} ({told}; wanted {dict(facts)}); nothing was overwritten. "
            "Remove it, or give another folder with --data-root."
        )
    return True


def _prefix(root: Path) -> str:
    return f".{root.name}.making-"
