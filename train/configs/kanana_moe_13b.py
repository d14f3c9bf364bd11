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

import dataclasses

from data import config as data_config
from model import config as model_config
from model import sharding
from model.presets import kanana
from train import balance
from train import config
from train import schedule
from train import step


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Slice:
  """What differs by slice: its memory."""

  mesh: sharding.MeshConfig
  batch_size: int
  chunk_tokens: int


_SLICES = {
  "v6e-256": _Slice(
    mesh=sharding.MeshConfig(data=16, fsdp=16),
    batch_size=1024,
    chunk_tokens=4096,
  ),
  "v5e-256": _Slice(
    mesh=sharding.MeshConfig(data=8, fsdp=32),
    batch_size=512,
    chunk_tokens=2048,
  ),
}


def get_config(topology: str = "v6e-256"):
  """See the module's docstring."""
  if topology not in _SLICES:
    raise ValueError(
      f"kanana_moe_13b.py:{topology}: there is only {', '.join(_SLICES)}."
    )
  chosen = _SLICES[topology]
  model = kanana.moe_13b()
  return config.to_config_dict(
    config.RunConfig(
      model=model,
      execution=model_config.ExecutionConfig(remat="full"),
      mesh=chosen.mesh,
      balance=balance.BalanceConfig(aux_loss_weight=0.01),
      data=data_config.DataConfig(
        kind=data_config.Kind.SYNTHETIC, vocab_size=model.vocab_size
      ),
      loss=step.LossConfig(chunk_tokens=chosen.chunk_tokens),
      schedule=schedule.ScheduleConfig(
        kind="wsd", peak=4e-4, warmup_steps=2000, decay_steps=50_000
      ),
      run=config.LoopConfig(
        steps=250_000, batch_size=chosen.batch_size, seq_len=4096
      ),
    )
  )
