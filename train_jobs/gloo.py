"""Ray Train's torch backend over gloo, loaded where workers are started: the process that starts a job does without
torch, 130 MB of it."""

from typing import Any

from ray.train.backend import Backend, BackendConfig


class GlooConfig(BackendConfig):
    """Says which backend, and no more."""

    @property
    def backend_cls(self) -> type[Backend]:
        return GlooBackend


class GlooBackend(Backend):
    """Ray Train's own, asked for by name when it is needed."""

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        torch_config = _torch_config()
        torch_config.backend_cls().on_start(worker_group, torch_config)

    def on_training_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        torch_config = _torch_config()
        torch_config.backend_cls().on_training_start(worker_group, torch_config)

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        torch_config = _torch_config()
        torch_config.backend_cls().on_shutdown(worker_group, torch_config)


def _torch_config() -> Any:
    from ray.train.torch import TorchConfig

    return TorchConfig(backend="gloo")
