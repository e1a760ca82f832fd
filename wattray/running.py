"""What is up, as the next command finds it: a private file per user and temp folder, and a copy in the run folder."""

import os
import tempfile
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wattray import run_folder
from wattray.errors import WattrayError
from wattray.private_files import private_folder, read_private, write_private
from wattray.process_identity import ProcessIdentity

_COPY = "up.json"


class Running(BaseModel):
    """A control plane that is up or on its way."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str = Field(pattern=r"^[^\s/]+:\d+$")
    """Of its Ray, host:port."""
    dashboard_url: str
    metrics_port: int | None = None
    run_dir: str | None = None
    """Name of the run folder here; None for a control plane that was started elsewhere."""
    router_url: str = ""
    status_url: str = ""
    """Of the status page; empty where there is none."""
    head: ProcessIdentity | None = None
    """None where wattray attached to a Ray that was running already."""
    apps: tuple[str, ...] = ()
    """The Ray Serve applications that are ours; none of these names was in use before."""
    serve_ran: bool = False
    """Whether this Ray ran Serve before: then it goes on, empty or not."""

    @property
    def folder(self) -> Path | None:
        """The run folder; raises WattrayError where it is not provably ours."""
        return None if self.run_dir is None else run_folder.path(self.run_dir)


def state_file() -> Path:
    return Path(tempfile.gettempdir()) / f"wattray-{os.geteuid()}" / "up.json"


def save(running: Running) -> None:
    """Record what is up. Raises WattrayError where the place is not ours alone."""
    path = state_file()
    private_folder(path.parent)
    text = running.model_dump_json(indent=1)
    write_private(path, text)
    if running.folder is not None:
        write_private(running.folder / _COPY, text)


def load() -> Running | None:
    """What is recorded as up, or None. A record that is lost or damaged is found again in the run folders of this user.

    Raises WattrayError where the state file is not ours alone, and where several run folders are found.
    """
    path = state_file()
    try:
        private_folder(path.parent)
        return Running.model_validate_json(read_private(path))
    except FileNotFoundError:
        recorded = _in_run_folders()
    except (ValidationError, UnicodeDecodeError) as error:
        recorded = _in_run_folders()
        if not recorded:
            raise WattrayError(f"{path} is damaged ({_first(error)}) and no run folder is left: remove it") from None
    alive = [running for running in recorded if running.head is None or running.head.process() is not None]
    if len(alive) > 1:
        names = ", ".join(str(running.run_dir) for running in alive)
        raise WattrayError(f"{path} is lost and several runs are left ({names}): name one Ray with --address")
    return alive[0] if alive else None


def is_up(running: Running) -> bool:
    """Whether its head still runs; of a Ray that is not ours only Ray can tell."""
    return running.head is None or running.head.process() is not None


def forget() -> None:
    state_file().unlink(missing_ok=True)


def _in_run_folders() -> list[Running]:
    recorded = []
    for name in run_folder.found():
        try:
            recorded.append(Running.model_validate_json(read_private(run_folder.path(name) / _COPY)))
        except (OSError, ValueError, WattrayError):
            continue
    return recorded


def _first(error: Exception) -> str:
    return error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
