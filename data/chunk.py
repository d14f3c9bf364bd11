"""Documents to sequences: which tokens are in every sample of one source.

The documents of a source, in a new order each epoch, are laid end to end
without end: one stream. Chunk k of it is the seq_len + 1 tokens from
k * seq_len on, so neighbours share one token (the last target of one is the
first input of the next, Megatron's rule) and every token is a target exactly
once. The stream does not stop at an epoch's end, so no remainder is dropped.

Chunks are drawn in a shuffled order too, or the pieces of a long document would
come one after another: the chunks that begin in one epoch are permuted among
themselves. Everything is computed from the sample's number; nothing is stored
but the document order of the epochs in use.
"""

import collections.abc
import dataclasses
import typing

import numpy as np

from data import permutation

_EPOCHS_KEPT = 4


class TokenSource(typing.Protocol):
  """What a source must offer; see `data/sources`."""

  document_lengths: np.ndarray

  @property
  def num_tokens(self) -> int:
    """All tokens of the documents."""
    ...

  def read(self, start: int, stop: int) -> np.ndarray:
    """Tokens [start, stop) of the documents laid end to end."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
  """Tokens [start, stop) of a document, as it comes in an epoch."""

  epoch: int
  document: int
  start: int
  stop: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Epoch:
  """Order of the documents, and where each begins (one more: the end)."""

  order: np.ndarray
  starts: np.ndarray


class Chunks:
  """The samples of one source.

  Args:
    source: where the tokens are.
    name: the source's name, part of the key of its shuffles.
    seq_len: tokens in a sample, the shared one not counted.
    seed: key of its shuffles.
    shuffle: permute documents and chunks; off: the order of the file.
  """

  def __init__(
    self,
    source: TokenSource,
    *,
    name: str,
    seq_len: int,
    seed: int,
    shuffle: bool,
  ):
    self._source = source
    self._key = (seed, name)
    self._seq_len = seq_len
    self._shuffle = shuffle
    # Where each document begins in the source's own order.
    self._offsets = _running_sum(source.document_lengths)
    self._epochs: dict[int, _Epoch] = {}

  def draw(self, samples: np.ndarray) -> np.ndarray:
    """Chunk numbers (int64) of the samples, numbered as they are drawn."""
    samples = np.asarray(samples, np.int64)
    if not self._shuffle:
      return samples
    epochs = self.epoch(samples)
    chunks = np.empty_like(samples)
    for epoch in np.unique(epochs).tolist():
      # Epoch e owns the chunks that begin in it, and as many samples.
      first, last = (self._first_chunk(e) for e in (epoch, epoch + 1))
      shuffle = permutation.Permutation(
        last - first, key=("chunks", *self._key, epoch)
      )
      mine = epochs == epoch
      chunks[mine] = first + shuffle(samples[mine] - first)
    return chunks

  def epoch(self, chunks: np.ndarray | int) -> np.ndarray:
    """The epochs in which the chunks begin."""
    return np.asarray(chunks) * self._seq_len // self._source.num_tokens

  def read(self, chunk: int) -> np.ndarray:
    """The seq_len + 1 tokens of a chunk."""
    parts = []
    for span in self.spans(chunk):
      offset = int(self._offsets[span.document])
      parts.append(self._source.read(offset + span.start, offset + span.stop))
    return np.concatenate(parts)

  def spans(self, chunk: int) -> collections.abc.Iterator[Span]:
    """The pieces of documents that a chunk is made of, in order."""
    position = chunk * self._seq_len
    end = position + self._seq_len + 1
    while position < end:
      number, within = divmod(position, self._source.num_tokens)
      epoch = self._epoch(number)
      place = int(np.searchsorted(epoch.starts, within, "right")) - 1
      document_start, document_stop = epoch.starts[place : place + 2].tolist()
      length = min(document_stop - within, end - position)
      yield Span(
        epoch=number,
        document=int(epoch.order[place]),
        start=within - document_start,
        stop=within - document_start + length,
      )
      position += length

  def _first_chunk(self, epoch: int) -> int:
    return -(-epoch * self._source.num_tokens // self._seq_len)

  def _epoch(self, number: int) -> _Epoch:
    epoch = self._epochs.get(number)
    if epoch is None:
      lengths = self._source.document_lengths
      order = np.arange(len(lengths))
      if self._shuffle:
        key = ("documents", *self._key, number)
        order = permutation.Permutation(len(lengths), key=key)(order)
      epoch = _Epoch(order=order, starts=_running_sum(lengths[order]))
      # Several threads may read: replace the dict, never change it.
      newest = sorted(self._epochs.items())[1 - _EPOCHS_KEPT :]
      self._epochs = dict([*newest, (number, epoch)])
    return epoch


def _running_sum(values: np.ndarray) -> np.ndarray:
  return np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
