"""One error style for every command: one line on stderr, exit code 2; never a traceback for what a user can mend."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from control_plane.text_edges import printable


@contextmanager
def faults_explained() -> Iterator[None]:
    """Turns the errors that name a user's file, option or setting into that line. ValueError and OSError are what
    readers, settings and planners raise; a bug raises something else, or is shown by its type."""
    from wattray.errors import WattrayError

    try:
        yield
    except BrokenPipeError:
        raise
    except (WattrayError, ValueError, OSError) as error:
        fail(error)


def fail(error: Exception) -> None:
    """Print the fault and end the command."""
    lines = [line for line in printable(_told(error)).splitlines() if line.strip()] or [type(error).__name__]
    more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
    print(f"error: {lines[0].strip()}{more}", file=sys.stderr)
    raise typer.Exit(2)


def _told(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
