"""DeepSpeed's own pipeline engine tells the hooks what runs: the real package, on a CPU."""

from typing import Any

import pytest
import torch

from train_jobs.order import SessionError

deepspeed = pytest.importorskip("deepspeed", reason="the extra `deepspeed` is not installed")

MICROBATCHES = 3


@pytest.fixture
def engine(alone: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    from deepspeed.pipe import PipelineModule

    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    # It would be compiled for the occasion.
    monkeypatch.setitem(deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm", False)
    deepspeed.init_distributed("gloo")
    torch.manual_seed(1)
    layers = [torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)]
    module = PipelineModule(layers, num_stages=1, loss_fn=torch.nn.functional.mse_loss)
    asked = {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": MICROBATCHES}
    made, *_ = deepspeed.initialize(
        model=module, optimizer=torch.optim.SGD(module.parameters(), lr=0.1), config={**asked, "train_batch_size": 6}
    )
    return made


def batches() -> Any:
    while True:
        yield torch.ones(2, 4), torch.zeros(2, 4)


def test_the_order_that_deepspeed_runs_is_learnt_and_its_table_comes_back(engine: Any) -> None:
    from train_jobs.deepspeed import attach_deepspeed

    with attach_deepspeed(engine, "speed", strict=True) as energy:
        losses = []
        for _ in range(2):
            engine.eval_batch(batches())
            with energy.iteration():
                losses.append(float(engine.train_batch(batches())))
        program = energy._session.order.program  # type: ignore[union-attr]
    heard = [(step.name, step.microbatch) for step in program]
    assert heard == [(name, n) for n in range(MICROBATCHES) for name in ("forward", "backward")]
    assert losses[1] < losses[0]
    assert engine._INSTRUCTION_MAP is type(engine)._INSTRUCTION_MAP


def test_another_engine_is_refused() -> None:
    from train_jobs.deepspeed import attach_deepspeed

    with pytest.raises(SessionError, match="Linear is no PipelineEngine of DeepSpeed"):
        attach_deepspeed(torch.nn.Linear(1, 1), "speed")
