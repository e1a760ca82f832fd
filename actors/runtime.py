"""The composition root: names, placement, clocks and ``ray.remote`` for every control actor. Nothing else wraps."""

import asyncio
import importlib
import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup, get_placement_group, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from actors.cluster_manager import ClusterManager
from actors.gpu.simulated import SimulatedNode, simulated_uuid
from actors.gpu_agent import GpuAgent
from actors.load_forecaster import LoadForecaster
from actors.messages import Decision, Forecast, GpuReading, PoolStatus
from actors.planner_actor import PerseusPlannerActor
from actors.pool_manager import PoolManager
from actors.training_messages import TrainingSite
from control_plane.actions import SetGpuBudget
from control_plane.domain import ClusterSnapshot, Load, PoolName
from control_plane.hardware.machine_profile import MachineProfile
from control_plane.hardware.profiles import load_profile
from control_plane.ports import Gpu
from control_plane.serving.controller import ClusterController, PoolController
from control_plane.settings import Settings

log = logging.getLogger(__name__)

NAMESPACE = "wattray"
CLUSTER_MANAGER = "cluster_manager"
LOAD_FORECASTER = "load_forecaster"
PERSEUS_PLANNER = "perseus_planner"
TRAINING_GPUS = "wattray-training-gpus"
"""The placement group that keeps the training GPUs: Ray gives none of them to anything else."""
RESERVE_S = 30.0
CALL_TIMEOUT_S = 5.0


def pool_manager_name(pool: PoolName) -> str:
    return f"pool_manager:{pool}"


def gpu_agent_name(node_id: str) -> str:
    return f"gpu_agent:{node_id}"


@dataclass(frozen=True, slots=True)
class Deployment:
    """What the control actors need to know of the world they run in.

    ``set_count`` names a function, "module:function", (deployment, pool, tp, replicas) → None; its module belongs to
    a layer above and is imported where it is called.
    """

    settings: Settings
    run_dir: str
    dashboard_url: str
    set_count: str

    @property
    def profile(self) -> MachineProfile:
        return planning_profile(self.settings)


def planning_profile(settings: Settings) -> MachineProfile:
    """The energy profile that plans are made with. Raises ProfileError for an unknown name."""
    return load_profile(settings.profile, settings.planning_slo())


def node_file(run_dir: str, node_id: str) -> Path:
    """Where the simulated GPUs of a node live, under the temp folder of that node."""
    return Path(tempfile.gettempdir()) / run_dir / f"gpus-{node_id}.bin"


def planner_folder(run_dir: str) -> Path:
    """Where the planner writes its jobs."""
    return Path(tempfile.gettempdir()) / run_dir / "planner"


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
    async def __init__(self, deployment: Deployment, budgets: Mapping[PoolName, int]) -> None:  # type: ignore[misc]
        settings, profile = deployment.settings, deployment.profile
        super().__init__(
            settings,
            ClusterController(settings, profile, profile.gpu.idle_w),
            budgets,
            _forecast,
            _set_budget,
            _pool_status,
            _pool_decisions,
            _gpu_readings,
            time.monotonic,
            time.time,
        )
        _start_ticking(self)


class PoolManagerActor(PoolManager):
    async def __init__(  # type: ignore[misc]
        self, deployment: Deployment, pool: PoolName, gpu_budget: int
    ) -> None:
        settings, profile = deployment.settings, deployment.profile

        async def set_count(pool: PoolName, tp: int, replicas: int) -> None:
            module, _, function = deployment.set_count.partition(":")
            scale = getattr(importlib.import_module(module), function)
            await asyncio.to_thread(scale, deployment, pool, tp, replicas)

        super().__init__(
            pool,
            PoolController(settings.pool_settings(pool), settings, profile, profile.gpu.idle_w, profile.gpu.context_w),
            gpu_budget,
            settings.gpu.lease_ttl_s,
            settings.cadence.frequency_s,
            _forecast,
            _hold_clocks,
            set_count,
            time.monotonic,
            time.time,
        )
        _start_ticking(self)


class LoadForecasterActor(LoadForecaster):
    async def __init__(self, deployment: Deployment, first_load: Load) -> None:  # type: ignore[misc]
        super().__init__(deployment.settings.forecast, first_load, time.monotonic)
        _start_ticking(self)


class GpuAgentActor(GpuAgent):
    async def __init__(self, deployment: Deployment, node_id: str, gpus: int) -> None:  # type: ignore[misc]
        node = SimulatedNode.create(node_file(deployment.run_dir, node_id), gpus)

        def open_gpus() -> Sequence[Gpu]:
            return [node.gpu(index) for index in range(node.count)]

        control = deployment.settings.gpu.control
        super().__init__(node_id, open_gpus, control, time.monotonic, node.reap_dead_contexts)
        _start_ticking(self)

    async def pid(self) -> int:
        return os.getpid()


