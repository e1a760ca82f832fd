"""The control actors as the router and the replicas reach them: handles looked up beside the event loop and kept.

Ray looks an actor up with a blocking call to its GCS. When that is slow, only the reports to that actor wait.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray

from actors.peers import PeerAwayError

DEADLINE_S = 2.0
LOOKUP_THREADS = 4

_threads = ThreadPoolExecutor(LOOKUP_THREADS, "actor-lookup")


class ControlActors:
    """Calls control actors by name."""

    def __init__(self, look_up: Callable[[str], Any], deadline_s: float = DEADLINE_S) -> None:
        """``look_up`` returns the handle of a named actor and may block; it raises ValueError where there is none."""
        self._look_up, self._deadline_s = look_up, deadline_s
        self._handles: dict[str, Any] = {}
        self._lookups: dict[str, asyncio.Future[Any]] = {}

    async def call(self, name: str, method: str, *args: Any) -> Any:
        """The method's answer. Raises PeerAwayError where none comes within the deadline; ``delivered`` of the error
        says whether the call may have been taken all the same."""
        sent = False
        try:
            async with asyncio.timeout(self._deadline_s):
                handle = self._handles.get(name) or await self._handle(name)
                sent = True
                return await getattr(handle, method).remote(*args)
        except (ValueError, ray.exceptions.RayError, TimeoutError) as error:
            if isinstance(error, ray.exceptions.RayActorError):
                self._handles.pop(name, None)
                sent = False
            raise CallFailedError(f"{name} does not answer {method}: {error!r}", sent) from error

    async def _handle(self, name: str) -> Any:
        """One lookup by name at a time: a GCS that does not answer holds one thread for it, not one a second."""
        lookup = self._lookups.get(name)
        if lookup is None:
            lookup = asyncio.get_running_loop().run_in_executor(_threads, self._look_up, name)
            self._lookups[name] = lookup
            lookup.add_done_callback(lambda done: self._found(name, done))
        return await asyncio.shield(lookup)

    def _found(self, name: str, lookup: asyncio.Future[Any]) -> None:
        del self._lookups[name]
        if not lookup.cancelled() and lookup.exception() is None:
            self._handles[name] = lookup.result()


class CallFailedError(PeerAwayError):
    """``delivered``: the call was sent, and the actor may yet act on it."""

    def __init__(self, message: str, delivered: bool) -> None:
        super().__init__(message)
        self.delivered = delivered
