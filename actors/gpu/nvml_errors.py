"""What NVML's error codes mean to us, one by one, and the few that are worth asking again."""

import time
from collections.abc import Callable
from typing import TypeVar

import pynvml

from control_plane.ports import (
    GpuBusyError,
    GpuError,
    GpuLostError,
    GpuNotSupportedError,
    GpuPermissionError,
    NoGpuError,
)

ATTEMPTS = 3
PAUSE_S = 0.02
"""Between attempts: a passing fault costs less than a tenth of a second."""

Value = TypeVar("Value")

_KINDS: dict[int, type[GpuError]] = {
    pynvml.NVML_ERROR_UNINITIALIZED: NoGpuError,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: NoGpuError,
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: NoGpuError,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: NoGpuError,
    pynvml.NVML_ERROR_NO_PERMISSION: GpuPermissionError,
    pynvml.NVML_ERROR_NOT_SUPPORTED: GpuNotSupportedError,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: GpuNotSupportedError,
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH: GpuNotSupportedError,
    pynvml.NVML_ERROR_DEPRECATED: GpuNotSupportedError,
    pynvml.NVML_ERROR_NO_DATA: GpuNotSupportedError,
    pynvml.NVML_ERROR_GPU_IS_LOST: GpuLostError,
    pynvml.NVML_ERROR_GPU_NOT_FOUND: GpuLostError,
    pynvml.NVML_ERROR_NOT_FOUND: GpuLostError,
    pynvml.NVML_ERROR_RESET_REQUIRED: GpuLostError,
    pynvml.NVML_ERROR_UNKNOWN: GpuBusyError,
    pynvml.NVML_ERROR_TIMEOUT: GpuBusyError,
    pynvml.NVML_ERROR_IN_USE: GpuBusyError,
    pynvml.NVML_ERROR_NOT_READY: GpuBusyError,
    pynvml.NVML_ERROR_MEMORY: GpuBusyError,
    pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES: GpuBusyError,
}


def asked(what: str, call: Callable[[], Value]) -> Value:
    """The call's answer. What passes (Unknown, Timeout and the like) is asked again, ``ATTEMPTS`` times in all.

    Raises a GpuError of the kind that says what to do; its message begins with ``what`` and ends with NVML's words.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except pynvml.NVMLError as error:
            kind = _KINDS.get(error.value, GpuError)
            if kind is not GpuBusyError or attempt == ATTEMPTS:
                raise kind(f"{what}: NVML says {error} (code {error.value})") from None
        time.sleep(PAUSE_S)
    raise AssertionError("the last attempt returns or raises")
