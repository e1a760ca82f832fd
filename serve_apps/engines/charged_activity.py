"""What a real engine says of its work to GPUs that have no silicon, so that a node of simulated GPUs draws power."""

import os
from collections.abc import Sequence
from typing import Protocol

from actors.gpu.drivers import ChargeableNode
from control_plane.hardware.gpu_model import IDLE
from control_plane.hardware.replica_model import IterationTimes


class ActivityCharge(Protocol):
    """Where an engine tells how much it computes."""

    def open(self) -> None:
        """The engine's process is on the GPUs from now on."""
        ...

    def iterate(self, tokens: int) -> None:
        """Iterations carry this many tokens from now on; 0 while nothing is computed."""
        ...

    def close(self) -> None: ...


class RealGpus:
    """GPUs that measure their own power: nothing is charged."""

    def open(self) -> None:
        return

    def iterate(self, tokens: int) -> None:
        del tokens

    def close(self) -> None:
        return


class ChargedGpus:
    """The GPUs ``indices`` of a node work as the profile says for iterations of so many tokens, at their clocks."""

    def __init__(self, node: ChargeableNode, indices: Sequence[int], times: IterationTimes, batch_tokens: int) -> None:
        self._node, self._indices, self._times = node, tuple(indices), times
        self._batch_tokens = batch_tokens
        self._now = IDLE

    def open(self) -> None:
        for index in self._indices:
            self._node.open_context(index, os.getpid())

    def iterate(self, tokens: int) -> None:
        activity = self._times.activity(min(tokens, self._batch_tokens)) if tokens else IDLE
        if activity != self._now:
            self._now = activity
            self._node.set_activity(self._indices, activity)

    def close(self) -> None:
        for index in self._indices:
            self._node.close_context(index, os.getpid())
