"""ray.serve.llm for real on a CPU: Ray's builder, server, ingress and command line, our transformers engine for vLLM.

Needs ``ray[llm]`` in an environment of its own: ``make test-ray-llm``.
"""

import importlib.util
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests_support import free_ports

if importlib.util.find_spec("vllm") is None:
    pytest.skip("ray.serve.llm needs vLLM, which is not installed here: make test-ray-llm", allow_module_level=True)

import ray

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]

PATIENCE_S = 600.0
ENGINE = "serve_apps.ray_llm.transformers_llm:TransformersLLM"
MANAGED = {
    "profile": "llama8b-h200",
    "gpu": {"driver": "simulated", "count": 3},
    "cadence": {"cluster_s": 2.0, "pool_s": 2.0, "frequency_s": 1.0},
    "pools": [{"name": "llm", "input_classes": ["S", "M", "L"]}],
}
TENANT = {"x-wattray-tenant": "team-a"}
QUESTION = {"model": "small-llama", "prompt": "Hello there", "max_tokens": 12}
CHAT = {"model": "small-llama", "messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 12}


def config(port: int, import_path: str, deployment: dict[str, Any], **model: Any) -> dict[str, Any]:
    llm = {
        "model_loading_config": {"model_id": "small-llama"},
        "runtime_env": {"env_vars": {"RAYLLM_VLLM_ENGINE_CLS": ENGINE}},
        "deployment_config": {"ray_actor_options": {"num_cpus": 0}, **deployment},
        "experimental_configs": {"wattray": MANAGED},
        **model,
    }
    ingress = {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0}}
    args = {"llm_configs": [llm], "ingress_deployment_config": ingress}
    application = {"name": "llm", "route_prefix": "/", "import_path": import_path, "args": args}
    return {"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application]}


@dataclass(frozen=True)
class Head:
    """A Ray head of its own, and the commands that users give it."""

    port: int
    dashboard: str
    folder: Path

    def deploy(self, values: dict[str, Any]) -> str:
        """`serve deploy`, then `serve status` until it runs; the configuration's text."""
        file = self.folder / "app.yaml"
        file.write_text(yaml.safe_dump(values))
        self._serve("deploy", str(file))
        self.wait("the application runs", lambda: self.status()["status"] in ("RUNNING", "DEPLOY_FAILED"))
        assert self.status()["status"] == "RUNNING", self.status()
        return file.read_text()

    def status(self) -> dict[str, Any]:
        """Of the application, as `serve status` prints it."""
        return yaml.safe_load(self._serve("status"))["applications"]["llm"]

    def running(self, deployment: str) -> int:
        return self.status()["deployments"][deployment]["replica_states"].get("RUNNING", 0)

    def autoscaled(self) -> dict[str, Any]:
        """The policy of every deployment that Serve scales, by the dashboard's API."""
        with urllib.request.urlopen(f"{self.dashboard}/api/serve/applications/", timeout=30) as answer:
            deployments = json.load(answer)["applications"]["llm"]["deployments"]
        scaled = {name: told["deployment_config"].get("autoscaling_config") for name, told in deployments.items()}
        return {name: scaling["policy"] for name, scaling in scaled.items() if scaling is not None}

    def ask(self, path: str, body: dict[str, Any]) -> str:
        headers = {"content-type": "application/json", **TENANT}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(), headers, method="POST"
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read().decode()

    def wait(self, what: str, holds: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < deadline_s, f"{what}: not within {PATIENCE_S:.0f} s; {self.status()}"

    def _serve(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "ray.serve.scripts", *arguments, "-a", self.dashboard]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@dataclass(frozen=True)
class Answers:
    config: str
    completion: dict[str, Any]
    chat: dict[str, Any]
    events: list[dict[str, Any]]

    @classmethod
    def of(cls, head: Head, config: str) -> "Answers":
        streamed = head.ask("/v1/chat/completions", {**CHAT, "stream": True, "stream_options": {"include_usage": True}})
        events = [line.removeprefix("data: ") for line in streamed.split("\n\n") if line.startswith("data: {")]
        return cls(
            config,
            json.loads(head.ask("/v1/completions", QUESTION)),
            json.loads(head.ask("/v1/chat/completions", CHAT)),
            [json.loads(event) for event in events],
        )

    def usages(self) -> list[dict[str, Any]]:
        return [self.completion["usage"], self.chat["usage"], self.events[-1]["usage"]]

    def texts(self) -> list[str]:
        deltas = [event["choices"][0]["delta"].get("content", "") for event in self.events if event["choices"]]
        chat, completion = self.chat["choices"][0], self.completion["choices"][0]
        return [completion["text"], chat["message"]["content"], "".join(deltas)]


@pytest.fixture(scope="module")
def head(own_temp: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    from wattray import ray_head
    from wattray.ray_head import Ports

    folder = tmp_path_factory.mktemp("ray-llm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
        http, gcs, dashboard, metrics = free_ports(4)
        process = ray_head.start(4, Ports(gcs, dashboard, metrics), folder / "head.log", "ray-llm", lambda _: None)
        try:
            ray.init(f"127.0.0.1:{gcs}", log_to_driver=False)
            yield Head(http, f"http://127.0.0.1:{dashboard}", folder)
        finally:
            ray.shutdown()
            ray_head.end(process)


@pytest.fixture(scope="module")
def before(head: Head) -> Answers:
    return Answers.of(head, head.deploy(config(head.port, "ray.serve.llm:build_openai_app", {"num_replicas": 1})))


@pytest.fixture(scope="module")
def after(head: Head, before: Answers) -> Answers:
    return Answers.of(head, head.deploy(config(head.port, "wattray.serve:build_openai_app", {"num_replicas": 1})))


def test_one_changed_line_leaves_the_answers_as_they_are(before: Answers, after: Answers) -> None:
    pairs = zip(before.config.splitlines(), after.config.splitlines(), strict=True)
    assert [old.strip() for old, new in pairs if old != new] == ["import_path: ray.serve.llm:build_openai_app"]
    assert after.texts() == before.texts()
    assert all(text for text in after.texts())


def test_answers_tell_energy_and_tenant(before: Answers, after: Answers) -> None:
    assert all("energy_j" not in usage for usage in before.usages())
    for old, new in zip(before.usages(), after.usages(), strict=True):
        assert new["energy_j"] > 0
        assert {name: value for name, value in new.items() if name != "energy_j"} == {**old, "tenant": "team-a"}


def test_what_tenants_used_adds_up_to_what_they_were_told(head: Head, after: Answers) -> None:
    from actors import runtime

    def used() -> Any:
        return ray.get(runtime.actor(runtime.CLUSTER_MANAGER).usage.remote(), timeout=30).get("team-a")

    head.wait("usage is told", lambda: used() is not None and used().requests >= 3)
    assert (used().input_tokens, used().output_tokens) == (3 * len(QUESTION["prompt"]), 3 * 12)
    assert used().energy_j == pytest.approx(sum(usage["energy_j"] for usage in after.usages()), abs=0.01)


def test_counts_follow_the_planner_and_nothing_else(head: Head, after: Answers) -> None:
    from actors import runtime

    name = "wattray:small-llama--llm-tp1"
    policies = head.autoscaled()
    assert {each: policy["policy_function"] for each, policy in policies.items()} == {
        name: "wattray.serve:PlannedReplicas"
    }
    assert head.running(name) == 1
    forecaster, manager = runtime.actor(runtime.LOAD_FORECASTER), runtime.actor(runtime.pool_manager_name("llm"))

    def loaded() -> bool:
        ray.get(forecaster.observe.remote([(0.0, 1000, 300.0)] * 1000), timeout=30)
        wanted = ray.get(manager.wanted_replicas.remote(), timeout=30)
        return bool(wanted[1, "combined"] == head.running(name) > 1)

    head.wait("the planner's count runs", loaded)
    assert json.loads(head.ask("/v1/completions", QUESTION))["choices"][0]["text"] == after.texts()[0]


def test_rays_own_builder_with_our_server_policy_and_router(head: Head, before: Answers, after: Answers) -> None:
    """Depths one and two: nothing of ray.serve.llm is replaced but the classes that it lets users name."""
    scaling = {
        "min_replicas": 1,
        "max_replicas": 3,
        "upscale_delay_s": 0,
        "downscale_delay_s": 0,
        "policy": {"policy_function": "wattray.serve:PlannedReplicas", "policy_kwargs": {"pool": "llm"}},
    }
    router = {
        "request_router_class": "wattray.serve:PolicyReplicaRouter",
        "request_router_kwargs": {"wattray": MANAGED},
    }
    deployment = {"autoscaling_config": scaling, "request_router_config": router}
    server = "wattray.serve:MeteredLLMServer"
    values = config(head.port, "ray.serve.llm:build_openai_app", deployment, server_cls=server)
    from actors import runtime

    manager = runtime.actor(runtime.pool_manager_name("llm"))
    decided = ray.get(manager.decisions.remote(1000), timeout=30)
    answers = Answers.of(head, head.deploy(values))
    still = ray.get(manager.decisions.remote(1000), timeout=30)
    assert still[: len(decided)] == decided, "the control plane did not outlive the replica that started it"
    assert answers.texts() == before.texts()
    assert all(usage["energy_j"] > 0 and usage["tenant"] == "team-a" for usage in answers.usages())
    assert set(head.autoscaled()) == {"MeteredLLMServer:small-llama"}
