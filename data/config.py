"""What a run trains on: the data settings, validated.

Three kinds of data:

  recipe:    a corpus that Cacao prepares on first use (`data/recipes.py`)
  datasets:  directories written by `//tools/tokenize`
  synthetic: uniform random tokens, for benchmarks that need no files
"""

import dataclasses
import enum
from typing import Any, Literal


class Kind(enum.StrEnum):
  """Where the tokens come from."""

  RECIPE = "recipe"
  DATASETS = "datasets"
  SYNTHETIC = "synthetic"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
  """One source of the mixture.

  Attributes:
    name: unique in the mixture; part of the key of the source's shuffle, so a
      renamed source is read in another order.
    weight: share of the samples, relative to the other weights. Read as the
      decimal it prints as: 0.1 is exactly one tenth.
    path: what to train on: a dataset directory, a Megatron prefix (PREFIX.bin
      and PREFIX.idx), or files of text (a file, a folder or a glob); local or
      any URL that fsspec opens. Empty for `recipe`, which fills it in.
    eval_path: the same, held out for evaluation; empty if none.
    format: of the path; `auto` tells it by what is there.
    field: with the text, or the messages, in files of records.
    held_out: share of the documents that is kept from training and is the
      held-out split, instead of an `eval_path`.
    max_epochs: how often the source may be read; 0: any number of times. What
      happens then is `DataConfig.on_exhaustion`.
  """

  name: str
  weight: float = 1.0
  path: str = ""
  eval_path: str = ""
  format: Literal[
    "auto", "dataset", "megatron", "jsonl", "parquet", "arrow", "text"
  ] = "auto"
  field: str = ""
  held_out: float = 0.0
  max_epochs: float = 0.0

  def __post_init__(self):
    if not self.name:
      raise ValueError("data.sources: name is empty; give every source a name")
    if self.name == "blend":
      raise ValueError(
        "data.sources[blend]: the name is taken by the mixture of all sources;"
        " give the source another one"
      )
    if not 0 < self.weight < float("inf"):
      raise ValueError(
        f"data.sources[{self.name}].weight is {self.weight}; it must be a"
        " positive number (remove the source to leave it out, or let it rest"
        " in a stage by data.stages[...].weights)"
      )
    if not 0 <= self.held_out < 1:
      raise ValueError(
        f"data.sources[{self.name}].held_out is {self.held_out}; it must be a"
        " share of the documents, from 0 to less than 1"
      )
    if self.held_out and self.eval_path:
      raise ValueError(
        f"data.sources[{self.name}] has held_out={self.held_out} and"
        f" eval_path={self.eval_path!r}, two held-out splits; leave one unset"
      )
    if not 0 <= self.max_epochs < float("inf"):
      raise ValueError(
        f"data.sources[{self.name}].max_epochs is {self.max_epochs}; it must be"
        " a positive number, or 0 for any number of epochs"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
  """A part of the run with settings of its own.

  Attributes:
    tokens: after which the next stage begins, in whole batches; 0 in the last
      stage: as long as the run.
    weights: of the sources, in their order, instead of their own; 0: the source
      rests. Empty: their own.
    seq_len: instead of the run's; 0: the run's.
    batch_size: instead of the run's; 0: the run's.
  """

  tokens: int = 0
  weights: tuple[float, ...] = ()
  seq_len: int = 0
  batch_size: int = 0

  def __post_init__(self):
    for field in ("tokens", "seq_len", "batch_size"):
      if getattr(self, field) < 0:
        raise ValueError(
          f"data.stages has {field} {getattr(self, field)}; it must be positive"
          " or 0 (see data.config.StageConfig)"
        )
    if not all(0 <= weight < float("inf") for weight in self.weights):
      raise ValueError(
        f"data.stages has weights {self.weights}; each must be a positive"
        " number, or 0 for a source that rests"
      )
    if self.weights and not any(self.weights):
      raise ValueError(
        f"data.stages has weights {self.weights}; a source must have a positive"
        " one"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceConfig:
  """How documents become sequences.

  Attributes:
    kind: `chunk` lays documents end to end and cuts; `pack` puts whole
      documents beside each other; `chat` trains on the assistant's turns of
      conversations; `preference` gives pairs of answers.
    too_long: documents that are longer than a sequence, of all kinds but
      `chunk`: refused, left out, or cut at an end (`pack` cuts them in pieces
      with either).
    skip_untrainable: leave out conversations of which no token is a target;
      off: refused.
    fim_rate: share of documents in which the middle is moved to the end
      (`chunk` and `pack`).
    fim_spm_rate: share of those in which the suffix comes first.
  """

  kind: Literal["chunk", "pack", "chat", "preference"] = "chunk"
  too_long: Literal["error", "drop", "left", "right"] = "error"
  skip_untrainable: bool = False
  fim_rate: float = 0.0
  fim_spm_rate: float = 0.5

  def __post_init__(self):
    for field in ("fim_rate", "fim_spm_rate"):
      if not 0 <= getattr(self, field) <= 1:
        raise ValueError(
          f"data.sequence.{field} is {getattr(self, field)}; it must be from 0"
          " to 1"
        )
    ignored = []
    if self.kind == "chunk" and self.too_long != "error":
      ignored = ["too_long"]  # It cuts documents anywhere.
    if self.kind in ("chunk", "pack") and self.skip_untrainable:
      ignored = ["skip_untrainable"]
    if self.kind not in ("chunk", "pack") and self.fim_rate:
      ignored = ["fim_rate"]
    for field in ignored:
      raise ValueError(
        f"data.sequence.{field} is {getattr(self, field)!r}, but"
        f" data.sequence.kind is {self.kind}, which does not use it; leave it"
        " unset"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MegatronConfig:
  """What Megatron-LM is told besides, of `mixture="megatron"`.

  Attributes:
    split: its --split: shares of training, validation and test.
    blend: by the `weights` of the sources, or, as Megatron does without any, by
      their `lengths`: at most one epoch of each. One source by its length is no
      blend.
    rounding: of the blend's products: `x86` rounds them, `fused` (the ARM
      wheels of Megatron-Core) does not.
    surplus: its mid_level_dataset_surplus.
    add_extra_token: its add_extra_token_to_sequence; off is not for training.
    eval_samples: size of the validation set, as Megatron was asked for it.
    cache: folder for indices; empty: computed at each start.
  """

  split: str = "1,0,0"
  blend: Literal["weights", "lengths"] = "weights"
  rounding: Literal["x86", "fused"] = "x86"
  surplus: float = 0.005
  add_extra_token: bool = True
  eval_samples: int = 0
  cache: str = ""

  def __post_init__(self):
    for field in ("surplus", "eval_samples"):
      if not 0 <= getattr(self, field) < float("inf"):
        raise ValueError(
          f"data.megatron.{field} is {getattr(self, field)}; it must be 0 or"
          " more"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
  """All data settings of a run.

  Attributes:
    kind: where the tokens come from.
    sources: the mixture. `recipe`: names and weights of the recipe's sources,
      or empty for the recipe's own. `synthetic`: must be empty.
    tokenizer: `datasets` only; folder with the tokenizer.json that made them.
    recipe: `recipe` only; a name from `data.recipes.RECIPES`.
    root: `recipe` only; where it is prepared. Empty: the user's cache
      directory, `$XDG_CACHE_HOME/cacao/data/<recipe>`.
    vocab_size: `synthetic` only; tokens are uniform over it.
    mixture: `weighted` deals samples by exact weights; `megatron` gives the
      samples of Megatron-LM, index by index.
    stages: parts of the run with weights, lengths and batches of their own.
    on_exhaustion: when a source's epochs are used up: `repeat` refuses
      `max_epochs`, `stop` ends the data there, `renormalize` goes on with the
      other sources.
    sequence: how documents become sequences.
    megatron: of the mixture `megatron`.
    seed: key of every shuffle.
    shuffle: permute documents and sequences anew each epoch; off: file order.
    mask_documents: give every document of a row its own segment id and restart
      positions, so that attention can stay inside a document.
    prefetch_batches: batches kept ready ahead of the training step.
    num_workers: processes that make batches; 0: threads of this process, which
      is faster until one thread cannot keep up (data/README.md).
  """

  kind: Kind
  sources: tuple[SourceConfig, ...] = ()
  tokenizer: str = ""
  recipe: str = ""
  root: str = ""
  vocab_size: int = 0
  mixture: Literal["weighted", "megatron"] = "weighted"
  stages: tuple[StageConfig, ...] = ()
  on_exhaustion: Literal["repeat", "stop", "renormalize"] = "repeat"
  sequence: SequenceConfig = SequenceConfig()
  megatron: MegatronConfig = MegatronConfig()
  seed: int = 0
  shuffle: bool = True
  mask_documents: bool = False
  prefetch_batches: int = 2
  num_workers: int = 0

  def __post_init__(self):
    if not isinstance(self.kind, Kind):
      raise ValueError(
        f"data.kind is {self.kind!r}; it must be one of"
        f" {', '.join(kind.value for kind in Kind)}, as data.config.Kind"
      )
    names = [source.name for source in self.sources]
    if len(set(names)) < len(names):
      raise ValueError(
        f"data.sources has the names {names}; every name must be different"
      )
    for field in ("prefetch_batches", "num_workers", "seed"):
      if getattr(self, field) < 0:
        raise ValueError(
          f"data.{field} is {getattr(self, field)}; it must be 0 or more"
        )
    _CHECKS[self.kind](self)
    _check_sequence(self)
    _check_stages(self)
    _check_epochs(self)
    _check_mixture(self)

  def source(self, name: str) -> SourceConfig:
    """The source called `name`; ValueError if there is none."""
    for source in self.sources:
      if source.name == name:
        return source
    raise ValueError(
      f"data.sources has no {name!r}; it has"
      f" {', '.join(source.name for source in self.sources) or 'none'}"
    )


def _check_recipe(config: DataConfig) -> None:
  if not config.recipe:
    raise ValueError("data.recipe is empty; name one, such as 'quickstart'")
  _must_be_unset(config, "tokenizer", "vocab_size")
  for source in config.sources:
    if source.path or source.eval_path:
      raise ValueError(
        f"data.sources[{source.name}].path is set but data.kind is recipe,"
        " which fills in the paths; leave it empty or use kind datasets"
      )


def _check_datasets(config: DataConfig) -> None:
  _must_be_unset(config, "recipe", "root", "vocab_size")
  if not config.sources:
    raise ValueError("data.sources is empty; kind datasets needs one or more")
  if not config.tokenizer:
    raise ValueError(
      "data.tokenizer is empty; give the folder of the tokenizer that made the"
      " datasets"
    )
  for source in config.sources:
    if not source.path:
      raise ValueError(
        f"data.sources[{source.name}].path is empty; give a directory written"
        " by //tools/tokenize"
      )


def _check_synthetic(config: DataConfig) -> None:
  _must_be_unset(config, "recipe", "root", "tokenizer", "sources")
  if config.vocab_size < 2:
    raise ValueError(
      f"data.vocab_size is {config.vocab_size}; kind synthetic needs 2 or more"
    )


def _check_sequence(config: DataConfig) -> None:
  kind = config.sequence.kind
  is_records = kind in ("chat", "preference")
  if is_records and config.kind is not Kind.DATASETS:
    raise ValueError(
      f"data.sequence.kind is {kind}, which reads conversations from files, but"
      f" data.kind is {config.kind.value}; use kind datasets"
    )
  if config.kind is Kind.SYNTHETIC and (
    kind != "chunk" or config.sequence.fim_rate
  ):
    raise ValueError(
      "data.kind is synthetic, which has one document without an end; leave"
      " data.sequence unset"
    )
  if kind == "chat" and not config.mask_documents:
    raise ValueError(
      "data.mask_documents is off, but data.sequence.kind is chat, which puts"
      " several conversations in a row; turn it on"
    )
  for source in config.sources:
    if is_records and source.format in ("dataset", "megatron", "text"):
      raise ValueError(
        f"data.sources[{source.name}].format is {source.format}, which has no"
        f" conversations for data.sequence.kind {kind}; give jsonl, parquet or"
        " arrow files"
      )


def _check_stages(config: DataConfig) -> None:
  for number, stage in enumerate(config.stages):
    where = f"data.stages[{number}]"
    if not stage.tokens and number + 1 < len(config.stages):
      raise ValueError(
        f"{where}.tokens is 0, but another stage follows; say after how many"
        " tokens (0 is for the last stage: as long as the run)"
      )
    if stage.weights and config.kind is Kind.SYNTHETIC:
      raise ValueError(
        f"{where}.weights is {stage.weights} but data.kind is synthetic, which"
        " has one source; leave it unset"
      )
    num_sources = len(config.sources)
    if stage.weights and num_sources and len(stage.weights) != num_sources:
      raise ValueError(
        f"{where}.weights has {len(stage.weights)} numbers for the"
        f" {num_sources} of data.sources; give one for each, 0 for a source"
        " that rests"
      )
    if stage.seq_len and config.sequence.kind != "chunk":
      raise ValueError(
        f"{where}.seq_len is {stage.seq_len}, but data.sequence.kind is"
        f" {config.sequence.kind}: only chunk can go on at another length;"
        " leave it unset"
      )


def _check_epochs(config: DataConfig) -> None:
  limited = [source for source in config.sources if source.max_epochs]
  if limited and config.on_exhaustion == "repeat":
    raise ValueError(
      f"data.sources[{limited[0].name}].max_epochs is"
      f" {limited[0].max_epochs}, but data.on_exhaustion is repeat, which goes"
      " on for ever; set it to stop or renormalize, or remove max_epochs"
    )
  # The sources of a recipe are known when it is resolved.
  known = config.sources or config.kind is not Kind.RECIPE
  if known and not limited and config.on_exhaustion != "repeat":
    raise ValueError(
      f"data.on_exhaustion is {config.on_exhaustion}, but no source has"
      " max_epochs, so none is ever used up; set max_epochs, or leave it repeat"
    )


def _check_mixture(config: DataConfig) -> None:
  if config.mixture == "weighted":
    if config.megatron != MegatronConfig():
      raise ValueError(
        f"data.megatron is {config.megatron} but data.mixture is weighted,"
        " which does not use it; leave it unset or set mixture to megatron"
      )
    return
  if config.kind is not Kind.DATASETS:
    raise ValueError(
      "data.mixture is megatron, which reads PREFIX.bin and PREFIX.idx, but"
      f" data.kind is {config.kind.value}; use kind datasets"
    )
  defaults: dict[str, Any] = {
    "stages": (),
    "on_exhaustion": "repeat",
    "shuffle": True,
    "sequence": SequenceConfig(),
  }
  for field, default in defaults.items():
    if getattr(config, field) != default:
      raise ValueError(
        f"data.{field} is {getattr(config, field)!r} but data.mixture is"
        f" megatron, whose samples are Megatron's; leave it unset"
      )
  for source in config.sources:
    if source.format not in ("auto", "megatron") or source.held_out:
      raise ValueError(
        f"data.sources[{source.name}] has format={source.format},"
        f" held_out={source.held_out} but data.mixture is megatron, which"
        " reads PREFIX.bin and PREFIX.idx and splits by data.megatron.split;"
        " leave both unset"
      )


def _must_be_unset(config: DataConfig, *fields: str) -> None:
  for field in fields:
    if getattr(config, field):
      raise ValueError(
        f"data.{field} is {getattr(config, field)!r} but data.kind is"
        f" {config.kind.value}, which does not use it; leave it unset"
      )


_CHECKS = {
  Kind.RECIPE: _check_recipe,
  Kind.DATASETS: _check_datasets,
  Kind.SYNTHETIC: _check_synthetic,
}
