"""Typed calls to the control actors: ``wattray.connect()``."""

import ray

from actors import runtime
from actors.messages import ControlPlaneStatus, Decision
from actors.training_messages import JobFrontier
from control_plane.settings import Settings
from wattray import lifecycle, ray_head
from wattray.errors import WattrayError

TIMEOUT_S = 15.0


class Client:
    """Talks to a control plane that is up. Every call has a deadline and raises WattrayError where it is missed."""

    def __init__(self, running: ray_head.Running) -> None:
        self.running = running

    def status(self) -> ControlPlaneStatus:
        """Pools, replicas, clocks, power and energy now."""
        answer: ControlPlaneStatus = self._call("status")
        return answer

    def explain(self, last: int = 50) -> tuple[Decision, ...]:
        """The last decisions and why they were taken, oldest first."""
        answer: tuple[Decision, ...] = self._call("explain", last)
        return answer

    def settings(self) -> Settings:
        answer: Settings = self._call("settings")
        return answer

    def frontier(self, job: str) -> JobFrontier:
        """A training job's time–energy frontier, as the planner traced it. Raises WattrayError for an unknown job."""
        answer: JobFrontier = self._call("frontier", job, of=runtime.PERSEUS_PLANNER)
        return answer

    def shut_down(self) -> None:
        """Reset every clock and end the control plane; the head too where wattray started it."""
        lifecycle.down(self.running, lambda _: None)

    def _call(self, method: str, *args: object, of: str = runtime.CLUSTER_MANAGER) -> object:
        try:
            return ray.get(getattr(runtime.actor(of), method).remote(*args), timeout=TIMEOUT_S)
        except ray.exceptions.RayTaskError as error:
            raise WattrayError(f"{of} refused {method}: {error.cause}") from None
        except ValueError:
            raise WattrayError("no wattray control plane runs on this Ray; start one with `wattray up`") from None
        except ray.exceptions.RayError as error:
            raise WattrayError(f"{of} did not answer {method}: {error}") from None


def connect(address: str | None = None) -> Client:
    """Connect to the control plane that is up here, or to the one on the Ray at ``address``.

    Raises WattrayError where none is up.
    """
    running = ray_head.load()
    if running is None and address is None:
        address = lifecycle.running_ray()
        if address is None:
            raise WattrayError("nothing is up here: start it with `wattray up`, or name a Ray address")
    try:
        lifecycle.connect_ray(address or running.address)  # type: ignore[union-attr]
    except ConnectionError as error:
        raise WattrayError(f"no Ray answers at {address}: {error}") from None
    if running is None:
        running = ray_head.Running(ray.get_runtime_context().gcs_address, "", None, "", "", None)
    return Client(running)
