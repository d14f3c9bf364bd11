r"""Kanana-1.5-8B on a TPU slice of 256 chips.

4.2M tokens an update in sequences of 4096 (v5e: 2.1M), FSDP over 16 chips in 16
groups (v5e: 32 in 8).

The argument is the slice: v6e-256 (also without one) or v5e-256. What a
device holds and does there: reports/kanana_1_5_8b_*.txt, by //train:compile.

  bazel run --config=tpu //train:main -- --workdir=DIR \
      --config=train/configs/kanana_1_5_8b.py:v6e-256

Steps, rate and schedule are a start of one's own: Kakao has not published its
own in full. Data is synthetic until it is named: --config.data.kind=datasets
and sources, best in a copy of this file.
"""

from model import sharding
from model.presets import kanana
from train import pod_run

_SLICES = {
  "v6e-256": pod_run.Slice(
    mesh=sharding.MeshConfig(data=16, fsdp=16),
    batch_size=1024,
    chunk_tokens=4096,
  ),
  "v5e-256": pod_run.Slice(
    mesh=sharding.MeshConfig(data=8, fsdp=32),
    batch_size=512,
    chunk_tokens=2048,
  ),
}


def get_config(topology: str = "v6e-256"):
  """See the module's docstring."""
  return pod_run.make(
    kanana.v1_5_8b(),
    pod_run.choose(_SLICES, topology, file=__file__),
    peak=3e-4,
    steps=700_000,
    decay_steps=100_000,
  )