def start_control_plane(deployment: Deployment, first_load: Load) -> None:
    """Start every control actor, detached and restarted for ever; ``first_load`` is what to be ready for at once."""
    settings, profile = deployment.settings, deployment.profile
    budgets = first_budgets(settings, profile, first_load)
    for node in ray.nodes():
        gpus = int(node["Resources"].get("GPU", 0))
        if node["Alive"] and gpus > 0:
            start_gpu_agent(deployment, node["NodeID"], gpus)
    start_planner(deployment, reserve_training_gpus(deployment))
    _start(LoadForecasterActor, LOAD_FORECASTER, deployment, first_load)
    for pool in settings.pools:
        _start(PoolManagerActor, pool_manager_name(pool.pool), deployment, pool.pool, budgets[pool.pool])
    _start(ClusterManagerActor, CLUSTER_MANAGER, deployment, budgets)


def first_budgets(settings: Settings, profile: MachineProfile, first_load: Load) -> dict[PoolName, int]:
    """GPUs per pool for the first load."""
    forecast = {pool.pool: first_load.only(pool.input_classes) for pool in settings.pools}
    controller = ClusterController(settings, profile, profile.gpu.idle_w)
    step = controller.step(ClusterSnapshot(0.0, settings.serving_gpus, forecast, {}))
    return {action.pool: action.gpus for action in step.actions if isinstance(action, SetGpuBudget)}


def start_planner(deployment: Deployment, site: TrainingSite) -> ActorHandle:
    """The planner of training jobs, on this node while it lives: its jobs are written there."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    folder = planner_folder(deployment.run_dir)
    return _start(PerseusPlannerActor, PERSEUS_PLANNER, folder, site, scheduling_strategy=here)


def reserve_training_gpus(deployment: Deployment) -> TrainingSite:
    """Keep `training.gpus` GPUs of one node in a placement group of their own; which ones is Ray's choice. Raises
    RuntimeError where no node has so many free."""
    settings = deployment.settings
    if settings.training.gpus == 0:
        return TrainingSite(deployment.run_dir, "", (), settings.gpu.lease_ttl_s)
    bundle = {"GPU": float(settings.training.gpus)}
    group = placement_group([bundle], "STRICT_PACK", name=TRAINING_GPUS, lifetime="detached")
    if not group.wait(RESERVE_S):
        remove_placement_group(group)
        raise RuntimeError(f"no node has {settings.training.gpus} free GPUs to keep for training")
    node_id, indices = ray.get(_gpus_of(group, settings.training.gpus), timeout=RESERVE_S)
    uuids = tuple(simulated_uuid(index) for index in indices)
    return TrainingSite(deployment.run_dir, node_id, uuids, settings.gpu.lease_ttl_s)


def free_training_gpus() -> None:
    """Give the kept GPUs back to Ray; where none are kept, nothing happens."""
    try:
        remove_placement_group(get_placement_group(TRAINING_GPUS))
    except ValueError:
        return


def _gpus_of(group: PlacementGroup, gpus: int) -> Any:
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    return ray.remote(_gpus_given).options(num_cpus=0, num_gpus=gpus, scheduling_strategy=strategy).remote()


def _gpus_given() -> tuple[str, tuple[int, ...]]:
    """This node, and the GPUs that Ray gave this task."""
    context = ray.get_runtime_context()
    return context.get_node_id(), tuple(int(index) for index in context.get_accelerator_ids()["GPU"])


def start_gpu_agent(deployment: Deployment, node_id: str, gpus: int) -> ActorHandle:
    """The agent of one node, pinned to it."""
    strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return _start(GpuAgentActor, gpu_agent_name(node_id), deployment, node_id, gpus, scheduling_strategy=strategy)


def _start(cls: type, name: str, *args: Any, **options: Any) -> ActorHandle:
    return (
        ray.remote(cls)
        .options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            max_restarts=-1,
            max_task_retries=0,
            num_cpus=0,
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
    return await asyncio.wait_for(getattr(actor(name), method).remote(*args), CALL_TIMEOUT_S)


async def _forecast() -> Forecast:
    answer: Forecast = await _call(LOAD_FORECASTER, "forecast")
    return answer


async def _hold_clocks(node_id: str, owner: str, wanted: Mapping[str, int], ttl_s: float) -> Mapping[str, int]:
    answer: Mapping[str, int] = await _call(gpu_agent_name(node_id), "hold", owner, dict(wanted), ttl_s)
    return answer


async def _set_budget(pool: PoolName, gpus: int) -> None:
    await _call(pool_manager_name(pool), "set_gpu_budget", gpus)


async def _pool_status(pool: PoolName) -> PoolStatus:
    answer: PoolStatus = await _call(pool_manager_name(pool), "status")
    return answer


async def _pool_decisions(pool: PoolName, last: int) -> tuple[Decision, ...]:
    answer: tuple[Decision, ...] = await _call(pool_manager_name(pool), "decisions", last)
    return answer


async def _gpu_readings() -> tuple[GpuReading, ...]:
    answers: list[tuple[GpuReading, ...]] = await asyncio.gather(*(_call(name, "readings") for name in agent_names()))
    return tuple(reading for answer in answers for reading in answer)
