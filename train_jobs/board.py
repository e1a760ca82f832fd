"""Word that the ranks of a job leave for each other, through the store their process group met at.

No collective and no waiting: whoever looks finds what is there. The store's connection is this object's own, so that
the training thread never waits for it.
"""

import pickle
from typing import Any, Protocol


class Store(Protocol):
    """What is used of ``torch.distributed``'s store."""

    def check(self, keys: list[str]) -> bool: ...
    def get(self, key: str) -> bytes: ...
    def set(self, key: str, value: Any) -> None: ...


class Board:
    """One job's. What is put there replaces what stood there; ranks of one job trust each other as torch does."""

    def __init__(self, store: Store, job: str) -> None:
        self._store, self._prefix = store, f"wattray/{job}/"

    def put(self, name: str, value: object) -> None:
        self._store.set(self._prefix + name, pickle.dumps(value))

    def look(self, name: str) -> Any:
        """What was put there last, None where nothing was."""
        key = self._prefix + name
        return pickle.loads(self._store.get(key)) if self._store.check([key]) else None


def board_of(job: str) -> Board:
    """On the store of the process group that this process is in."""
    from torch.distributed.distributed_c10d import _get_default_store

    store: Any = _get_default_store()
    return Board(store.clone(), job)
