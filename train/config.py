"""A run's configuration, and the only reader of a ConfigDict.

An experiment file builds a `RunConfig` and returns `to_config_dict(...)` of it:
typed where it is written, a locked ConfigDict with command-line overrides
above `main`, frozen dataclasses again below it (`from_config_dict`).
"""

import dataclasses
import functools
from typing import Any

import ml_collections

from data import config as data_config
from data import stages as stages_lib
from model import config as model_config
from model import overrides
from model import schema
from model import sharding
from train import balance as balance_lib
from train import ema as ema_lib
from train import optimizer as optimizer_lib
from train import qk_clip
from train import schedule as schedule_lib
from train import step as step_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
  """The length and shape of the run.

  Attributes:
    steps: Updates in all.
    batch_size: Sequences per update, over all hosts.
    seq_len: Tokens per sequence.
    accumulation: Pieces in which a batch goes through the model.
    seed: Of the initial parameters (data has its own).
    log_every: Steps between console lines.
    log_samples: Write what each step's rows are made of to samples.jsonl.
  """

  steps: int
  batch_size: int
  seq_len: int
  accumulation: int = 1
  seed: int = 0
  log_every: int = 10
  log_samples: bool = False

  def __post_init__(self):
    for name in ("steps", "batch_size", "seq_len", "accumulation", "log_every"):
      if getattr(self, name) < 1:
        raise ValueError(
          f"run.{name}={getattr(self, name)} must be at least 1."
        )
    if self.batch_size % self.accumulation:
      raise ValueError(
        f"run.batch_size={self.batch_size} must be a multiple of "
        f"run.accumulation={self.accumulation}."
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
  """When training states are saved, and from which a run begins.

  One is always saved at the end.

  Attributes:
    every: Steps between checkpoints.
    keep: How many of the newest stay on disk.
    keep_every: Steps whose multiples are never deleted; unset: none.
    init_from: Checkpoint whose parameters the run begins with, such as one made
      by //tools/hf:import; empty: fresh ones. Not read when the run resumes.
  """

  every: int = 1000
  keep: int = 3
  keep_every: int | None = None
  init_from: str = ""

  def __post_init__(self):
    for name in ("every", "keep", "keep_every"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f"checkpoint.{name}={value} must be at least 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
  """Held-out loss and samples, every so often and at the end.

  Attributes:
    every: Steps between evaluations.
    max_batches: Batches per source in evaluations along the way; unset: all.
      The one at the end takes all. A batch has run.batch_size /
      run.accumulation rows: what training holds at a time.
    prompts: Texts to continue.
    sample_tokens: Tokens after the longest prompt; prompts are cut to as many.
    temperature: Of sampling; 0 takes the likeliest token.
  """

  every: int = 1000
  max_batches: int | None = None
  prompts: tuple[str, ...] = ()
  sample_tokens: int = 64
  temperature: float = 0.7

  def __post_init__(self):
    for name in ("every", "max_batches", "sample_tokens"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f"eval.{name}={value} must be at least 1.")
    if self.temperature < 0:
      raise ValueError(f"eval.temperature={self.temperature} must be >= 0.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObserveConfig:
  """What is looked at beside the metrics of every step.

  Attributes:
    profile_at: Steps at which a trace begins (profiler.py, which also says how
      to ask a run that is under way for one).
    profile_every: Steps between traces; unset: none.
    profile_steps: How many steps a trace has.
    layers_every: Steps between statistics of each layer (layer_stats.py), which
      cost about as much as a step; unset: none.
    wandb_project: At Weights & Biases, to which all metrics go too
      (weights_and_biases.py); empty: none.
  """

  profile_at: tuple[int, ...] = ()
  profile_every: int | None = None
  profile_steps: int = 3
  layers_every: int | None = None
  wandb_project: str = ""

  def __post_init__(self):
    for name in ("profile_every", "profile_steps", "layers_every"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f"observe.{name}={value} must be at least 1.")
    if self.profile_at and min(self.profile_at) < 1:
      raise ValueError(
        f"observe.profile_at={self.profile_at} must be steps; the first is 1."
      )
    if self.profile_every and self.profile_every <= self.profile_steps:
      raise ValueError(
        f"observe.profile_every={self.profile_every} must exceed "
        f"observe.profile_steps={self.profile_steps}: a trace ends before the "
        "next one."
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
  """Everything a training run is."""

  model: model_config.ModelConfig
  data: data_config.DataConfig
  schedule: schedule_lib.ScheduleConfig
  run: LoopConfig
  optimizer: optimizer_lib.OptimizerConfig = optimizer_lib.OptimizerConfig()
  loss: step_lib.LossConfig = step_lib.LossConfig()
  balance: balance_lib.BalanceConfig = balance_lib.BalanceConfig()
  ema: ema_lib.EmaConfig = ema_lib.EmaConfig()
  execution: model_config.ExecutionConfig = model_config.ExecutionConfig()
  mesh: sharding.MeshConfig = sharding.MeshConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()
  eval: EvalConfig = EvalConfig()
  observe: ObserveConfig = ObserveConfig()

  def __post_init__(self):
    if self.run.seq_len > self.model.max_seq_len:
      raise ValueError(
        f"run.seq_len={self.run.seq_len} exceeds the model's context, "
        f"model.max_seq_len={self.model.max_seq_len}."
      )
    for number, stage in enumerate(self.data.stages):
      if stage.seq_len > self.model.max_seq_len:
        raise ValueError(
          f"data.stages[{number}].seq_len={stage.seq_len} exceeds the model's "
          f"context, model.max_seq_len={self.model.max_seq_len}."
        )
      if stage.batch_size % self.run.accumulation:
        raise ValueError(
          f"data.stages[{number}].batch_size={stage.batch_size} must be a "
          f"multiple of run.accumulation={self.run.accumulation}."
        )
    if max(self.observe.profile_at, default=0) > self.run.steps:
      raise ValueError(
        f"observe.profile_at={self.observe.profile_at} is after the last step, "
        f"run.steps={self.run.steps}."
      )
    balance_lib.check_model(self.balance, self.model)
    if self.optimizer.qk_clip is not None:
      has_mtp = self.model.mtp is not None and self.loss.mtp_loss_weight > 0
      qk_clip.check_model(self.model, has_mtp=has_mtp)
    self._check_averages()
    if self.eval.prompts and self.data.kind is data_config.Kind.SYNTHETIC:
      raise ValueError(
        f"eval.prompts={self.eval.prompts!r} cannot be encoded: data.kind is "
        "synthetic and has no tokenizer; remove the prompts."
      )
    longest = 2 * self.eval.sample_tokens
    if self.eval.prompts and longest > self.model.max_seq_len:
      raise ValueError(
        f"eval.sample_tokens={self.eval.sample_tokens}: a prompt and its "
        f"sample can be {longest} tokens, more than the model's context, "
        f"model.max_seq_len={self.model.max_seq_len}; ask for fewer."
      )
    schedule_lib.make(self.schedule, run_steps=self.run.steps)

  def _check_averages(self) -> None:
    """Refuses settings under which an average of parameters is wrong."""
    is_free = self.optimizer.kind == "schedule_free"
    if self.ema.decay is None and not is_free:
      return
    given = (
      "optimizer.kind='schedule_free'"
      if is_free
      else f"ema.decay={self.ema.decay}"
    )
    if self.execution.param_dtype != "float32":
      raise ValueError(
        f"execution.param_dtype={self.execution.param_dtype!r} with {given}: "
        "an average moves by less than it can tell apart; set it to 'float32'."
      )
    if not is_free:
      return
    if self.ema.decay is not None:
      raise ValueError(
        f"ema.decay={self.ema.decay} with {given}, which is an average "
        "already; leave ema.decay unset."
      )
    if self.schedule.kind != "constant":
      raise ValueError(
        f"schedule.kind={self.schedule.kind!r} with {given}, which replaces a "
        "decay of the rate; set it to 'constant' (with a warm-up)."
      )
    if balance_lib.moves_biases(self.balance, self.model):
      raise ValueError(
        f"balance.bias_update_rate={self.balance.bias_update_rate} with "
        f"{given}: the average would not follow the biases; set it to 0 and "
        "balance.aux_loss_weight instead, or take another kind."
      )

  def stages(self) -> list[stages_lib.Stage]:
    """The parts of the run, with the shape of their batches."""
    return stages_lib.resolve(
      self.data.stages, seq_len=self.run.seq_len, batch_size=self.run.batch_size
    )


# Settings that no resumed run can change: its arrays have the shapes and dtypes
# that these give, or its place in the data means something by them. What else
# decides the rows (sources, stages, batches) may change for those that are to
# come: data/plan.py sees to it that those before stay the same.
FIXED = (
  "data.kind",
  "data.mask_documents",
  "data.mixture",
  "data.recipe",
  "data.seed",
  "data.sequence",
  "data.shuffle",
  "data.vocab_size",
  "ema.",
  "execution.param_dtype",
  "model.",
  "optimizer.decay",
  "optimizer.first_moment_dtype",
  "optimizer.kind",
  "optimizer.second_moment_dtype",
)

# Settings that may differ when a run is resumed: they change how it is computed
# or what is reported, not the function that is trained.
_MAY_CHANGE = (
  "checkpoint.",
  "data.megatron.cache",
  "data.num_workers",
  "data.prefetch_batches",
  "data.root",
  "eval.",
  "execution.attention",
  "execution.expert",
  "execution.remat",
  "loss.chunk_tokens",
  "mesh.",
  "model.name",
  "observe.",
  "run.accumulation",
  "run.log_every",
  "run.log_samples",
)


def to_config_dict(config: RunConfig) -> ml_collections.ConfigDict:
  """The locked ConfigDict that command-line flags may override."""
  return overrides.to_config_dict(config)


def from_config_dict(
  config: ml_collections.ConfigDict, *, base_dir: str
) -> RunConfig:
  """The typed, validated run.

  Args:
    config: As an experiment file returns it, with overrides applied.
    base_dir: Against which relative data paths are resolved.

  Raises:
    ValueError: Names the field, its value and the fix.
  """
  run = schema.from_dict(RunConfig, overrides.to_plain(config), path="config")
  start = overrides.absolute_path(run.checkpoint.init_from, base_dir)
  return dataclasses.replace(
    run,
    data=_absolute(run.data, base_dir),
    checkpoint=dataclasses.replace(run.checkpoint, init_from=start),
  )


def from_saved(saved: dict[str, Any]) -> RunConfig:
  """The run that `schema.to_dict` wrote into a checkpoint."""
  return schema.from_dict(RunConfig, saved, path="config")


def changes(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
  """Dotted name -> (old, new) of the settings that make another run."""
  flat_old = schema.flatten(schema.to_dict(old))
  flat_new = schema.flatten(schema.to_dict(new))
  differ = {}
  for key in sorted(flat_old.keys() | flat_new.keys()):
    pair = (flat_old.get(key), flat_new.get(key))
    if pair[0] != pair[1] and not _may_change(key, new):
      differ[key] = pair
  return differ


def _may_change(key: str, run: RunConfig) -> bool:
  has_capacity = any(
    isinstance(block.feed_forward, model_config.MoeConfig)
    and block.feed_forward.capacity_factor is not None
    for block in run.model.layers
  )
  # A capacity is of the tokens that a device has at a time.
  if has_capacity and key.startswith(("mesh.", "run.accumulation")):
    return False
  if (
    key == "run.accumulation"
    and run.balance.aux_loss_weight > 0
    and run.balance.aux_loss_scope == "batch"
  ):
    return False
  # Where the data lies does not matter: digests say what it is.
  is_place = key.startswith("data.") and key.endswith(("path", "tokenizer"))
  return is_place or key.startswith(_MAY_CHANGE)


def _absolute(
  data: data_config.DataConfig, base_dir: str
) -> data_config.DataConfig:
  absolute = functools.partial(overrides.absolute_path, base_dir=base_dir)
  return dataclasses.replace(
    data,
    tokenizer=absolute(data.tokenizer),
    root=absolute(data.root),
    megatron=dataclasses.replace(
      data.megatron, cache=absolute(data.megatron.cache)
    ),
    sources=tuple(
      dataclasses.replace(
        source,
        path=absolute(source.path),
        eval_path=absolute(source.eval_path),
      )
      for source in data.sources
    ),
  )
