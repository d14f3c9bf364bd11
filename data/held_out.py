"""The batches of an evaluation: a held-out split in order, each token once."""

import collections.abc
import math

import numpy as np

from data import batch as batch_lib
from data import catalog


class EvalBatches:
  """A pass over a held-out split, the same each time it is iterated.

  Attributes:
    num_tokens: targets that count (loss_weights 1), over all hosts.
    num_bytes: UTF-8 text that they stand for. A pass over part of the split
      takes the split's average bytes per token.
  """

  def __init__(
    self,
    source: catalog.Source,
    *,
    seq_len: int,
    batch_size: int,
    num_batches: int | None,
    first_row: int,
    num_rows: int,
    mask_documents: bool,
  ):
    self._source = source
    self._seq_len = seq_len
    self._batch_size = batch_size
    self._first_row = first_row
    self._num_rows = num_rows
    self._mask_documents = mask_documents
    split_tokens = source.tokens.num_tokens
    whole = math.ceil(split_tokens / (seq_len * batch_size))
    self._num_batches = whole if num_batches is None else num_batches
    if self._num_batches > whole:
      raise ValueError(
        f"num_batches is {num_batches}, but the held-out split of"
        f" {source.name} has {whole}; ask for that many or fewer"
      )
    self.num_tokens = min(
      split_tokens, self._num_batches * batch_size * seq_len
    )
    self.num_bytes = source.num_bytes * self.num_tokens / split_tokens

  def __len__(self) -> int:
    return self._num_batches

  def __iter__(self) -> collections.abc.Iterator[batch_lib.Batch]:
    for number in range(self._num_batches):
      first = number * self._batch_size + self._first_row
      yield self._batch(first * self._seq_len)

  def _batch(self, start: int) -> batch_lib.Batch:
    """Rows whose first target is token `start` of the split."""
    size = self._num_rows * self._seq_len
    end = self._source.tokens.num_tokens
    # Before the first token is an eos, as before every other document.
    stream = np.full(size + 1, self._source.eos_id, np.int64)
    if start < end:
      begin, stop = max(start - 1, 0), min(start + size, end)
      tokens = self._source.tokens.read(begin, stop)
      offset = begin - (start - 1)
      stream[offset : offset + len(tokens)] = tokens
    starts = np.arange(self._num_rows) * self._seq_len
    rows = stream[starts[:, None] + np.arange(self._seq_len + 1)]
    batch = batch_lib.make(
      rows, eos_id=self._source.eos_id, mask_documents=self._mask_documents
    )
    return batch_lib.pad(batch, np.clip(end - start - starts, 0, self._seq_len))
