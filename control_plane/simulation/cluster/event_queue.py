"""What happens to a cluster beside iterations and arrivals, in order of time and, at one moment, of kind and number."""

from enum import IntEnum
from heapq import heappop, heappush

_NUMBER_BITS, _KEY_BITS = 40, 43
_KEY, _NUMBER = (1 << _KEY_BITS) - 1, (1 << _NUMBER_BITS) - 1


class Event(IntEnum):
    """In this order at one moment. KV caches arrive after ``READY`` and before all others; requests come last."""

    READY = 1
    FAILURE = 2
    REPAIR = 3
    CONTROL = 4
    GOVERN = 5
    SAMPLE = 6


class EventQueue:
    """An event is one integer, its moment above its kind and number: cheaper to compare than a tuple."""

    def __init__(self) -> None:
        self._events: list[int] = []

    def push(self, at_ps: int, kind: Event, number: int = 0) -> None:
        heappush(self._events, at_ps << _KEY_BITS | kind << _NUMBER_BITS | number)

    def first(self) -> tuple[int, Event, int]:
        """(moment in ps, kind, number) of the next event. There must be one."""
        event = self._events[0]
        key = event & _KEY
        return event >> _KEY_BITS, Event(key >> _NUMBER_BITS), key & _NUMBER

    def pop(self) -> None:
        heappop(self._events)
