"""Where the processes of a run find the gpud of their node: a small file that the node's agent writes."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """``uuids`` are in the order of Ray's indices. ``own_state``: the state folder of a gpud that the agent started and
    that ends with the run; None where gpud is the node's."""

    driver: str
    socket: str
    uuids: tuple[str, ...]
    own_state: str | None = None

    @classmethod
    def read(cls, folder: Path, node_id: str) -> Self | None:
        """None where no agent has written one: the node's GPUs are not behind gpud."""
        try:
            content = json.loads(record_file(folder, node_id).read_text())
        except FileNotFoundError:
            return None
        return cls(content["driver"], content["socket"], tuple(content["uuids"]), content["own_state"])

    def write(self, folder: Path, node_id: str) -> None:
        draft = record_file(folder, node_id).with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(asdict(self)))
        draft.replace(record_file(folder, node_id))


def record_file(folder: Path, node_id: str) -> Path:
    return folder / f"gpud-{node_id}.json"
