r"""Kanana-1.5-2.1B on a TPU slice of 256 chips.

4.2M tokens an update in sequences of 4096, FSDP over 16 chips in 16 groups.

The argument is the slice: v6e-256 (also without one) or v5e-256. What a
device holds and does there: reports/kanana_1_5_2b_*.txt, by //train:compile.

  bazel run --config=tpu //train:main -- --workdir=DIR \
      --config=train/configs/kanana_1_5_2b.py:v6e-256

Steps, rate and schedule are a start of one's own: Kakao has not published its
own in full. Data is synthetic until it is named: --config.data.kind=datasets
and sources, best in a copy of this file.
"""

import dataclasses

from data import config as data_config
from model import config as model_config
from model import sharding
from model.presets import kanana
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
    mesh=sharding.MeshConfig(data=16, fsdp=16),
    batch_size=1024,
    chunk_tokens=4096,
  ),
}


def get_config(topology: str = "v6e-256"):
  """See the module's docstring."""
  if topology not in _SLICES:
    raise ValueError(
      f"kanana_1_5_2b.py:{topology}: there is only {', '.join(_SLICES)}."
    )
  chosen = _SLICES[topology]
  model = kanana.v1_5_2b()
  return config.to_config_dict(
    config.RunConfig(
      model=model,
      execution=model_config.ExecutionConfig(remat="full"),
      mesh=chosen.mesh,
      data=data_config.DataConfig(
        kind=data_config.Kind.SYNTHETIC, vocab_size=model.vocab_size
      ),
      loss=step.LossConfig(chunk_tokens=chosen.chunk_tokens),
      schedule=schedule.ScheduleConfig(
        kind="wsd", peak=4e-4, warmup_steps=2000, decay_steps=100_000
      ),
      run=config.LoopConfig(
        steps=700_000, batch_size=chosen.batch_size, seq_len=4096
      ),
    )
  )
