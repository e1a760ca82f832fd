"""Ray's job commands find the control plane that is up here, and its token, under the address `wattray://here`."""

from collections.abc import Mapping

from ray.dashboard.modules.dashboard_sdk import ClusterInfo

from actors.ray_token import ray_token_headers
from wattray import ray_auth, running
from wattray.errors import WattrayError

HERE = "here"


def cluster_info(address: str, headers: Mapping[str, str] | None = None) -> ClusterInfo:
    """``address`` is what follows `wattray://`: a dashboard's host:port, or "here" for the one that is up here."""
    ray_auth.use_token_if_there_is_one()
    url = f"http://{address}"
    if address == HERE:
        recorded = running.load()
        if recorded is None or not running.is_up(recorded):
            raise WattrayError("wattray://here: nothing is up here; start it with `wattray up`, or name HOST:PORT")
        url = recorded.dashboard_url
    return ClusterInfo(address=url, headers={**(headers or {}), **ray_token_headers()})
