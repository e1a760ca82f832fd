"""Where the router may listen: beyond this machine only with Ray's token mode and an API key."""

import ipaddress

from control_plane.settings import Settings
from wattray.errors import WattrayError


def check_exposure(settings: Settings, ray_token_mode: bool) -> None:
    """Raises WattrayError where ``serve.host`` is not loopback and something is left open to whoever reaches it."""
    host = settings.serve.host
    if is_loopback(host):
        return
    if not ray_token_mode:
        raise WattrayError(
            f"serve.host {host}: other machines would reach a Ray without token authentication and run code as you; "
            "unset RAY_AUTH_MODE=disabled (a Ray that is not ours must run with RAY_AUTH_MODE=token), or use 127.0.0.1"
        )
    if settings.serve.api_key_file is None:
        raise WattrayError(
            f"serve.host {host}: other machines would reach the router without an API key; "
            "set serve.api_key_file to a file that holds one, or use 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
