"""Writing what a command was asked to write: checked before the work, whole or not at all, in JSON that anybody reads.

``-`` is standard output. A path that is a pipe, a device or a link to one is written through; a link to a file keeps
being a link.
"""

import json
import math
import os
import stat
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wattray.errors import WattrayError

STDOUT = Path("-")


def check_outputs(**paths: Path | None) -> None:
    """Raises WattrayError, naming the option, for a path that could not be written when the work is done."""
    for option, path in paths.items():
        if path is not None and path != STDOUT:
            _check_file(path, "--" + option.replace("_", "-"))


def check_folder(path: Path, option: str) -> None:
    """Make the folder where it is missing. Raises WattrayError where it cannot be written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise WattrayError(f"{option} {path}: {error.strerror or error}") from None


def write_text(path: Path, text: str) -> None:
    """A reader sees the old file or the whole new one. Raises WattrayError where that fails; nothing is left behind."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """As ``write_text``."""
    try:
        if path == STDOUT:
            sys.stdout.flush()
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
            return
        target = path.resolve() if path.is_symlink() else path
        if target.exists() and not target.is_file():
            with target.open("wb") as stream:
                stream.write(content)
            return
        _replace(target, content)
    except OSError as error:
        raise WattrayError(f"{path}: {error.strerror or error}; the file is as it was") from None


def json_text(content: Any) -> str:
    """JSON of plain values; what is not a finite number becomes null, which every JSON reader takes."""
    return json.dumps(_finite(content), indent=2, allow_nan=False, default=str) + "\n"


def _replace(target: Path, content: bytes) -> None:
    descriptor, draft = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:50]}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        Path(draft).chmod(stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~mask)
        Path(draft).replace(target)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def _check_file(path: Path, option: str) -> None:
    try:
        target = path.resolve() if path.is_symlink() else path
        if target.is_dir():
            raise WattrayError(f"{option} {path}: this is a folder, expected a file to write")
        if target.exists() and not target.is_file():
            return
        if not target.parent.is_dir():
            raise WattrayError(f"{option} {path}: there is no folder {target.parent}")
        if target.exists() and not os.access(target, os.W_OK):
            raise WattrayError(f"{option} {path}: the file may not be written")
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise WattrayError(f"{option} {path}: {error.strerror or error}") from None


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {str(name): _finite(value) for name, value in content.items()}
    if isinstance(content, str) or not isinstance(content, Iterable):
        return content
    return [_finite(value) for value in content]
