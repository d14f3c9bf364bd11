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
    mesh=sharding.MeshConfig(data=4, fsdp=64),
    batch_size=1024,
    chunk_tokens=4096,
  ),
}


def get_config(topology: str = "v6e-256"):
  """See the module's docstring."""
  if topology not in _SLICES:
    raise ValueError(
      f"kanana_2_30b.py:{topology}: there is only {', '.join(_SLICES)}."
    )
  chosen = _SLICES[topology]
  model = kanana.v2_30b_a3b()
  return config.to_config_dict(
    config.RunConfig(
      model=model,
      execution=model_config.ExecutionConfig(remat="full"),
      mesh=chosen.mesh,
      balance=balance.BalanceConfig(bias_update_rate=1e-3),
      data=data_config.DataConfig(
        kind=data_config.Kind.SYNTHETIC, vocab_size=model.vocab_size
      ),
      loss=step.LossConfig(chunk_tokens=chosen.chunk_tokens),
      schedule=schedule.ScheduleConfig(
        kind="wsd", peak=3e-4, warmup_steps=2000, decay_steps=100_000
      ),
      run=config.LoopConfig(
        steps=700_000, batch_size=chosen.batch_size, seq_len=4096
      ),
    )
  )
