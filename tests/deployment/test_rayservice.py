"""The RayService manifest against KubeRay's and Ray Serve's schemas, and against what gpud's DaemonSet says."""

import importlib
import importlib.util
from typing import Any

import jsonschema
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema
from tests_support import ROOT

from control_plane.hardware.profiles import load_profile
from control_plane.settings import Settings, parse_settings
from gpud.options import parse_options
from serve_apps.naming import PROXY_ENVIRONMENT

DEPLOY = ROOT / "deploy"


def part(required: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    """An object with these fields alone: the API server drops a misspelt one without a word."""
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


def listed(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


TEXT, NUMBER = {"type": "string"}, {"type": "integer"}
STRINGS = {"type": "object", "additionalProperties": TEXT}
CONTAINER = part(
    ("name", "image"),
    name=TEXT,
    image=TEXT,
    env=listed(part(("name",), name=TEXT, value=TEXT)),
    ports=listed(part(("containerPort",), name=TEXT, containerPort=NUMBER)),
    resources=part(requests=STRINGS, limits=STRINGS),
    volumeMounts=listed(part(("name", "mountPath"), name=TEXT, mountPath=TEXT, readOnly={"type": "boolean"})),
)
POD = part(
    ("containers",),
    containers=listed(CONTAINER),
    securityContext=part(supplementalGroups=listed(NUMBER)),
    tolerations=listed(part(key=TEXT, operator={"enum": ["Exists", "Equal"]}, effect=TEXT)),
    terminationGracePeriodSeconds=NUMBER,
    volumes=listed(part(("name",), name=TEXT, hostPath=part(("path",), path=TEXT, type=TEXT))),
)
TEMPLATE = part(("spec",), spec=POD, metadata=part(labels=STRINGS, annotations=STRINGS))
RAY_SERVICE = part(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayService"},
    metadata=part(("name",), name=TEXT, namespace=TEXT),
    spec=part(
        serveConfigV2=TEXT,
        rayClusterConfig=part(
            ("headGroupSpec",),
            rayVersion=TEXT,
            authOptions=part(mode={"enum": ["token", "disabled"]}, secretName=TEXT),
            headGroupSpec=part(("template",), rayStartParams=STRINGS, template=TEMPLATE, serviceType=TEXT),
            workerGroupSpecs=listed(
                part(
                    ("groupName", "template"),
                    groupName=TEXT,
                    replicas=NUMBER,
                    minReplicas=NUMBER,
                    maxReplicas=NUMBER,
                    numOfHosts=NUMBER,
                    rayStartParams=STRINGS,
                    template=TEMPLATE,
                )
            ),
        ),
    ),
)
"""The fields that we use, with their types, of KubeRay's API reference (v1.6, docs.ray.io/en/latest/cluster/kubernetes/
references/api.html) and Kubernetes' core/v1. KubeRay's own schema has half a megabyte."""


def manifest() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "wattray-rayservice.yaml").read_text())
    return found


def application() -> dict[str, Any]:
    [found] = yaml.safe_load(manifest()["spec"]["serveConfigV2"])["applications"]
    return dict(found)


def settings() -> Settings:
    [llm] = application()["args"]["llm_configs"]
    return parse_settings(llm["experimental_configs"]["wattray"])


def workers() -> dict[str, Any]:
    [group] = manifest()["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    return dict(group)


def test_kuberay_takes_the_manifest() -> None:
    jsonschema.validate(manifest(), RAY_SERVICE)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("rayClusterConfig", "headGroupSpec", "rayStartParams", "num-gpus"), 0),
        (("rayClusterConfig", "workerGroupSpec"), []),
        (("rayClusterConfig", "authOptions", "mode"), "tokens"),
    ],
)
def test_the_schema_finds_a_number_for_a_text_a_misspelt_field_and_an_unknown_mode(
    path: tuple[str, ...], value: object
) -> None:
    broken = manifest()
    place = broken["spec"]
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, RAY_SERVICE)


def test_ray_serve_takes_its_config() -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load(manifest()["spec"]["serveConfigV2"]))
    assert [app.name for app in config.applications] == ["llm"]
    module, _, name = application()["import_path"].partition(":")
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not in this tree")
    assert name in importlib.import_module(module).__all__


def test_its_settings_are_wattrays_and_change_no_clock_until_asked() -> None:
    given = settings()
    assert given.gpu.control == "recommend"
    assert given.gpu.driver == "nvml"
    load_profile(given.profile, given.planning_slo())
    [container] = workers()["template"]["spec"]["containers"]
    assert int(container["resources"]["limits"]["nvidia.com/gpu"]) * workers()["replicas"] == given.gpu.count
    assert workers()["template"]["spec"]["terminationGracePeriodSeconds"] >= given.drain_s


def test_ray_asks_for_a_token_and_every_pod_shields_its_proxy() -> None:
    cluster = manifest()["spec"]["rayClusterConfig"]
    assert cluster["authOptions"] == {"mode": "token"}
    for group in (cluster["headGroupSpec"], workers()):
        [container] = group["template"]["spec"]["containers"]
        environment = {entry["name"]: entry["value"] for entry in container["env"]}
        assert PROXY_ENVIRONMENT.items() <= environment.items()


def test_workers_reach_the_guards_socket_and_have_no_privilege() -> None:
    guard = next(
        document
        for document in yaml.safe_load_all((DEPLOY / "gpud-daemonset.yaml").read_text())
        if document["kind"] == "DaemonSet"
    )
    [daemon] = guard["spec"]["template"]["spec"]["containers"]
    options = parse_options(daemon["args"])
    pod = workers()["template"]["spec"]
    [volume], [container] = pod["volumes"], pod["containers"]
    assert settings().gpu.gpud_socket == str(options.socket)
    assert container["volumeMounts"][0]["mountPath"] == volume["hostPath"]["path"] == str(options.socket.parent)
    assert f"--group={pod['securityContext']['supplementalGroups'][0]}" in daemon["args"]
    assert "securityContext" not in container
    assert manifest()["metadata"]["namespace"] == guard["metadata"]["namespace"]
