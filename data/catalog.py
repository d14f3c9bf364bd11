"""Opens the sources that a `DataConfig` names, and checks that they agree."""

import collections.abc
import dataclasses

from data import chunk
from data import config as config_lib
from data import tokenizer as tokenizer_lib
from data.sources import array_record
from data.sources import synthetic

# A synthetic stream is as long as a source may be, and its held-out part short
# enough to be read whole.
_SYNTHETIC_TOKENS = 1 << 40
_SYNTHETIC_HELD_OUT = 1 << 16
_SYNTHETIC_EOS = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """An open source.

  Attributes:
    name: its name in the mixture.
    weight: its weight in the mixture.
    tokens: the tokens.
    eos_id: ends every document.
    digest: changes when the tokens do.
    num_bytes: UTF-8 text that the tokens stand for; 0 for synthetic ones.
  """

  name: str
  weight: float
  tokens: chunk.TokenSource
  eos_id: int
  digest: str
  num_bytes: int


def open_train(config: config_lib.DataConfig) -> list[Source]:
  """The sources to train on.

  Raises:
    ValueError: a dataset is missing, damaged or made by another tokenizer.
  """
  if config.kind is config_lib.Kind.SYNTHETIC:
    return [_synthetic(config, _SYNTHETIC_TOKENS, seed=2 * config.seed)]
  fingerprint = _tokenizer(config).fingerprint
  return [
    _dataset(source, source.path, fingerprint) for source in config.sources
  ]


def open_eval(config: config_lib.DataConfig, name: str) -> Source:
  """The held-out split of a source.

  Raises:
    ValueError: there is none, or as `open_train`.
  """
  if name not in eval_sources(config):
    raise ValueError(
      f"data.sources[{name}] has no held-out split; it is there for"
      f" {', '.join(eval_sources(config)) or 'none'}: set its eval_path"
    )
  if config.kind is config_lib.Kind.SYNTHETIC:
    return _synthetic(config, _SYNTHETIC_HELD_OUT, seed=2 * config.seed + 1)
  source = config.source(name)
  return _dataset(source, source.eval_path, _tokenizer(config).fingerprint)


def eval_sources(
  config: config_lib.DataConfig,
) -> collections.abc.Sequence[str]:
  """Names of the sources with a held-out split."""
  if config.kind is config_lib.Kind.SYNTHETIC:
    return ("synthetic",)
  _require_resolved(config)
  return tuple(source.name for source in config.sources if source.eval_path)


def vocab_size(config: config_lib.DataConfig) -> int:
  """Number of token ids; a model needs at least as many."""
  if config.kind is config_lib.Kind.SYNTHETIC:
    return config.vocab_size
  return _tokenizer(config).vocab_size


def _synthetic(
  config: config_lib.DataConfig, num_tokens: int, *, seed: int
) -> Source:
  return Source(
    name="synthetic",
    weight=1.0,
    tokens=synthetic.SyntheticSource(
      vocab_size=config.vocab_size, num_tokens=num_tokens, seed=seed
    ),
    eos_id=_SYNTHETIC_EOS,
    digest=f"synthetic {config.vocab_size} {num_tokens} {seed}",
    num_bytes=0,
  )


def _dataset(
  source: config_lib.SourceConfig, path: str, fingerprint: str
) -> Source:
  tokens = array_record.ArrayRecordSource(path)
  if tokens.manifest.tokenizer != fingerprint:
    raise ValueError(
      f"data.sources[{source.name}]: {path} was made by the tokenizer"
      f" {tokens.manifest.tokenizer[:12]}, but data.tokenizer is"
      f" {fingerprint[:12]}; set data.tokenizer to the one that made it, or"
      " tokenize it again"
    )
  return Source(
    name=source.name,
    weight=source.weight,
    tokens=tokens,
    eos_id=tokens.manifest.eos_id,
    digest=tokens.manifest.digest,
    num_bytes=tokens.manifest.num_bytes,
  )


def _tokenizer(config: config_lib.DataConfig) -> tokenizer_lib.Tokenizer:
  _require_resolved(config)
  return tokenizer_lib.Tokenizer.load(config.tokenizer)


def _require_resolved(config: config_lib.DataConfig) -> None:
  if config.kind is config_lib.Kind.RECIPE:
    raise ValueError(
      f"data.recipe {config.recipe!r} is not prepared yet; pass the config"
      " through data.recipes.resolve first"
    )
