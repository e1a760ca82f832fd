"""The face: command line, Python client, reports. ``wattray.connect()`` gives typed calls to the control actors."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.dashboard.modules.dashboard_sdk import ClusterInfo

    from wattray.client import Client

__all__ = ["connect"]


def connect(address: str | None = None) -> "Client":
    """Connect to a control plane that is up; see ``wattray.client.Client``. Ray is imported only here."""
    from wattray.client import connect as connect_client

    return connect_client(address)


def get_job_submission_client_cluster_info(address: str, **asked: Any) -> "ClusterInfo":
    """What Ray's job commands ask of the module that an address names: `ray job submit --address wattray://here -- …`
    finds the dashboard of the control plane that is up here, and the token. Raises WattrayError where none is up."""
    from wattray.job_address import cluster_info

    return cluster_info(address, asked.get("headers"))
