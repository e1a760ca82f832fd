"""The composition root: names, placement, clocks and ``ray.remote`` for every control actor. Nothing else wraps."""

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup, get_placement_group, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from actors.cluster_manager import ClusterManager, ClusterPorts
from actors.gpu.drivers import WAIT_FOR_NODE_S, NodeSite, create_node, open_charged, open_guarded
from actors.gpu.headroom import LostHeadroom
from actors.gpu_agent import GpuAgent
from actors.guarded_agent import GuardedGpuAgent
from actors.load_forecaster import LoadForecaster
from actors.messages import Decision, GpuReading, Held, PoolStatus
from actors.names import NAMESPACE as NAMESPACE
from actors.names import pool_manager_name as pool_manager_name
from actors.node_agents import NodeSeen, plan_agents
from actors.peers import PeerAwayError
from actors.planner_actor import PerseusPlannerActor
from actors.pool_manager import PoolManager, PoolRules
from actors.training_messages import TrainingSite, job_of_owner
from actors.usage_book import UsageBook
from control_plane.domain import Load, PoolName, Role
from control_plane.hardware.live_correction import LiveCorrection
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.hardware.profiles import load_profile
from control_plane.leases import Hold
from control_plane.ports import GpuNode
from control_plane.serving.advice import AdviceLog
from control_plane.serving.hosting import ClusterHost, PoolHost
from control_plane.serving.load_forecast import Forecast
from control_plane.serving.policies.registry import make_policy
from control_plane.serving.policy import Policy, Site
from control_plane.settings import Settings

log = logging.getLogger(__name__)

CLUSTER_MANAGER = "cluster_manager"
LOAD_FORECASTER = "load_forecaster"
PERSEUS_PLANNER = "perseus_planner"
STATUS_PAGE = "status_page"
TRAINING_GPUS = "wattray-training-gpus"
"""The placement group that keeps the training GPUs: Ray gives none of them to anything else."""
RESERVE_S = 30.0
RESTART_SETTLE_S = 3.0
"""A pool manager that restarted listens this long: replicas report every second."""
CALL_TIMEOUT_S = 5.0


def gpu_agent_name(node_id: str) -> str:
    return f"gpu_agent:{node_id}"


@dataclass(frozen=True, slots=True)
class Installation:
    """This installation of wattray, as its control actors need to know it: settings, run folder, dashboard."""

    settings: Settings
    run_dir: str
    dashboard_url: str

    @property
    def profile(self) -> MachineProfile:
        return planning_profile(self.settings)

    def policy(self, first_load: Load | None = None, profile: MachineProfile | None = None) -> Policy:
        """The serving policy of the settings, planning with ``profile`` if one is given. Raises UnknownPolicyError,
        and GpuBudgetError."""
        settings, profile = self.settings, profile or self.profile
        site = Site(settings, profile, settings.serving_gpus, profile.gpu.idle_w, first_load or Load())
        return make_policy(settings.policy, site)

    @property
    def pool_names(self) -> tuple[PoolName, ...]:
        """The policy's pools, each of which has a manager; not every policy has those of the settings."""
        return tuple(pool.pool for pool in self.policy().pools)


Scale = Callable[[Installation, PoolName, int, Role, int], None]
"""(deployment, pool, tp, role, replicas): how many should run; blocks until Ray Serve has taken it. It belongs to the
layer above and is handed in."""


def planning_profile(settings: Settings) -> MachineProfile:
    """The energy profile that plans are made with. Raises ProfileError for an unknown name."""
    return load_profile(settings.profile, settings.planning_slo())


def run_folder(run_dir: str) -> Path:
    """The folder of this run, under the temp folder of the node."""
    return Path(tempfile.gettempdir()) / run_dir


def planner_folder(run_dir: str) -> Path:
    """Where the planner writes its jobs."""
    return run_folder(run_dir) / "planner"


class _Ticking(Protocol):
    tick_s: float

    async def tick(self) -> None: ...


async def _tick_forever(actor: _Ticking) -> None:
    while True:
        try:
            await actor.tick()
        except Exception:
            log.exception("%s: a tick failed; the next one follows", type(actor).__name__)
        await asyncio.sleep(actor.tick_s)


def _start_ticking(actor: Any) -> None:
    actor._ticking = asyncio.get_running_loop().create_task(_tick_forever(actor))


# Actor classes: what they are given is picklable; what they need is built in their own process. Ray runs
# ``async __init__`` in the actor's event loop, also after a restart.


