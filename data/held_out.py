"""The batches of an evaluation: a held-out split in order, each target once."""

import abc
import collections.abc
import math

import numpy as np

from data import batch as batch_lib
from data import catalog
from data import rows as rows_lib
from data import tokenizer as tokenizer_lib


class EvalBatches(abc.ABC):
  """A pass over a held-out split, the same each time it is iterated.

  Attributes:
    num_tokens: targets that count (loss_weights 1), over all hosts.
    num_bytes: UTF-8 text that they stand for. A pass over part of a split of
      tokens takes the split's average bytes per token.
  """

  num_tokens: int
  num_bytes: float

  def __init__(self, *, name: str, whole: int, num_batches: int | None):
    """`whole` batches are in the split."""
    self._num_batches = whole if num_batches is None else num_batches
    if self._num_batches > whole:
      raise ValueError(
        f"num_batches is {num_batches}, but the held-out split of {name} has"
        f" {whole}; ask for that many or fewer"
      )

  def __len__(self) -> int:
    return self._num_batches

  def __iter__(self) -> collections.abc.Iterator[batch_lib.Batch]:
    for number in range(self._num_batches):
      yield self._batch(number)

  @abc.abstractmethod
  def _batch(self, number: int) -> batch_lib.Batch:
    """This host's part of a batch."""


class SampleBatches(EvalBatches):
  """The samples of conversations or pairs: what is to be predicted, once."""

  def __init__(
    self,
    sequences: rows_lib.Sequences,
    *,
    name: str,
    tokenizer: tokenizer_lib.Tokenizer,
    seq_len: int,
    batch_size: int,
    num_batches: int | None,
    first_row: int,
    num_rows: int,
    mask_documents: bool,
  ):
    self._sequences = sequences
    self._seq_len = seq_len
    self._batch_size = batch_size
    self._rows = slice(first_row, first_row + num_rows)
    self._mask_documents = mask_documents
    self._each = getattr(sequences, "rows_per_sample", 1)
    self._num_samples = sequences.num_samples(1.0)
    whole = math.ceil(self._num_samples * self._each / batch_size)
    super().__init__(name=name, whole=whole, num_batches=num_batches)
    self.num_tokens = 0
    self.num_bytes = 0
    for number in range(len(self)):
      rows = self._fill(number)
      for tokens, is_target in zip(rows.tokens, rows.is_target, strict=True):
        targets = tokens[1:][is_target[1:]]
        self.num_tokens += len(targets)
        self.num_bytes += len(tokenizer.decode(targets).encode())

  def _batch(self, number: int) -> batch_lib.Batch:
    rows = self._fill(number)[self._rows]
    return batch_lib.make(rows, mask_documents=self._mask_documents)

  def _fill(self, number: int) -> rows_lib.Rows:
    """All rows of a batch; those after the last sample are padding."""
    rows = rows_lib.empty(self._batch_size, self._seq_len)
    first = number * self._batch_size // self._each
    stop = min(first + self._batch_size // self._each, self._num_samples)
    samples = np.arange(first, stop)
    self._sequences.fill(samples, rows, (samples - first) * self._each)
    end = len(samples) * self._each
    rows.segment_ids[end:] = 0
    rows.is_target[end:] = False
    return rows


class TokenBatches(EvalBatches):
  """The tokens of documents, laid end to end."""

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
    split_tokens = source.tokens.num_tokens
    whole = math.ceil(split_tokens / (seq_len * batch_size))
    super().__init__(name=source.name, whole=whole, num_batches=num_batches)
    self._source = source
    self._tokens = source.tokens
    self._seq_len = seq_len
    self._batch_size = batch_size
    self._first_row = first_row
    self._num_rows = num_rows
    self._mask_documents = mask_documents
    lengths = source.tokens.document_lengths
    self._document_ends = np.cumsum(lengths, dtype=np.int64)
    self.num_tokens = min(split_tokens, len(self) * batch_size * seq_len)
    self.num_bytes = source.num_bytes * self.num_tokens / split_tokens

  def _batch(self, number: int) -> batch_lib.Batch:
    # The first target is token `start` of the split.
    start = number * self._batch_size + self._first_row
    start *= self._seq_len
    size = self._num_rows * self._seq_len
    end = self._tokens.num_tokens
    # Before the first token is an eos, as before every other document.
    stream = np.full(size + 1, self._source.eos_id, np.int32)
    if start < end:
      begin, stop = max(start - 1, 0), min(start + size, end)
      tokens = self._tokens.read(begin, stop)
      offset = begin - (start - 1)
      stream[offset : offset + len(tokens)] = tokens
    # Documents end before these places of the stream; the first does so before
    # token 0, where that eos stands.
    ends = np.concatenate([[0], self._document_ends]) - (start - 1)
    begins = np.zeros(size + 1, np.int32)
    begins[ends[(ends >= 0) & (ends <= size)]] = 1
    starts = np.arange(self._num_rows) * self._seq_len
    index = starts[:, None] + np.arange(self._seq_len + 1)
    begins = begins[index]
    begins[:, 0] = 1
    rows = rows_lib.Rows(
      tokens=stream[index],
      segment_ids=np.cumsum(begins, axis=1, dtype=np.int32),
      is_target=np.ones(index.shape, bool),
    )
    batch = batch_lib.make(rows, mask_documents=self._mask_documents)
    return batch_lib.pad(batch, np.clip(end - start - starts, 0, self._seq_len))
