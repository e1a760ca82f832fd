"""Typed calls to the control actors: ``wattray.connect()``."""

from typing import cast

import ray

from actors import runtime
from actors.messages import ControlPlaneStatus, Decision, TenantUsage
from actors.ray_address import running_ray
from actors.training_messages import JobFrontier
from control_plane.settings import Settings
from control_plane.training.job_spec import PipelineId
from wattray import ray_auth, running
from wattray.errors import WattrayError
from wattray.ray_session import connect_ray
from wattray.running import Running
from wattray.take_down import take_down

TIMEOUT_S = 15.0


class Client:
    """Talks to a control plane that is up. Every call has a deadline and raises WattrayError where it is missed."""

    def __init__(self, running: Running) -> None:
        self.running = running

    def status(self) -> ControlPlaneStatus:
        """Pools, replicas, clocks, power and energy now."""
        return cast(ControlPlaneStatus, self._call("status"))

    def explain(self, last: int = 50) -> tuple[Decision, ...]:
        """The last decisions and why they were taken, oldest first."""
        return cast(tuple[Decision, ...], self._call("explain", last))

    def usage(self) -> dict[str, TenantUsage]:
        """Requests, tokens and energy by tenant since the control plane came up."""
        return cast(dict[str, TenantUsage], self._call("usage"))

    def settings(self) -> Settings:
        return cast(Settings, self._call("settings"))

    def frontier(self, job: str) -> JobFrontier:
        """A training job's time–energy frontier, as the planner traced it. Raises WattrayError for an unknown job."""
        return cast(JobFrontier, self._call("frontier", job, of=runtime.PERSEUS_PLANNER))

    def announce_straggler(self, job: str, pipeline: int, slowdown: float, lasts_s: float | None = None) -> None:
        """A training job's data-parallel pipeline takes ``slowdown`` times its healthy iteration time from now on, for
        ``lasts_s`` or until it is announced with 1. Raises WattrayError for an unknown job and a slowdown below 1."""
        named = PipelineId(f"pipeline-{pipeline}")
        self._call("report_straggler", job, named, slowdown, 0.0, lasts_s, of=runtime.PERSEUS_PLANNER)

    def shut_down(self) -> None:
        """Reset every clock and end the control plane; the head too where wattray started it."""
        take_down(self.running, lambda _: None)

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
    """Connect to the control plane that is up here, or to the one on the Ray at ``address`` (host:port).

    Raises WattrayError where none is up.
    """
    ray_auth.use_token_if_there_is_one()
    recorded = running.load()
    if recorded is not None and not running.is_up(recorded):
        recorded = None
    if recorded is not None and address is not None and address != recorded.address:
        recorded = None
    if address is None and recorded is None:
        address = running_ray()
        if address is None:
            raise WattrayError("nothing is up here: start it with `wattray up`, or name a Ray address")
    try:
        dashboard_url = connect_ray(address or (recorded.address if recorded else ""))
    except ConnectionError as error:
        raise WattrayError(f"no Ray answers at {address}: {error}") from None
    if recorded is None:
        # Nothing here is provably ours: a shutdown ends the control plane through Ray and touches no file or process.
        recorded = Running(address=ray.get_runtime_context().gcs_address, dashboard_url=dashboard_url)
    return Client(recorded)
