"""What stands in the way of reading and setting this node's GPUs, each finding with its remedy; changes nothing."""

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from actors.gpu.gpud_client import GpudClient, GpudError
from actors.gpu.nvml_errors import asked
from control_plane.ports import GpuError, GpuNotSupportedError, NoGpuError

CAP_SYS_ADMIN = 1 << 21


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    NOTE = "note"
    """Something works less well than it could."""
    PROBLEM = "problem"
    """Something that wattray does is not possible."""


@dataclass(frozen=True, slots=True)
class Finding:
    """``what`` was looked at, what was ``found``, and the ``remedy`` where one is needed."""

    level: Level
    what: str
    found: str
    remedy: str = ""


def may_set_clocks() -> bool:
    """Whether this process has what NVML asks for locked clocks: CAP_SYS_ADMIN, as root has outside containers."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) & CAP_SYS_ADMIN)
    return os.geteuid() == 0


def node_findings(socket: Path) -> list[Finding]:
    """Of this node: Python, driver, every GPU, privilege, gpud."""
    findings = [Finding(Level.OK, "Python", platform.python_version())]
    findings += _driver()
    findings += _privilege_and_gpud(socket)
    return findings


def _driver() -> Iterator[Finding]:
    try:
        import pynvml
    except ImportError as error:
        yield Finding(Level.PROBLEM, "nvidia-ml-py", str(error), "pip install nvidia-ml-py")
        return
    try:
        asked("NVML", pynvml.nvmlInit)
        version = asked("NVML", pynvml.nvmlSystemGetDriverVersion)
        count = int(asked("NVML", pynvml.nvmlDeviceGetCount))
    except NoGpuError as error:
        remedy = "on a GPU node install or load NVIDIA's driver (`nvidia-smi` must work); else all goes on without GPUs"
        yield Finding(Level.NOTE, "driver", f"no GPU: {error}", remedy)
        return
    except GpuError as error:
        yield Finding(Level.PROBLEM, "driver", str(error), "look at `nvidia-smi` and the kernel's log (`dmesg`)")
        return
    yield Finding(Level.OK, "driver", f"NVIDIA {version}, {count} GPUs")
    for index in range(count):
        yield from _gpu(index)


def _gpu(index: int) -> Iterator[Finding]:
    import pynvml

    name = f"GPU {index}"
    try:
        handle = asked(name, lambda: pynvml.nvmlDeviceGetHandleByIndex(index))
        uuid = asked(name, lambda: pynvml.nvmlDeviceGetUUID(handle))
    except GpuError as error:
        yield Finding(Level.PROBLEM, name, str(error), "drain the node and reset the GPU, or reboot; the others go on")
        return
    name = f"GPU {uuid}"
    try:
        persistent = asked(name, lambda: pynvml.nvmlDeviceGetPersistenceMode(handle)) == pynvml.NVML_FEATURE_ENABLED
        yield (
            Finding(Level.OK, f"{name} persistence mode", "on")
            if persistent
            else Finding(
                Level.NOTE,
                f"{name} persistence mode",
                "off: the driver unloads between processes, which resets clocks and energy counters",
                "nvidia-smi -pm 1, or the nvidia-persistenced service",
            )
        )
    except GpuError as error:
        yield Finding(Level.NOTE, f"{name} persistence mode", str(error), "nothing to do where NVML does not tell it")
    yield from _mig(name, handle)
    yield from _features(name, str(uuid), handle)


def _mig(name: str, handle: object) -> Iterator[Finding]:
    import pynvml

    try:
        current, _ = asked(name, lambda: pynvml.nvmlDeviceGetMigMode(handle))
    except GpuNotSupportedError:
        return  # a GPU without MIG
    except GpuError as error:
        yield Finding(Level.NOTE, f"{name} MIG", str(error), "look at `nvidia-smi -q -d MIG`")
        return
    if current == pynvml.NVML_DEVICE_MIG_ENABLE:
        remedy = "nvidia-smi -mig 0, or gpud --allow-shared where all instances are yours"
        yield Finding(Level.PROBLEM, f"{name} MIG", "on: instances share one clock, so it is not set", remedy)
    else:
        yield Finding(Level.OK, f"{name} MIG", "off")


def _features(name: str, uuid: str, handle: object) -> Iterator[Finding]:
    from actors.gpu.nvml import NvmlGpu
    from control_plane.ports import Feature

    gpu = NvmlGpu(uuid, handle)
    try:
        gpu.sample()
        try:
            gpu.energy_j()
            gpu.power_limits_w()
        except GpuNotSupportedError:
            pass  # it is missing from the features below
        lacks = frozenset(Feature) - gpu.features()
        shared = gpu.why_not_ours()
    except GpuError as error:
        yield Finding(Level.PROBLEM, name, str(error), "look at `nvidia-smi` and the kernel's log")
        return
    if Feature.CLOCK_LOCK in lacks:
        found = "its clocks cannot be locked (Volta or later can): its power limit is the actuator"
        yield Finding(Level.NOTE, f"{name} clocks", found, "none; a newer GPU or driver")
    if lacks - {Feature.CLOCK_LOCK}:
        told = ", ".join(sorted(lacks - {Feature.CLOCK_LOCK}))
        yield Finding(Level.NOTE, f"{name} readings", f"not told: {told}", "none; a newer driver may tell them")
    if shared is not None and "MIG" not in shared:
        yield Finding(Level.PROBLEM, f"{name} users", shared, "give the GPU to one user, or gpud --allow-shared")


def _privilege_and_gpud(socket: Path) -> Iterator[Finding]:
    try:
        gpud = GpudClient(socket).read()["gpud"]
    except GpudError as error:
        able = may_set_clocks()
        level = Level.NOTE if able else Level.PROBLEM
        yield Finding(level, "gpud", str(error), "systemctl enable --now wattray-gpud (deploy/)")
        if able:
            yield Finding(Level.OK, "privilege", "this process may set clocks, so an agent can start a gpud of its own")
        else:
            lacks = "this process has no CAP_SYS_ADMIN: clocks can be read, not set"
            yield Finding(Level.NOTE, "privilege", lacks, "run gpud as the systemd unit or the DaemonSet in deploy/")
        return
    if gpud["state"] in ("ok", "dry run"):
        told = f"answers at {socket}, pid {gpud['pid']}, uid {gpud['uid']}, {gpud['state']}"
        yield Finding(Level.OK, "gpud", told)
    else:
        yield Finding(Level.PROBLEM, "gpud", f"{gpud['state']}: {gpud['why']}", "see its log and audit.jsonl")
