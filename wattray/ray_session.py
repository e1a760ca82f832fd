"""This process as a driver of a running Ray."""

import logging
import signal
import threading

import ray

from actors import runtime


def connect_ray(address: str) -> str:
    """Join a running Ray as a driver and return its dashboard's URL ("" without one); joining twice is one joining.
    Raises ConnectionError where none answers or where it refuses the token. Whoever handles SIGTERM here goes on to:
    Ray puts a handler of its own there, which ends the process."""
    handler = signal.getsignal(signal.SIGTERM)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    context = ray.init(
        address=address,
        namespace=runtime.NAMESPACE,
        logging_level="warning",
        log_to_driver=False,
        ignore_reinit_error=True,
    )
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
    url = context.dashboard_url
    return f"http://{url}" if url else ""
