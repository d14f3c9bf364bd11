"""Pretraining of a preset on a slice: what the experiments for pods share.

Sequences of 4096, everything in a block computed again in the backward pass, a
rate that warms up, stays and decays. Data is synthetic until it is named.
"""

import collections.abc
import dataclasses
import pathlib

import ml_collections

from data import config as data_config
from model import config as model_config
from model import sharding
from train import balance as balance_lib
from train import config
from train import schedule
from train import step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
  """What differs by slice: its memory.

  Attributes:
    mesh: Of its devices.
    batch_size: Rows of a batch.
    chunk_tokens: See `step.LossConfig`.
  """

  mesh: sharding.MeshConfig
  batch_size: int
  chunk_tokens: int


def choose(
  slices: collections.abc.Mapping[str, Slice], topology: str, *, file: str
) -> Slice:
  """The slice of that name, the argument of the experiment in `file`.

  Raises:
    ValueError: There is none; names those that there are.
  """
  if topology not in slices:
    raise ValueError(
      f"{pathlib.Path(file).name}:{topology}: there is only"
      f" {', '.join(slices)}."
    )
  return slices[topology]


def make(
  model: model_config.ModelConfig,
  where: Slice,
  *,
  peak: float,
  steps: int,
  decay_steps: int,
  balance: balance_lib.BalanceConfig | None = None,
) -> ml_collections.ConfigDict:
  """The experiment, as its file returns it.

  Args:
    model: What is trained.
    where: On what.
    peak: Learning rate between warm-up and decay.
    steps: Of the run.
    decay_steps: The last of them.
    balance: Of its experts.
  """
  return config.to_config_dict(
    config.RunConfig(
      model=model,
      execution=model_config.ExecutionConfig(remat="full"),
      mesh=where.mesh,
      data=data_config.DataConfig(
        kind=data_config.Kind.SYNTHETIC, vocab_size=model.vocab_size
      ),
      balance=balance or balance_lib.BalanceConfig(),
      loss=step.LossConfig(chunk_tokens=where.chunk_tokens),
      schedule=schedule.ScheduleConfig(
        kind="wsd", peak=peak, warmup_steps=2000, decay_steps=decay_steps
      ),
      run=config.LoopConfig(
        steps=steps, batch_size=where.batch_size, seq_len=4096
      ),
    )
  )
