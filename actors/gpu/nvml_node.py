"""The NVIDIA GPUs of a node, as the driver lists them now."""

import logging
import threading
import time
from collections.abc import Callable, Sequence

import pynvml

from actors.gpu.nvml import NvmlGpu
from actors.gpu.nvml_errors import asked
from control_plane.ports import Gpu, GpuError, NoGpuError

log = logging.getLogger(__name__)


def _initialised() -> None:
    """Raises NoGpuError where no driver is loaded or its library is missing."""
    asked("NVML", pynvml.nvmlInit)


class NvmlNode:
    """The NVIDIA GPUs of this node. Each look at ``gpus`` asks the driver anew, so that GPUs may come and go; one that
    does not answer is left out. Raises NoGpuError where no driver is loaded, again and again until one is."""

    def __init__(self, allow_shared: bool = False, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        """``allow_shared``: GPUs that are cut into MIG instances or used by several users may be set too."""
        self._allow_shared, self._monotonic_s = allow_shared, monotonic_s
        self._known: dict[str, NvmlGpu] = {}
        self._order: list[str] = []
        self._lock = threading.Lock()
        _initialised()

    def gpus(self) -> Sequence[Gpu]:
        with self._lock:
            found = self._handles()
            self._order = [uuid for uuid, _ in found]
            for uuid, handle in found:
                if uuid in self._known:
                    self._known[uuid].handle = handle
                else:
                    self._known[uuid] = NvmlGpu(uuid, handle, self._allow_shared, self._monotonic_s)
            return [self._known[uuid] for uuid in self._order]

    def _handles(self) -> list[tuple[str, object]]:
        try:
            count = int(asked("NVML, number of GPUs", pynvml.nvmlDeviceGetCount))
        except NoGpuError:
            # The driver was unloaded and is perhaps back.
            _initialised()
            count = int(asked("NVML, number of GPUs", pynvml.nvmlDeviceGetCount))
        found = []
        for index in range(count):
            try:
                handle = asked(f"NVML, GPU {index}", lambda index=index: pynvml.nvmlDeviceGetHandleByIndex(index))  # type: ignore[misc]
                uuid = str(asked(f"NVML, GPU {index}", lambda handle=handle: pynvml.nvmlDeviceGetUUID(handle)))  # type: ignore[misc]
            except NoGpuError:
                raise
            except GpuError as error:
                log.warning("%s: left out", error)
                continue
            found.append((uuid, handle))
        return found

    def uuid_of(self, ray_index: int) -> str:
        """Ray counts GPUs in the driver's order (by PCI bus); CUDA does so where CUDA_DEVICE_ORDER=PCI_BUS_ID."""
        handle = asked(f"NVML, GPU {ray_index}", lambda: pynvml.nvmlDeviceGetHandleByIndex(ray_index))
        return str(asked(f"NVML, GPU {ray_index}", lambda: pynvml.nvmlDeviceGetUUID(handle)))

    def reap(self) -> int:
        """The driver frees what dead processes held by itself."""
        return 0

    def close(self) -> None:
        """The library stays initialised: other parts of the process may use it."""