class ClusterManagerActor(ClusterManager):
    async def __init__(self, deployment: Installation) -> None:  # type: ignore[misc]
        policy = deployment.policy()

        async def serving_gpus() -> int:
            there = await asyncio.to_thread(reconcile_agents, deployment)
            return max(0, min(deployment.settings.gpu.count, there) - deployment.settings.training.gpus)

        super().__init__(
            deployment.settings,
            lambda budgets: ClusterHost(policy, budgets),
            tuple(pool.pool for pool in policy.pools),
            ClusterPorts(_forecast_with_past, _set_budget, _pool_status, _pool_decisions, _gpu_readings, serving_gpus),
            time.monotonic,
            time.time,
            UsageBook(_usage_file(deployment.run_dir), time.monotonic),
        )
        _start_ticking(self)


def _usage_file(run_dir: str) -> Path:
    folder = run_folder(run_dir)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder / "usage.json"


class PoolManagerActor(PoolManager):
    async def __init__(  # type: ignore[misc]
        self, deployment: Installation, pool: PoolName, gpu_budget: int, scale: Scale
    ) -> None:
        settings = deployment.settings
        restarted = ray.get_runtime_context().was_current_actor_reconstructed

        async def set_count(pool: PoolName, tp: int, role: Role, replicas: int) -> None:
            await asyncio.to_thread(scale, deployment, pool, tp, role, replicas)

        rules = PoolRules(
            deployment.profile.max_freq_mhz,
            settings.gpu.lease_ttl_s,
            settings.cadence.frequency_s,
            settings.gpu.control,
            None if restarted else gpu_budget,
            RESTART_SETTLE_S if restarted else 0.0,
        )
        profile = deployment.profile
        super().__init__(
            pool,
            PoolHost(deployment.policy(profile=profile), pool),
            rules,
            _forecast,
            _hold_clocks,
            set_count,
            time.monotonic,
            time.time,
            LiveCorrection(profile) if settings.profile_correction else None,
            AdviceLog(profile) if settings.gpu.control == "recommend" else None,
        )
        _start_ticking(self)


class LoadForecasterActor(LoadForecaster):
    async def __init__(self, deployment: Installation, first_load: Load) -> None:  # type: ignore[misc]
        super().__init__(deployment.policy().needs, deployment.settings.forecast, first_load, time.monotonic)


class GpuAgentActor(GpuAgent):
    async def __init__(self, deployment: Installation, node_id: str, gpus: int) -> None:  # type: ignore[misc]
        settings = deployment.settings

        def open_node() -> GpuNode:
            folder = run_folder(deployment.run_dir)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return create_node(settings.gpu.driver, folder, node_id, gpus, deployment.profile.gpu)

        super().__init__(node_id, open_node, settings.gpu.control, time.monotonic)
        _start_ticking(self)

    async def pid(self) -> int:
        return os.getpid()


class GuardedGpuAgentActor(GuardedGpuAgent):
    async def __init__(self, deployment: Installation, node_id: str, gpus: int) -> None:  # type: ignore[misc]
        gpu, folder = deployment.settings.gpu, run_folder(deployment.run_dir)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        site = NodeSite(gpu.driver, folder, node_id, gpus, deployment.profile.gpu)
        socket = None if gpu.gpud_socket is None else Path(gpu.gpud_socket)
        found = await asyncio.to_thread(
            open_guarded, site, max(60.0, gpu.lease_ttl_s), gpu.control == "recommend", socket
        )
        tell = _tell_of_headroom(deployment.pool_names)
        super().__init__(node_id, found.client, found.keeper, gpu.control, tell, time.monotonic, found.shadow)
        _start_ticking(self)

    async def pid(self) -> int:
        return os.getpid()


def start_control_plane(deployment: Installation, first_load: Load, scale: Scale) -> None:
    """Start every control actor, detached and restarted for ever; ``first_load`` is what to be ready for at once."""
    budgets = first_budgets(deployment.policy(first_load), deployment.settings.serving_gpus, first_load)
    start_training_plane(deployment)
    _start(LoadForecasterActor, LOAD_FORECASTER, deployment, first_load)
    for pool, gpus in budgets.items():
        _start(PoolManagerActor, pool_manager_name(pool), deployment, pool, gpus, scale)
    _start(ClusterManagerActor, CLUSTER_MANAGER, deployment)


