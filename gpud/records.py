"""What gpud has set and not yet undone, on disk: one small file per GPU, written and synced before the first set.

Whatever ends the process, the next one finds what must be undone, and only that.
"""

import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

log = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Record:
    """``power_before_w``: the limit that was in force before ours, to go back to; None: we have set none."""

    uuid: str
    owner: str
    boot_id: str
    clock: bool
    power_before_w: float | None
    lowest_mhz: int | None = None
    highest_mhz: int | None = None


def boot_id() -> str:
    """Of the kernel that runs: clocks do not outlive it."""
    return BOOT_ID.read_text().strip()


class Records:
    """In ``folder``, which belongs to one gpud (it holds a lock on it)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def left_behind(self) -> dict[str, Record]:
        """By UUID. A file that cannot be read was still ours: everything is reset that may have been set."""
        found = {}
        for path in sorted(self._folder.glob("*.json")):
            uuid = path.name.removesuffix(".json")
            try:
                found[uuid] = Record(**json.loads(path.read_text()))
            except (OSError, ValueError, TypeError) as error:
                log.warning("%s cannot be read (%s): the clock of %s is reset", path, error, uuid)
                found[uuid] = Record(uuid, "unknown", boot_id(), True, None)
        return found

    def write(self, record: Record) -> None:
        """Whole or not at all, and on disk when it returns. Raises OSError."""
        draft = self._folder / f".{record.uuid}.draft"
        with draft.open("w") as file:
            json.dump(asdict(record), file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._file(record.uuid))
        self._sync_folder()

    def remove(self, uuid: str) -> None:
        """What it told of is undone. Raises OSError."""
        self._file(uuid).unlink(missing_ok=True)
        self._sync_folder()

    def _file(self, uuid: str) -> Path:
        return self._folder / f"{uuid.replace('/', '_')}.json"

    def _sync_folder(self) -> None:
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
