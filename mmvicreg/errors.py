"""The one exception that means "the user can mend this"."""

from __future__ import annotations

import errno

CLOSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG})
"""What the system says of paths that it would not even look at for this user."""


class UserError(Exception):
    """A mistake in what the user gave: a file, a key, a name, a number.

    The message names the thing and the way out, and stands on its own: the command line prints it
    without a traceback and exits with status 2. Anything that is not a ``UserError`` is a bug.
    """


def for_want_of_memory(error: BaseException) -> UserError | None:
    """What to tell the user where torch or numpy could not have the memory they asked for; None for other errors.

    torch's error on a GPU is a ``RuntimeError`` of its own, on a CPU a plain one, told by its words alone (so
    that nothing here imports torch).
    """
    said = str(error).strip().partition("\n")[0]
    words = ("out of memory", "can't allocate memory", "not enough memory")
    short = isinstance(error, RuntimeError) and any(word in said for word in words)
    if not (short or isinstance(error, MemoryError)):
        return None
    return UserError(
        f"there is not enough memory ({said or type(error).__name__}); take a smaller batch, shape or width, or train "
        "the same batch in parts with --micro-batch"
    )


def for_want_of_access(error: OSError) -> UserError | None:
    """What to tell the user where the system refuses a path of theirs; None for other errors.

    Asking whether a path is there already raises where a folder on the way may not be entered.
    """
    if error.errno not in CLOSED or error.filename is None:
        return None
    return UserError(
        f"{error.filename}: {error.strerror}; name another place, or have access to it given to you"
    )
