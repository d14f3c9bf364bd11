"""Conversations to sequences, for supervised fine-tuning.

A conversation is a document whose tokens are targets only where the assistant
speaks (`data/turns.py`); short ones lie beside each other as `data/pack.py`
plans. Its last token may be a target only, so T + 1 tokens fit. What is longer
is refused, left out, or cut, as `SequenceConfig.too_long` says:

- `left`: the oldest turns are left out, as few as possible: the system's
  message and the last turns stay, from a message of the user on. Of a last turn
  that alone is too long the end is cut off.
- `right`: the end is cut off.

T sequence length.
"""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

import numpy as np

from data import config as config_lib
from data import examples as examples_lib
from data import messages
from data import pack
from data import rows as rows_lib
from data import tokenizer as tokenizer_lib
from data import turns
from data.sources import records as records_lib


class Chats:
  """The samples of one source of conversations.

  Args:
    records: The rows; see `messages.conversation`.
    tokenizer: The tokenizer.
    tokenizer_folder: Its folder, with the chat template.
    field: With the messages; empty: found.
    name: The source's name, part of the key of its shuffles.
    seq_len: T.
    seed: Key of its shuffles.
    shuffle: As for `pack.Packs`.
    config: What to do with what is too long or has no target.

  Attributes:
    digest: Changes when any token does.
    summary: What became of the rows.
    packs: How the conversations are packed.

  Raises:
    ValueError: A row cannot be read or used.
  """

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
    encoder = turns.Encoder(tokenizer_folder)
    max_tokens = seq_len + 1 if config.too_long == "left" else 0

    def encode(rows: Sequence[Mapping[str, Any]]):
      return encode_rows(encoder, rows, field=field, max_tokens=max_tokens)

    self._examples = examples_lib.make(
      records,
      name=name,
      encode=encode,
      key={
        "kind": "chat",
        "field": field,
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
      group=1,
      config=config,
    )
    self.packs = pack.Packs(
      self._examples,
      name=name,
      seq_len=seq_len,
      seed=seed,
      shuffle=shuffle,
      config=config,
    )

  def fill(
    self, samples: np.ndarray, rows: rows_lib.Rows, places: np.ndarray
  ) -> None:
    """Writes samples into rows; see `rows.Sequences`."""
    self.packs.fill(samples, rows, places)

  def describe(self, sample: int) -> rows_lib.Sample:
    """What a sample is made of; a document is a row of the files."""
    return examples_lib.with_rows(self.packs.describe(sample), self._examples)

  def num_samples(self, epochs: float) -> int:
    """How many of the first samples begin within so many epochs."""
    return self.packs.num_samples(epochs)


def encode_rows(
  encoder: turns.Encoder,
  rows: Sequence[Mapping[str, Any]],
  *,
  field: str,
  max_tokens: int = 0,
) -> list[list[turns.Example] | ValueError]:
  """The examples of rows, or what is wrong with one.

  Args:
    encoder: Of the model.
    rows: See `messages.conversation`.
    field: With the messages; empty: found.
    max_tokens: As for `turns.Encoder.encode`.
  """
  results: list[list[turns.Example] | ValueError] = [[] for _ in rows]
  conversations = {}
  for index, row in enumerate(rows):
    try:
      conversations[index] = messages.conversation(row, field=field)
    except ValueError as error:
      results[index] = error
  found = encoder.encode(list(conversations.values()), max_tokens=max_tokens)
  for index, result in zip(conversations, found, strict=True):
    results[index] = result
  return results
