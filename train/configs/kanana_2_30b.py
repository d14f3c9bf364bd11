r"""Kanana-2-30B-A3B on a TPU slice of 256 chips.

Latent attention, 128 experts of which 6 see a token, balanced by a selection
bias. 4.2M tokens an update in sequences of 4096, FSDP over 64 chips in 4
groups.

The argument is the slice: v6e-256 (also without one). What a
device holds and does there: reports/kanana_2_30b_*.txt, by //train:compile.

  bazel run --config=tpu //train:main -- --workdir=DIR \
      --config=train/configs/kanana_2_30b.py:v6e-256

Steps, rate and schedule are a start of one's own: Kakao has not published its
own in full. Data is synthetic until it is named: --config.data.kind=datasets
and sources, best in a copy of this file.
"""

from model import sharding
from model.presets import kanana
from train import balance
from train import pod_run

_SLICES = {
  "v6e-256": pod_run.Slice(
    mesh=sharding.MeshConfig(data=4, fsdp=64),
    batch_size=1024,
    chunk_tokens=4096,
  ),
}


def get_config(topology: str = "v6e-256"):
  """See the module's docstring."""
  return pod_run.make(
    kanana.v2_30b_a3b(),
    pod_run.choose(_SLICES, topology, file=__file__),
    peak=3e-4,
    steps=700_000,
    decay_steps=100_000,
    balance=balance.BalanceConfig(bias_update_rate=1e-3),
  )