def start_training_plane(deployment: Installation) -> None:
    """What training needs and no more: the nodes' agents, and the planner."""
    reconcile_agents(deployment)
    start_planner(deployment, reserve_training_gpus(deployment))


def first_budgets(policy: Policy, gpus: int, first_load: Load) -> Mapping[PoolName, int]:
    """GPUs per pool for the first load; 0 for a pool that gets none."""
    host = ClusterHost(policy)
    host.step(0.0, gpus, Forecast(Load(), first_load))
    return {pool.pool: host.budgets.get(pool.pool, 0) for pool in policy.pools}


def start_planner(deployment: Installation, site: TrainingSite) -> ActorHandle:
    """The planner of training jobs, on this node while it lives: its jobs are written there."""
    return start_here(PerseusPlannerActor, PERSEUS_PLANNER, planner_folder(deployment.run_dir), site)


def start_here(cls: type, name: str, *args: Any) -> ActorHandle:
    """A control actor on this node, while the node lives."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return _start(cls, name, *args, scheduling_strategy=here)


def reserve_training_gpus(deployment: Installation) -> TrainingSite:
    """Keep `training.gpus` GPUs of one node in a placement group of their own; which ones is Ray's choice. Raises
    RuntimeError where no node has so many free."""
    settings = deployment.settings
    if settings.training.gpus == 0:
        return TrainingSite(deployment.run_dir, "", (), settings.gpu.lease_ttl_s, settings.gpu.driver)
    bundle = {"GPU": float(settings.training.gpus)}
    group = placement_group([bundle], "STRICT_PACK", name=TRAINING_GPUS, lifetime="detached")
    if not group.wait(RESERVE_S):
        remove_placement_group(group)
        raise RuntimeError(f"no node has {settings.training.gpus} free GPUs to keep for training")
    node_id, uuids = ray.get(_gpus_of(group, deployment), timeout=RESERVE_S + WAIT_FOR_NODE_S)
    return TrainingSite(deployment.run_dir, node_id, uuids, settings.gpu.lease_ttl_s, settings.gpu.driver)


def free_training_gpus() -> None:
    """Give the kept GPUs back to Ray; where none are kept, nothing happens."""
    try:
        remove_placement_group(get_placement_group(TRAINING_GPUS))
    except ValueError:
        return


def _gpus_of(group: PlacementGroup, deployment: Installation) -> Any:
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    gpus = deployment.settings.training.gpus
    given = ray.remote(_gpus_given).options(num_cpus=0, num_gpus=gpus, scheduling_strategy=strategy)
    return given.remote(deployment.settings.gpu.driver, deployment.run_dir)


def _gpus_given(driver: str, run_dir: str) -> tuple[str, tuple[str, ...]]:
    """This node, and the UUIDs of the GPUs that Ray gave this task."""
    context = ray.get_runtime_context()
    node_id = context.get_node_id()
    node = open_charged(driver, run_folder(run_dir), node_id)
    return node_id, tuple(node.uuid_of(int(index)) for index in context.get_accelerator_ids()["GPU"])


def reconcile_agents(deployment: Installation) -> int:
    """Start the agents that are missing, end those of dead nodes; the GPUs of the nodes that are there now."""
    nodes = [NodeSeen(node["NodeID"], node["Alive"], int(node["Resources"].get("GPU", 0))) for node in ray.nodes()]
    known = {name.removeprefix(gpu_agent_name("")) for name in agent_names()}
    plan = plan_agents(nodes, known)
    for node in plan.start:
        start_gpu_agent(deployment, node.node_id, node.gpus)
    for node_id in plan.gone:
        log.warning("node %s is gone, and its GPU agent with it", node_id)
        _end_agent(node_id)
    return plan.gpus


def _end_agent(node_id: str) -> None:
    try:
        ray.kill(actor(gpu_agent_name(node_id)), no_restart=True)
    except ValueError:
        return


def start_gpu_agent(deployment: Installation, node_id: str, gpus: int) -> ActorHandle:
    """The agent of one node, pinned to it."""
    strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
    cls = GuardedGpuAgentActor if deployment.settings.gpu.gpud else GpuAgentActor
    return _start(cls, gpu_agent_name(node_id), deployment, node_id, gpus, scheduling_strategy=strategy)


def _start(cls: type, name: str, *args: Any, **options: Any) -> ActorHandle:
    # Without a strategy, an actor that a Serve replica starts joins the replica's placement group and ends with it.
    options.setdefault("scheduling_strategy", "DEFAULT")
    return (
        ray.remote(cls)
        .options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            max_restarts=-1,
            max_task_retries=0,
            num_cpus=0,
            get_if_exists=True,
            **options,
        )
        .remote(*args)
    )


def actor(name: str) -> ActorHandle:
    """A control actor by name; ValueError where none runs."""
    return ray.get_actor(name, namespace=NAMESPACE)


def agent_names() -> list[str]:
    names = ray.util.list_named_actors(all_namespaces=True)
    return sorted(
        entry["name"]
        for entry in names
        if entry["namespace"] == NAMESPACE and entry["name"].startswith(gpu_agent_name(""))
    )


def control_actor_names() -> list[str]:
    """Every named actor of this control plane that exists now."""
    names = ray.util.list_named_actors(all_namespaces=True)
    return sorted(entry["name"] for entry in names if entry["namespace"] == NAMESPACE)


# Calls from actor to actor, each with a deadline: a dead peer costs one tick, not the loop.


async def _call(name: str, method: str, *args: Any) -> Any:
    """Ask an actor; raises PeerAwayError. Its handle is looked up in a thread: a slow GCS must not stop the loop."""

    async def ask() -> Any:
        handle = await asyncio.to_thread(actor, name)
        return await getattr(handle, method).remote(*args)

    try:
        return await asyncio.wait_for(ask(), CALL_TIMEOUT_S)
    except (ValueError, ray.exceptions.RayError, TimeoutError) as error:
        raise PeerAwayError(f"{name} does not answer {method}: {error!r}") from error


async def _forecast_with_past() -> Forecast:
    answer: Forecast = await _call(LOAD_FORECASTER, "forecast_with_past")
    return answer


async def _forecast() -> Forecast:
    answer: Forecast = await _call(LOAD_FORECASTER, "forecast")
    return answer


async def _hold_clocks(node_id: str, owner: str, holds: Mapping[str, Hold], ttl_s: float, epoch: int) -> Held:
    answer: Held = await _call(gpu_agent_name(node_id), "hold", owner, dict(holds), ttl_s, epoch)
    return answer


async def _set_budget(pool: PoolName, gpus: int) -> None:
    await _call(pool_manager_name(pool), "set_gpu_budget", gpus)


async def _pool_status(pool: PoolName) -> PoolStatus:
    answer: PoolStatus = await _call(pool_manager_name(pool), "status")
    return answer


async def _pool_decisions(pool: PoolName, last: int) -> tuple[Decision, ...]:
    answer: tuple[Decision, ...] = await _call(pool_manager_name(pool), "decisions", last)
    return answer


def _tell_of_headroom(
    pools: tuple[PoolName, ...],
) -> Callable[[tuple[LostHeadroom, ...], tuple[LostHeadroom, ...]], Awaitable[None]]:
    """Training jobs hear of a GPU that is held down as of a straggler, pool managers as of a lower highest clock."""

    async def tell(lost: tuple[LostHeadroom, ...], back: tuple[LostHeadroom, ...]) -> None:
        for loss in (*lost, *back):
            job = job_of_owner(loss.owner or "")
            if job is not None:
                degree = loss.degree if loss in lost else 1.0
                await _try(_call(PERSEUS_PLANNER, "report_straggler", job, f"held down: {loss.uuid}", degree))
        told = {loss.uuid: loss for loss in lost} | {loss.uuid: None for loss in back}
        await asyncio.gather(*(_try(_call(pool_manager_name(pool), "headroom", told)) for pool in pools))

    return tell


async def _try(call: Awaitable[Any]) -> None:
    """Word that does not arrive is logged: readings show it too."""
    try:
        await call
    except PeerAwayError as error:
        log.warning("%s", error)


async def _gpu_readings() -> tuple[tuple[GpuReading, ...], tuple[str, ...]]:
    """The readings of every agent that answers, and the names of those that do not."""
    names = await asyncio.to_thread(agent_names)
    answers = await asyncio.gather(*(_call(name, "readings") for name in names), return_exceptions=True)
    readings: list[GpuReading] = []
    away = []
    for name, answer in zip(names, answers, strict=True):
        if isinstance(answer, BaseException):
            log.warning("%s does not answer: %r", name, answer)
            away.append(name)
        else:
            readings += answer
    return tuple(readings), tuple(away)
