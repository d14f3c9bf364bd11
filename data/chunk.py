"""Documents to sequences: which tokens are in every sample of one source.

The documents of a source, in a new order each epoch, are laid end to end
without end: one stream. Chunk k of it is the seq_len + 1 tokens from
k * seq_len on, so neighbours share one token (the last target of one is the
first input of the next, Megatron's rule) and every token is a target exactly
once. The stream does not stop at an epoch's end, so no remainder is dropped.

Chunks are drawn in a shuffled order too, or the pieces of a long document would
come one after another: the chunks that begin in one epoch are permuted among
themselves, and the one that runs into the next epoch is drawn last. Everything
is computed from the sample's number; nothing is stored but the document order
of the epochs in use.

Where a run goes on with another sequence length, another section of the stream
begins: it is cut and permuted for itself, from the token on at which the one
before it ends.

N samples, P pieces of documents, T sequence length.
"""

import dataclasses
import fractions
import math
import typing

from jaxtyping import Int
import numpy as np

from data import permutation
from data import ragged
from data import rows as rows_lib

_EPOCHS_KEPT = 4

# Samples drawn at a time: a permutation costs 0.2 ms for one element, or 500.
_BLOCK = 512
_BLOCKS_KEPT = 8


class TokenSource(typing.Protocol):
  """What a source must offer; see `data/sources`.

  A source whose documents lie on disk in one array may have it, memory-mapped,
  as the attribute `flat`, and where each begins in it as `document_starts`, if
  they do not lie end to end. One whose tokens differ between epochs, but not
  their number, may have a method `of_epoch(epoch)` that gives a source.
  """

  document_lengths: np.ndarray

  @property
  def num_tokens(self) -> int:
    """All tokens of the documents."""
    ...

  def read(self, start: int, stop: int) -> np.ndarray:
    """Tokens [start, stop) of the documents laid end to end."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Epoch:
  """Order of the documents, and where each begins (one more: the end)."""

  order: np.ndarray
  starts: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pieces:
  """Pieces of documents, by sample and by place in it; arrays of P.

  Attributes:
    sample: index of the sample that it is in.
    column: place in the sample at which it begins.
    epoch: of the document.
    document: its number.
    start: its first token, counted from the document's.
    length: its tokens, at least one.
  """

  sample: np.ndarray
  column: np.ndarray
  epoch: np.ndarray
  document: np.ndarray
  start: np.ndarray
  length: np.ndarray


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
    self._key = (seed, name)
    self._stream = _Stream(source, key=self._key, shuffle=shuffle)
    self._seq_len = seq_len
    self._shuffle = shuffle
    self._begin = 0
    self._limit: int | None = None
    self._blocks: dict[int, np.ndarray] = {}

  def section(self, *, seq_len: int, begin: int, limit: int | None) -> "Chunks":
    """Samples of a part of the same stream.

    Args:
      seq_len: T of this part.
      begin: the first token of the stream that is in it.
      limit: how many samples it has; None: without end.
    """
    part = Chunks.__new__(Chunks)
    part.__dict__.update(
      self.__dict__, _seq_len=seq_len, _begin=begin, _limit=limit, _blocks={}
    )
    return part

  def fill(
    self,
    samples: Int[np.ndarray, "N"],
    rows: rows_lib.Rows,
    places: Int[np.ndarray, "N"],
  ) -> None:
    """Writes samples into rows; see `rows.Sequences`."""
    samples = np.asarray(samples, np.int64)
    if not len(samples):
      return
    pieces = self._pieces(self.draw(samples))
    width = self._seq_len + 1
    assert rows.tokens.shape[1] == width, (rows.tokens.shape, width)
    first = np.searchsorted(pieces.sample, np.arange(len(samples)))
    number = np.arange(1, len(pieces.sample) + 1) - first[pieces.sample]
    segments = np.repeat(number.astype(np.int32), pieces.length)
    rows.segment_ids[places] = segments.reshape(len(samples), width)
    flat = rows.tokens.reshape(-1, copy=False)
    to = np.asarray(places, np.int64)[pieces.sample] * width + pieces.column
    self._stream.copy(pieces, flat, to)

  def describe(self, sample: int) -> rows_lib.Sample:
    """What a sample is made of."""
    chunk = self.draw(np.array([sample]))
    pieces = self._pieces(chunk)
    return rows_lib.Sample(
      epoch=int(self.epoch(chunk)[0]),
      number=int(chunk[0]),
      documents=tuple(
        rows_lib.Span(
          epoch=epoch, document=document, start=start, stop=start + length
        )
        for epoch, document, start, length in zip(
          pieces.epoch.tolist(),
          pieces.document.tolist(),
          pieces.start.tolist(),
          pieces.length.tolist(),
          strict=True,
        )
      ),
    )

  def num_samples(self, epochs: float) -> int:
    """How many of the first samples are whole within so many epochs."""
    # The decimal that it prints as: a tenth of ten tokens is one.
    tokens = fractions.Fraction(str(epochs)) * self._stream.num_tokens
    return max(0, (math.floor(tokens) - self._begin) // self._seq_len)

  def draw(self, samples: Int[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
    """Chunk numbers (int64) of the samples, numbered as they are drawn."""
    samples = np.asarray(samples, np.int64)
    if not self._shuffle:
      return samples
    numbers, within = np.divmod(samples, _BLOCK)
    chunks = np.empty_like(samples)
    for number in np.unique(numbers).tolist():
      mine = numbers == number
      chunks[mine] = self._block(number)[within[mine]]
    return chunks

  def epoch(self, chunks: Int[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
    """The epochs in which the chunks begin."""
    first = self._begin + np.asarray(chunks) * self._seq_len
    return first // self._stream.num_tokens

  def domain(self, sample: int) -> tuple[int, int]:
    """The chunks (first, end) among which the one of a sample is drawn."""
    if not self._shuffle:
      return sample, sample + 1
    epoch = int(self.epoch(np.array(sample)))
    return self._first_chunk(epoch), self._first_chunk(epoch + 1)

  def _block(self, number: int) -> np.ndarray:
    """Chunk numbers of the samples from number * _BLOCK on."""
    block = self._blocks.get(number)
    if block is None:
      stop = (number + 1) * _BLOCK
      stop = stop if self._limit is None else min(stop, self._limit)
      block = self._permute(np.arange(number * _BLOCK, stop))
      # Several threads may read: replace the dict, never change it.
      newest = list(self._blocks.items())[1 - _BLOCKS_KEPT :]
      self._blocks = dict([*newest, (number, block)])
    return block

  def _permute(self, samples: np.ndarray) -> np.ndarray:
    epochs = self.epoch(samples)
    chunks = np.empty_like(samples)
    for epoch in np.unique(epochs).tolist():
      # Epoch e owns the chunks that begin in it, and as many samples.
      first, end = self._first_chunk(epoch), self._first_chunk(epoch + 1)
      key = ("chunks", *self._key, epoch, *([self._begin] * (self._begin > 0)))
      shuffle = permutation.Permutation(end - first, key=key)
      mine = epochs == epoch
      wanted = samples[mine] - first
      drawn = shuffle(wanted)
      last = end - first - 1
      if self._begin + end * self._seq_len > self._stream.num_tokens * (
        epoch + 1
      ):
        # It runs into the next epoch: it changes places with the last.
        drawn[drawn == last] = shuffle(np.array([last]))
        drawn[wanted == last] = last
      chunks[mine] = first + drawn
    return chunks

  def _first_chunk(self, epoch: int) -> int:
    """The first chunk that begins in an epoch, or the end of the section."""
    tokens = epoch * self._stream.num_tokens - self._begin
    first = max(0, -(-tokens // self._seq_len))
    return first if self._limit is None else min(first, self._limit)

  def _pieces(self, chunks: np.ndarray) -> _Pieces:
    """The pieces of documents that chunks are made of."""
    begin = self._begin + chunks * self._seq_len
    return self._stream.pieces(begin, begin + self._seq_len + 1)


class _Stream:
  """The documents of a source, laid end to end in the order of each epoch."""

  def __init__(self, source: TokenSource, *, key: tuple, shuffle: bool):
    self.num_tokens = int(source.num_tokens)
    self._source = source
    self._key = key
    self._shuffle = shuffle
    # Where each document begins in what is read.
    offsets = getattr(source, "document_starts", None)
    if offsets is None:
      offsets = ragged.running_sum(source.document_lengths)
    self._offsets = offsets
    self._epochs: dict[int, _Epoch] = {}

  def pieces(self, begin: np.ndarray, end: np.ndarray) -> _Pieces:
    """The pieces of documents in tokens [begin, end) of each sample."""
    # What of a sample is in an epoch, for all samples and their epochs.
    first, last = begin // self.num_tokens, (end - 1) // self.num_tokens
    counts = last - first + 1
    sample = np.repeat(np.arange(len(begin)), counts)
    epoch = np.repeat(first, counts) + ragged.ramp(counts)
    base = epoch * self.num_tokens
    low = np.maximum(begin[sample], base)
    high = np.minimum(end[sample], base + self.num_tokens)
    column = low - begin[sample]
    low, high = low - base, high - base
    parts = []
    for number in np.unique(epoch).tolist():
      mine = np.flatnonzero(epoch == number)
      parts.append(self._cut(number, mine, low[mine], high[mine]))
    owner, document, start, length = (
      np.concatenate(part) for part in zip(*parts, strict=True)
    )
    if len(parts) > 1:
      order = np.argsort(owner, kind="stable")
      owner, document = owner[order], document[order]
      start, length = start[order], length[order]
    # Where a piece begins: after those before it in the same interval.
    before = np.cumsum(length) - length
    leads = np.searchsorted(owner, np.arange(len(sample)))
    return _Pieces(
      sample=sample[owner],
      column=column[owner] + before - before[leads][owner],
      epoch=epoch[owner],
      document=document,
      start=start,
      length=length,
    )

  def copy(self, pieces: _Pieces, tokens: np.ndarray, to: np.ndarray) -> None:
    """Writes the tokens of each piece into `tokens` from place `to` on."""
    at = self._offsets[pieces.document] + pieces.start
    places = zip(to.tolist(), at.tolist(), pieces.length.tolist(), strict=True)
    flat = getattr(self._source, "flat", None)
    if flat is not None:
      flat = np.asarray(flat)  # Slices of np.memmap are slower.
      for first, position, length in places:
        tokens[first : first + length] = flat[position : position + length]
      return
    if not hasattr(self._source, "of_epoch"):
      read = self._source.read
      for first, position, length in places:
        tokens[first : first + length] = read(position, position + length)
      return
    readers = {
      epoch: self._source.of_epoch(epoch).read
      for epoch in np.unique(pieces.epoch).tolist()
    }
    for epoch, (first, position, length) in zip(
      pieces.epoch.tolist(), places, strict=True
    ):
      tokens[first : first + length] = readers[epoch](
        position, position + length
      )

  def _cut(self, number, owner, low, high):
    """Documents, with first token and length, of intervals of an epoch."""
    epoch = self._epoch(number)
    first = np.searchsorted(epoch.starts, low, "right") - 1
    counts = np.searchsorted(epoch.starts, high, "left") - first
    place = np.repeat(first, counts) + ragged.ramp(counts)
    starts = epoch.starts[place]
    low, high = np.repeat(low, counts), np.repeat(high, counts)
    start = np.maximum(low - starts, 0)
    length = np.minimum(epoch.starts[place + 1], high) - starts - start
    owner = np.repeat(owner, counts)
    document = epoch.order[place]
    if length.min(initial=1) < 1:  # Empty documents.
      some = length > 0
      owner, document = owner[some], document[some]
      start, length = start[some], length[some]
    return owner, document, start, length

  def _epoch(self, number: int) -> _Epoch:
    epoch = self._epochs.get(number)
    if epoch is None:
      lengths = self._source.document_lengths
      order = np.arange(len(lengths))
      if self._shuffle:
        key = ("documents", *self._key, number)
        order = permutation.Permutation(len(lengths), key=key)(order)
      epoch = _Epoch(order=order, starts=ragged.running_sum(lengths[order]))
      # Several threads may read: replace the dict, never change it.
      newest = sorted(self._epochs.items())[1 - _EPOCHS_KEPT :]
      self._epochs = dict([*newest, (number, epoch)])
    return epoch
