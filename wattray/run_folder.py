"""The folder of one run of the control plane: made and marked by `up`, and the only thing that is removed whole."""

import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from wattray.errors import WattrayError
from wattray.private_files import check_private, read_private, write_private

MARKER = ".wattray-run"
"""A file inside the folder that holds the folder's own name."""

_NAME = re.compile(r"wattray-run-[0-9a-f]{16}\Z")


def make() -> str:
    """Make and mark a new run folder in the temp folder; returns its name."""
    name = f"wattray-run-{secrets.token_hex(8)}"
    folder = Path(tempfile.gettempdir()) / name
    folder.mkdir(mode=0o700)
    write_private(folder / MARKER, name)
    return name


def path(name: str) -> Path:
    """The run folder of this name. Raises WattrayError unless `make` made it for this user."""
    if not _NAME.match(name):
        raise WattrayError(f"{name!r} is no name of a run folder")
    folder = Path(tempfile.gettempdir()) / name
    check_private(folder, folder=True)
    if read_private(folder / MARKER) != name:
        raise WattrayError(f"{folder} is not marked as a run folder of wattray: it is left alone")
    return folder


def remove(name: str) -> None:
    """Remove the run folder with all it holds; one that is gone already is no fault. Raises WattrayError for anything
    that is not provably a run folder of this user."""
    try:
        folder = path(name)
    except FileNotFoundError:
        return
    shutil.rmtree(folder, ignore_errors=True)


def found() -> Iterator[str]:
    """The names of this user's run folders in the temp folder, whatever became of their runs."""
    for folder in sorted(Path(tempfile.gettempdir()).glob("wattray-run-*")):
        try:
            yield path(folder.name).name
        except (WattrayError, OSError):
            continue
