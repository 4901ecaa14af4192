"""The one exception that means "the user can mend this"."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in what the user gave: a file, a key, a name, a number.

    The message names the thing and the way out, and stands on its own: the command line prints it
    without a traceback and exits with status 2. Anything that is not a ``UserError`` is a bug.
    """
