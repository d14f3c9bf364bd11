r"""Kanana-MoE-13.4B-A2.3B on a TPU slice of 256 chips.

64 experts of which 8 see a token; no expert parallelism, as Kakao ran it: FSDP
over 16 chips in 16 groups (v5e: 32 in 8). 4.2M tokens an update in sequences of
4096 (v5e: 2.1M). To begin with an upcycled 2.1B:
--config.checkpoint.init_from=DIR

The argument is the slice: v6e-256 (also without one) or v5e-256. What a
device holds and does there: reports/kanana_moe_13b_*.txt, by //train:compile.

  bazel run --config=tpu //train:main -- --workdir=DIR \
      --config=train/configs/kanana_moe_13b.py:v6e-256

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
    kanana.moe_13b(),
    pod_run.choose(_SLICES, topology, file=__file__),
    peak=4e-4,
    steps=250_000,
    decay_steps=50_000,
    balance=balance.BalanceConfig(aux_loss_weight=0.01),
  )
