"""What a run trains on: the data settings, validated.

Three kinds of data:

  recipe:    a corpus that Cacao prepares on first use (`data/recipes.py`)
  datasets:  directories written by `//tools/tokenize`
  synthetic: uniform random tokens, for benchmarks that need no files
"""

import dataclasses
import enum


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
    path: dataset directory to train on. Empty for `recipe`, which fills it in.
    eval_path: dataset directory held out for evaluation; empty if none.
  """

  name: str
  weight: float = 1.0
  path: str = ""
  eval_path: str = ""

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
        " positive number (remove the source to leave it out)"
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
