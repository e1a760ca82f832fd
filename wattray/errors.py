"""Errors a person can act on: the CLI prints their message and exits 2."""


class WattrayError(RuntimeError):
    """Something the user can mend; the message names the field, the value and the fix."""
