"""The measured profiles the benchmarks plan for: GPT-3 175B and Bloom 176B, eight stages of eight GPUs."""

from dataclasses import dataclass
from pathlib import Path

from control_plane.training.dag import Dag
from control_plane.training.pipeline import build_dag, schedule_named
from control_plane.training.profile import Profile, read_profile

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "perseus"
GPUS_PER_STAGE = 8


@dataclass(frozen=True, slots=True)
class Measured:
    """A profile at one tenth scale, per GPU, and what a waiting GPU draws."""

    name: str
    file: str
    blocking_power_w: float

    def profile(self, stages: int = 8) -> Profile:
        text = (DATA / "stage_profile" / f"{self.file}.csv").read_text(encoding="utf-8")
        profile = read_profile(text).scaled(10, 10, GPUS_PER_STAGE)
        return profile if stages == profile.stages else profile.resampled(stages)

    def dag(self, stages: int, microbatches: int, schedule: str = "1f1b", chunks: int = 1) -> Dag:
        order = schedule_named(schedule, stages, microbatches, chunks)
        return build_dag(order, self.profile(stages), self.blocking_power_w * GPUS_PER_STAGE)


GPT3_A100 = Measured("GPT-3 A100", "gpt3-175b+a100_sxm_bf16", 83.64)
BLOOM_A100 = Measured("Bloom A100", "bloom+a100_sxm_bf16", 83.64)
GPT3_A40 = Measured("GPT-3 A40", "gpt3-175b+a40_bf16", 70.38)
PROFILES = (GPT3_A100, BLOOM_A100, GPT3_A40)
