"""``python -m gpud``, which is also ``wattray gpud``."""

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from control_plane.ports import GpuNode
from gpud.options import Options, parse_options
from gpud.service import AlreadyRunningError, Service


def main(arguments: Sequence[str] | None = None) -> int:
    """The process's exit code: 0 after SIGTERM, 1 where it cannot start."""
    options = parse_options(arguments)
    # A thread that has an answer from the driver waits no longer than this for another to let go of the interpreter.
    sys.setswitchinterval(0.0005)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s gpud %(levelname)s %(message)s", stream=sys.stderr)
    try:
        service = Service(options, _opener(options))
        asyncio.run(service.restore() if options.restore_only else service.run())
    except (AlreadyRunningError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _opener(options: Options) -> Callable[[], GpuNode]:
    """Opens the driver that the options name; its library is imported when it is first asked for."""
    if options.driver == "simulated":

        def open_simulated() -> GpuNode:
            from actors.gpu.simulated import SimulatedNode

            path = options.simulated_file or options.state / "simulated.bin"
            return SimulatedNode.create(path, options.simulated_gpus)

        return open_simulated

    def open_nvml() -> GpuNode:
        from actors.gpu.nvml import NvmlNode

        return NvmlNode(options.allow_shared)

    return open_nvml


def run(arguments: Sequence[str] | None = None) -> NoReturn:
    """``main``, and the end of the process: a thread that hangs in a driver does not keep it from ending."""
    code = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
