"""Pairs of answers to sequences, for preference optimisation.

A sample is two neighbouring rows, the chosen answer and then the rejected one,
each after the same prompt; only the tokens of the answer are targets. A row
holds one conversation and padding: its log-probability is a sum over the row
(R. Rafailov et al., "Direct preference optimization", 2023).

A pair is refused or left out as a whole, and cut alike: `left` leaves out
the oldest turns of the prompt on both sides, and then the end of the answers;
`right` cuts off the end alone.

N pairs, T sequence length.
"""

from collections.abc import Mapping, Sequence
import fractions
import itertools
import math
import pathlib
from typing import Any

from jaxtyping import Int
import numpy as np

from data import config as config_lib
from data import examples as examples_lib
from data import messages
from data import permutation
from data import rows as rows_lib
from data import tokenizer as tokenizer_lib
from data import turns
from data.sources import records as records_lib

# A batch is of two epochs at most.
_EPOCHS_KEPT = 2


class Pairs:
  """The samples of one source of preferences.

  Args:
    records: The rows; see `messages.pair`.
    tokenizer: The tokenizer.
    tokenizer_folder: Its folder, with the chat template.
    field: Must be empty: the fields have fixed names.
    name: The source's name, part of the key of its shuffles.
    seq_len: T.
    seed: Key of its shuffles.
    shuffle: Draw the pairs in a new order each epoch; off: that of the files.
    config: What to do with what is too long or has no target.

  Attributes:
    rows_per_sample: 2.
    digest: Changes when any token does.
    num_pairs: In each epoch.
    summary: What became of the rows.

  Raises:
    ValueError: A row cannot be read or used.
  """

  rows_per_sample = 2

  def __init__(
    self,
    records: records_lib.RecordSource,
    *,
    tokenizer: tokenizer_lib.Tokenizer,
    tokenizer_folder: str | pathlib.Path,
    field: str,
    name: str,
    seq_len: int,
    seed: int,
    shuffle: bool,
    config: config_lib.SequenceConfig,
  ):
    if field:
      raise ValueError(
        f"data.sources[{name}].field is {field!r}, but preference data is read"
        " from `prompt`, `chosen` and `rejected`; leave it empty"
      )
    encoder = turns.Encoder(tokenizer_folder)
    max_tokens = seq_len + 1 if config.too_long == "left" else 0

    def encode(rows: Sequence[Mapping[str, Any]]):
      return encode_rows(encoder, rows, max_tokens=max_tokens)

    self._key = (seed, name)
    self._shuffle = shuffle
    self._examples = examples_lib.make(
      records,
      name=name,
      encode=encode,
      key={
        "kind": "preference",
        "max_tokens": max_tokens,
        "tokenizer": tokenizer.fingerprint,
        **encoder.key,
      },
    )
    self.digest = self._examples.digest
    self.summary = examples_lib.select(
      self._examples,
      records,
      name=name,
      limit=seq_len + 1,
      group=2,
      config=config,
    )
    self.num_pairs = len(self._examples.rows) // 2
    self._orders: dict[int, np.ndarray] = {}

  def fill(
    self,
    samples: Int[np.ndarray, "N"],
    rows: rows_lib.Rows,
    places: Int[np.ndarray, "N"],
  ) -> None:
    """Writes samples into rows; see `rows.Sequences`.

    Args:
      samples: Numbers, from 0.
      rows: Of a batch.
      places: Of each sample's first row; the second follows it.
    """
    source = self._examples
    tokens, targets = np.asarray(source.flat), np.asarray(source.targets)
    for sample, first in zip(samples, places, strict=True):
      _, pair = self._locate(int(sample))
      for side in range(2):
        start = source.document_starts[2 * pair + side]
        length = source.document_lengths[2 * pair + side]
        row = rows[first + side]
        row.tokens[:length] = tokens[start : start + length]
        row.is_target[:length] = targets[start : start + length]
        row.is_target[0] = False
        row.is_target[length:] = False
        row.segment_ids[length:] = 0

  def describe(self, sample: int) -> rows_lib.Sample:
    """What a sample is made of: a row of the files, twice."""
    epoch, pair = self._locate(int(sample))
    spans = [
      rows_lib.Span(
        epoch=epoch,
        document=example,
        start=0,
        stop=int(self._examples.document_lengths[example]),
      )
      for example in (2 * pair, 2 * pair + 1)
    ]
    plain = rows_lib.Sample(
      epoch=epoch,
      number=epoch * self.num_pairs + pair,
      documents=tuple(spans),
    )
    return examples_lib.with_rows(plain, self._examples)

  def num_samples(self, epochs: float) -> int:
    """How many of the first samples begin within so many epochs."""
    return math.ceil(fractions.Fraction(str(epochs)) * self.num_pairs)

  def _locate(self, sample: int) -> tuple[int, int]:
    """Epoch and pair of a sample."""
    epoch, position = divmod(sample, self.num_pairs)
    if not self._shuffle:
      return epoch, position
    order = self._orders.get(epoch)
    if order is None:
      key = ("pairs", *self._key, epoch)
      shuffle = permutation.Permutation(self.num_pairs, key=key)
      order = shuffle(np.arange(self.num_pairs))
      # Several threads may read: replace the dict, never change it.
      newest = sorted(self._orders.items())[1 - _EPOCHS_KEPT :]
      self._orders = dict([*newest, (epoch, order)])
    return epoch, int(order[position])


