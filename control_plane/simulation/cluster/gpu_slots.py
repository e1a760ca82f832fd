"""Which GPUs of which nodes a replica sits on, so that a node's failure takes the right replicas with it."""

from collections.abc import Sequence

GPUS_PER_NODE = 8


class GpuSlots:
    """Free GPUs by node; ``gpus=None`` adds nodes as they are wanted."""

    def __init__(self, gpus: int | None) -> None:
        self._unlimited = gpus is None
        count = 0 if gpus is None else gpus
        self._free = [min(GPUS_PER_NODE, count - first) for first in range(0, count, GPUS_PER_NODE)]
        self._loaded = [0] * len(self._free)
        self._down: set[int] = set()
        self.held = 0

    def take(self, count: int) -> tuple[int, ...] | None:
        """The node of each of ``count`` GPUs: one node where one has room, the fullest such; None where fewer are
        free."""
        whole = [node for node, free in enumerate(self._free) if free >= count and node not in self._down]
        if not whole and self._unlimited:
            whole = [len(self._free)]
            self._free.append(GPUS_PER_NODE)
            self._loaded.append(0)
        if whole:
            chosen = [min(whole, key=lambda node: self._free[node])] * count
        else:
            chosen = [node for node, free in enumerate(self._free) if node not in self._down for _ in range(free)]
            chosen = chosen[:count]
        if len(chosen) < count:
            return None
        for node in chosen:
            self._free[node] -= 1
        self.held += count
        return tuple(chosen)

    def loaded(self, nodes: Sequence[int]) -> None:
        """A replica on these GPUs has loaded the model."""
        for node in nodes:
            self._loaded[node] += 1

    def give_back(self, nodes: Sequence[int], was_loaded: bool) -> None:
        for node in nodes:
            self._free[node] += 1
            self._loaded[node] -= was_loaded
        self.held -= len(nodes)

    def hold_weights(self, nodes: Sequence[int]) -> bool:
        """Whether replicas that have loaded the model run on all these nodes: the weights are in host memory there. A
        replica that only starts has none to share yet."""
        return all(self._loaded[node] > 0 for node in nodes)

    def fail(self, node: int) -> None:
        self._down.add(node)

    def repair(self, node: int) -> None:
        self._down.discard(node)
