"""Looks at this node and, through the Ray that is up here, at every other: findings with their remedies."""

import importlib.metadata
import os
import sys
from pathlib import Path
from typing import Any

from actors.gpu.node_findings import Finding, Level, node_findings
from wattray import running

CALL_S = 60.0
PACKAGES = ("wattray", "ray", "nvidia-ml-py", "torch")


def examined(socket: Path) -> dict[str, list[Finding]]:
    """Findings by node; this node comes first, the Ray cluster last."""
    found = {"this node": node_findings(socket) + [_versions(package) for package in PACKAGES]}
    state = running.load()
    if state is None:
        remedy = "`wattray up` starts one or joins the one that runs; then this looks at every node"
        found["Ray"] = [Finding(Level.NOTE, "control plane", "none is up here", remedy)]
        return found
    try:
        found |= _through_ray(socket)
    except Exception as error:  # noqa: BLE001 (whatever keeps Ray from answering is a finding, not the end)
        remedy = "`wattray status`; `wattray down` and `wattray up` start it anew"
        found["Ray"] = [Finding(Level.PROBLEM, "control plane", f"it does not answer: {error}", remedy)]
    return found


def _versions(package: str) -> Finding:
    try:
        return Finding(Level.OK, package, importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return Finding(Level.NOTE, package, "not installed", f"pip install {package}")


def _through_ray(socket: Path) -> dict[str, list[Finding]]:
    import ray

    from wattray.client import connect

    connect()
    found = {"Ray": [_ray_auth()]}
    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(_on_node).options(num_cpus=0, scheduling_strategy=strategy)
            asked[f"node {node['NodeID'][:12]} ({node['NodeManagerAddress']})"] = task.remote(socket)
    here = (sys.version_info[:3], importlib.metadata.version("ray"))
    for name, reference in asked.items():
        try:
            findings, there = ray.get(reference, timeout=CALL_S)
        except (ray.exceptions.RayError, TimeoutError) as error:
            found[name] = [Finding(Level.PROBLEM, "node", f"it does not answer: {error}", "look at `ray status`")]
            continue
        if there != here:
            told = f"Python and Ray {there} there, {here} here"
            findings.append(Finding(Level.PROBLEM, "versions", told, "install the same versions on every node"))
        found[name] = findings
    return found


def _ray_auth() -> Finding:
    if os.environ.get("RAY_AUTH_MODE") == "token":
        return Finding(Level.OK, "Ray auth", "token mode")
    remedy = "start the head with RAY_AUTH_MODE=token (`wattray up` does so with a head of its own)"
    return Finding(Level.PROBLEM, "Ray auth", "whoever reaches the cluster's ports may run code as its owner", remedy)


def _on_node(socket: Path) -> tuple[list[Finding], Any]:
    """Runs as a Ray task on the node that is examined."""
    there = (sys.version_info[:3], importlib.metadata.version("ray"))
    return node_findings(socket), there