def encode_rows(
  encoder: turns.Encoder,
  rows: Sequence[Mapping[str, Any]],
  *,
  max_tokens: int = 0,
) -> list[list[turns.Example] | ValueError]:
  """The chosen and the rejected example of rows, or what is wrong with one.

  Args:
    encoder: Of the model.
    rows: See `messages.pair`.
    max_tokens: Leave out the oldest turns of longer pairs; 0: no limit.
  """
  results: list[list[turns.Example] | ValueError] = [[] for _ in rows]
  pairs = {}
  for index, row in enumerate(rows):
    try:
      pairs[index] = messages.pair(row)
    except ValueError as error:
      results[index] = error
  sides = [side for pair in pairs.values() for side in pair]
  encoded = itertools.batched(encoder.encode(sides), 2)
  for (index, pair), found in zip(pairs.items(), encoded, strict=True):
    try:
      results[index] = _fit(encoder, pair, _both(found), max_tokens)
    except ValueError as error:
      results[index] = error
  return results


def _fit(
  encoder: turns.Encoder,
  pair: Sequence[messages.Conversation],
  made: list[turns.Example],
  max_tokens: int,
) -> list[turns.Example]:
  """The examples of a pair, shorter if they are too long."""
  if not max_tokens or max(len(e.tokens) for e in made) <= max_tokens:
    return made
  while max(len(e.tokens) for e in made) > max_tokens:
    shorter = _without_oldest_turn(pair)
    if shorter is None:
      break
    pair, made = shorter, _both(encoder.encode(shorter))
  made = [example.cut(max_tokens, was_cut=True) for example in made]
  if not all(example.is_target[1:].any() for example in made):
    raise messages.UntrainableError("an answer is cut off")
  return made


def _both(
  found: Sequence[list[turns.Example] | ValueError],
) -> list[turns.Example]:
  """The one example of each side."""
  made = []
  for side, own in zip(("chosen", "rejected"), found, strict=True):
    if isinstance(own, ValueError):
      raise own
    if not own or not all(example.is_target[1:].any() for example in own):
      raise messages.UntrainableError(f"its {side} has nothing to learn")
    if len(own) > 1:
      raise ValueError(
        f"its {side} has several answers, which the chat template does not"
        " write into one text as the model writes them; let it differ from the"
        " other in the last answer only"
      )
    made += own
  return made


def _without_oldest_turn(
  pair: Sequence[messages.Conversation],
) -> tuple[messages.Conversation, messages.Conversation] | None:
  """Both without the oldest turn of their prompt; None: that is the last."""
  shorter = [turns.without_oldest_turn(side) for side in pair]
  chosen, rejected = shorter
  if chosen is None or rejected is None:
    return None
  for side, rest in zip(pair, (chosen, rejected), strict=True):
    if sum(rest.is_trained) < sum(side.is_trained):
      return None  # It would begin within the answer.
  return chosen, rejected
