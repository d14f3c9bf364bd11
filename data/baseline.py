"""The losses that a model must beat to have learned anything.

Three models that look at no context: every token equally likely; the frequency
of each token in the training text (add-one smoothed); and its frequency in the
held-out text itself. The last has seen the answers, so no model without context
can do better: a trained model below it uses context.
"""

import collections.abc
import dataclasses
import math

import numpy as np

from data import catalog
from data import config as config_lib

BLEND = "blend"
_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """A loss on held-out text, the ends of documents counted as tokens."""

  nats_per_token: float
  bits_per_byte: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Baseline:
  """The losses of the models without context."""

  uniform: Loss
  train_unigram: Loss
  own_unigram: Loss


def measure(
  config: config_lib.DataConfig,
) -> collections.abc.Mapping[str, Baseline]:
  """Baselines for each held-out split, and for their blend.

  The blend takes tokens of the sources in the shares of the weights, and its
  frequencies are those of one model for all of it.

  Args:
    config: resolved; of kind `datasets`.

  Returns:
    By source name, and under `BLEND`.

  Raises:
    ValueError: no source has a held-out split, or the tokens have no text.
  """
  if config.kind is not config_lib.Kind.DATASETS:
    raise ValueError(
      f"data.kind is {config.kind.value}; baselines are of text: resolve a"
      " recipe first, or use kind datasets"
    )
  names = catalog.eval_sources(config)
  if not names:
    raise ValueError(
      "data.sources have no eval_path; set one to measure its baselines"
    )
  vocab_size = catalog.vocab_size(config)
  train = {source.name: source for source in catalog.open_train(config)}
  baselines, own, trained, tokens_per_byte = {}, [], [], []
  for name in names:
    held_out = catalog.open_eval(config, name)
    counts = _count(held_out, vocab_size)
    own.append(counts / counts.sum())
    counts = _count(train[name], vocab_size) + 1
    trained.append(counts / counts.sum())
    tokens_per_byte.append(held_out.tokens.num_tokens / held_out.num_bytes)
    baselines[name] = _baseline(own[-1], trained[-1], tokens_per_byte[-1])
  weights = np.array([train[name].weight for name in names])
  weights /= weights.sum()
  baselines[BLEND] = _baseline(
    weights @ np.array(own),
    weights @ np.array(trained),
    1 / (weights @ (1 / np.array(tokens_per_byte))),
  )
  return baselines


def _baseline(
  own: np.ndarray, trained: np.ndarray, tokens_per_byte: float
) -> Baseline:
  """Losses of the models on tokens with the frequencies `own`."""

  def loss(probabilities: np.ndarray) -> Loss:
    seen = own > 0
    nats = -float(own[seen] @ np.log(probabilities[seen]))
    return Loss(
      nats_per_token=nats, bits_per_byte=nats / math.log(2) * tokens_per_byte
    )

  return Baseline(
    uniform=loss(np.full(len(own), 1 / len(own))),
    train_unigram=loss(trained),
    own_unigram=loss(own),
  )


def _count(source: catalog.Source, vocab_size: int) -> np.ndarray:
  """How often each token occurs."""
  counts = np.zeros(vocab_size, np.int64)
  for start in range(0, source.tokens.num_tokens, _BLOCK):
    stop = min(start + _BLOCK, source.tokens.num_tokens)
    tokens = source.tokens.read(start, stop)
    counts += np.bincount(tokens, minlength=vocab_size)
  return counts
