"""Files and folders in a temp folder that others may write to: what is read there must be ours, and only ours."""

import os
import stat
import tempfile
from pathlib import Path

from wattray.errors import WattrayError


def check_private(path: Path, *, folder: bool) -> None:
    """Raises WattrayError unless this is a real file or folder (no link) that belongs to this user and that nobody
    else may touch. Raises FileNotFoundError where there is none."""
    found = os.lstat(path)
    kind = "folder" if folder else "file"
    if not (stat.S_ISDIR(found.st_mode) if folder else stat.S_ISREG(found.st_mode)):
        raise WattrayError(f"{path} is no plain {kind}: not trusted; remove it if it is yours")
    if found.st_uid != os.geteuid():
        raise WattrayError(f"{path} belongs to user {found.st_uid}, not to you ({os.geteuid()}): not trusted")
    if found.st_mode & 0o077:
        mode = stat.filemode(found.st_mode)
        raise WattrayError(f"{path} is open to other users ({mode}): not trusted; `chmod go= {path}` if it is yours")


def private_folder(path: Path) -> Path:
    """The folder, made with mode 0700 where it is missing. Raises WattrayError where it is not ours alone."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private(path, folder=True)
    return path


def write_private(path: Path, text: str) -> None:
    """Write the file with mode 0600, whole or not at all."""
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def read_private(path: Path) -> str:
    """The text of a file that is ours alone. Raises WattrayError where it is not, FileNotFoundError where none is."""
    check_private(path, folder=False)
    return path.read_text()
