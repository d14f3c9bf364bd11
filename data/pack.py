"""Documents to sequences: whole documents beside each other, planned ahead.

Best fit decreasing: from the longest document to the shortest, each goes into
the row with the least room that it fits in, or begins a new one (D. S. Johnson,
"Near-optimal bin packing algorithms", 1973). Documents of equal length are the
same to it, so it is done for all of them at once, as by M. Krell et al.,
"Efficient sequence packing without cross-contamination" (2021), and the plan
depends on the lengths alone: all epochs have equally many packs. Which document
fills a place is drawn anew each epoch among those of the place's length, and so
is the order of the packs. All is computed from the sample's number, so packs
are read at any place, on any host.

A pack has room for T + 1 tokens: the last is a target only. The first token of
a document is never one. What is longer is cut into pieces that share a token,
so that each token but the first of the document is a target once.

N rows, T sequence length, P packs, I items (documents, or pieces of them).
"""

import bisect
import dataclasses
import fractions
import math

from jaxtyping import Int
import numpy as np

from data import chunk
from data import config as config_lib
from data import permutation
from data import ragged
from data import rows as rows_lib

# A batch is of two epochs at most.
_EPOCHS_KEPT = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """Which lengths lie beside each other.

  Attributes:
    starts: Where each pack begins in `ranks`; one more: the end.
    ranks: Places of the items in the order of falling length, pack by pack;
      within a pack from the longest to the shortest.
  """

  starts: Int[np.ndarray, "P+1"]
  ranks: Int[np.ndarray, "I"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
  """What packing makes of a source, once an epoch.

  Attributes:
    num_documents: Of the source.
    num_untrainable: Left out, having fewer than two tokens: no target.
    num_dropped: Left out, being too long.
    num_cut: Cut into pieces, being too long.
    num_packs: P.
    fill: Share of the places of all packs that hold a token.
  """

  num_documents: int
  num_untrainable: int
  num_dropped: int
  num_cut: int
  num_packs: int
  fill: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Items:
  """What is placed: documents, or pieces of them, in the order of the file."""

  documents: Int[np.ndarray, "I"]
  starts: Int[np.ndarray, "I"]
  lengths: Int[np.ndarray, "I"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Epoch:
  """The item of each rank, and the order of the packs."""

  items: Int[np.ndarray, "I"]
  packs: Int[np.ndarray, "P"]


class Packs:
  """The samples of one source: packs of its documents.

  Args:
    tokens: The documents. The source may also have `document_starts`, if they
      do not lie end to end; `targets`, an array beside `flat` that says which
      tokens may be targets; and `of_epoch`, which gives the source of an epoch
      (`data/fill_middle.py`).
    name: The source's name, part of the key of its shuffles.
    seq_len: T.
    seed: Key of its shuffles.
    shuffle: Draw the documents of each length, and the packs, in a new order
      each epoch; off: packs in the order of their first documents.
    config: What to do with documents that are longer than T + 1 tokens.

  Attributes:
    num_packs: P, in each epoch.
    summary: What became of the documents.

  Raises:
    ValueError: A document is too long, or none is left.
  """

  def __init__(
    self,
    tokens: chunk.TokenSource,
    *,
    name: str,
    seq_len: int,
    seed: int,
    shuffle: bool,
    config: config_lib.SequenceConfig,
  ):
    self._tokens = tokens
    self._key = (seed, name)
    self._shuffle = shuffle
    self._capacity = seq_len + 1
    lengths = np.asarray(tokens.document_lengths, np.int64)
    self._items = _cut(lengths, name, seq_len, config)
    # Where each item begins in the source.
    starts = getattr(tokens, "document_starts", None)
    starts = ragged.running_sum(lengths) if starts is None else starts
    self._offsets = starts[self._items.documents] + self._items.starts
    falling = np.sort(self._items.lengths)[::-1]
    self._plan = plan(falling, capacity=self._capacity)
    self.num_packs = len(self._plan.starts) - 1
    is_long = lengths > self._capacity
    is_dropped = is_long & (config.too_long == "drop")
    self.summary = Summary(
      num_documents=len(lengths),
      num_untrainable=int((lengths < 2).sum()),
      num_dropped=int(is_dropped.sum()),
      num_cut=int((is_long & ~is_dropped).sum()),
      num_packs=self.num_packs,
      fill=int(falling.sum()) / (self.num_packs * self._capacity),
    )
    self._epochs: dict[int, _Epoch] = {}

  def fill(
    self,
    samples: Int[np.ndarray, "N"],
    rows: rows_lib.Rows,
    places: Int[np.ndarray, "N"],
  ) -> None:
    """Writes samples into rows; see `rows.Sequences`."""
    samples = np.asarray(samples, np.int64)
    places = np.asarray(places)
    epochs = samples // self.num_packs
    for number in np.unique(epochs).tolist():
      mine = epochs == number
      self._fill(number, samples[mine] % self.num_packs, rows, places[mine])

  def describe(self, sample: int) -> rows_lib.Sample:
    """What a sample is made of."""
    epoch, position = divmod(int(sample), self.num_packs)
    pack = self._epoch(epoch).packs[position]
    items, _ = self._items_of(epoch, np.array([pack]))
    return rows_lib.Sample(
      epoch=epoch,
      number=epoch * self.num_packs + int(pack),
      documents=tuple(
        rows_lib.Span(
          epoch=epoch,
          document=int(self._items.documents[item]),
          start=int(self._items.starts[item]),
          stop=int(self._items.starts[item] + self._items.lengths[item]),
        )
        for item in items
      ),
    )

  def num_samples(self, epochs: float) -> int:
    """How many of the first samples begin within so many epochs."""
    # The decimal that it prints as: a tenth of ten packs is one.
    return math.ceil(fractions.Fraction(str(epochs)) * self.num_packs)

  def _fill(
    self,
    epoch: int,
    positions: Int[np.ndarray, "N"],
    rows: rows_lib.Rows,
    places: Int[np.ndarray, "N"],
  ) -> None:
    """Samples of one epoch."""
    packs = self._epoch(epoch).packs[positions]
    items, counts = self._items_of(epoch, packs)
    lengths = self._items.lengths[items]
    # Where each item begins in its row, and in the source.
    ends = np.cumsum(lengths)
    lasts = np.cumsum(counts) - 1
    used = np.diff(ends[lasts], prepend=0)
    begins = ends - lengths - np.repeat(ends[lasts] - used, counts)
    offsets = self._offsets[items]
    tokens = self._tokens
    if (of_epoch := getattr(tokens, "of_epoch", None)) is not None:
      tokens = of_epoch(epoch)
    read = _reader(tokens)
    targets = getattr(tokens, "targets", None)
    spans = zip(
      np.repeat(places, counts).tolist(),
      begins.tolist(),
      offsets.tolist(),
      lengths.tolist(),
      strict=True,
    )
    for place, begin, offset, length in spans:
      end = offset + length
      rows.tokens[place, begin : begin + length] = read(offset, end)
      if targets is not None:
        rows.is_target[place, begin : begin + length] = targets[offset:end]
    first = 0
    for place, count, stop in zip(places, counts, used, strict=True):
      own = lengths[first : first + count]
      numbers = np.arange(1, 1 + count, dtype=np.int32)
      rows.segment_ids[place, :stop] = np.repeat(numbers, own)
      rows.segment_ids[place, stop:] = 0
      rows.is_target[place, stop:] = False
      first += count
    rows.is_target[np.repeat(places, counts), begins] = False

  def _items_of(
    self, epoch: int, packs: Int[np.ndarray, "N"]
  ) -> tuple[Int[np.ndarray, "_"], Int[np.ndarray, "N"]]:
    """The items of the packs, one after another, and how many each has."""
    starts = self._plan.starts[packs]
    counts = self._plan.starts[packs + 1] - starts
    firsts = np.cumsum(counts) - counts
    places = np.arange(counts.sum()) + np.repeat(starts - firsts, counts)
    return self._epoch(epoch).items[self._plan.ranks[places]], counts

  def _epoch(self, number: int) -> _Epoch:
    # Without shuffles all epochs are the same.
    number = number if self._shuffle else 0
    epoch = self._epochs.get(number)
    if epoch is None:
      epoch = self._make_epoch(number)
      # Several threads may read: replace the dict, never change it.
      newest = sorted(self._epochs.items())[1 - _EPOCHS_KEPT :]
      self._epochs = dict([*newest, (number, epoch)])
    return epoch

  def _make_epoch(self, number: int) -> _Epoch:
    key = (*self._key, number)
    order = np.arange(len(self._items.lengths))
    if self._shuffle:
      shuffle = permutation.Permutation(len(order), key=("items", *key))
      order = shuffle(order)
    missing = self._capacity - self._items.lengths[order]
    if self._capacity <= 1 << 16:
      missing = missing.astype(np.uint16)  # Sorted by radix.
    items = _narrow(order[np.argsort(missing, kind="stable")])
    if self._shuffle:
      shuffle = permutation.Permutation(self.num_packs, key=("packs", *key))
      return _Epoch(items=items, packs=shuffle(np.arange(self.num_packs)))
    first = np.minimum.reduceat(items[self._plan.ranks], self._plan.starts[:-1])
    return _Epoch(items=items, packs=np.argsort(first, kind="stable"))


def plan(lengths: Int[np.ndarray, "I"], *, capacity: int) -> Plan:
  """Best fit decreasing.

  Args:
    lengths: From 1 to the capacity, falling.
    capacity: Room in a pack.

  Returns:
    As many packs, with as much room left in each, as if the items were placed
    one by one.
  """
  assert len(lengths)
  assert 1 <= lengths[-1] <= lengths[0] <= capacity
  pack_of = np.empty(len(lengths), np.int64)
  num_packs = 0
  open_packs = _OpenPacks(shortest=int(lengths[-1]))
  borders = np.flatnonzero(np.diff(lengths)) + 1
  item = 0
  for end in [*borders.tolist(), len(lengths)]:
    length = int(lengths[item])
    while item < end:
      room, packs = open_packs.take(length)
      if packs is None:
        room = capacity
        num_new = -(-(end - item) // (room // length))
        packs = np.arange(num_packs, num_packs + num_new)
        num_packs += num_new
      # A pack with the least room keeps it until no more items fit in.
      each = room // length
      full = min(len(packs), (end - item) // each)
      last = item + full * each
      pack_of[item:last] = np.repeat(packs[:full], each)
      open_packs.put(room - each * length, packs[:full])
      packs = packs[full:]
      if len(packs) and last < end:
        pack_of[last:end] = packs[0]
        open_packs.put(room - (end - last) * length, packs[:1])
        packs, last = packs[1:], end
      open_packs.put(room, packs)
      item = last
  counts = np.bincount(pack_of, minlength=num_packs)
  return Plan(
    starts=ragged.running_sum(counts),
    ranks=_narrow(np.argsort(pack_of, kind="stable")),
  )


class _OpenPacks:
  """Packs that something fits in, by the room that is left."""

  def __init__(self, *, shortest: int):
    self._shortest = shortest
    self._packs: dict[int, list[np.ndarray]] = {}
    self._rooms: list[int] = []  # The keys, rising.

  def put(self, room: int, packs: np.ndarray) -> None:
    if room < self._shortest or not len(packs):
      return
    if room not in self._packs:
      self._packs[room] = []
      bisect.insort(self._rooms, room)
    self._packs[room].append(packs)

  def take(self, length: int) -> tuple[int, np.ndarray | None]:
    """Some packs with the least room that the length fits in, and that room."""
    place = bisect.bisect_left(self._rooms, length)
    if place == len(self._rooms):
      return 0, None
    room = self._rooms[place]
    packs = self._packs[room].pop()
    if not self._packs[room]:
      del self._packs[room], self._rooms[place]
    return room, packs


def _cut(
  lengths: Int[np.ndarray, "D"],
  name: str,
  seq_len: int,
  config: config_lib.SequenceConfig,
) -> _Items:
  """What is placed of documents of these lengths."""
  is_long = lengths > seq_len + 1
  if is_long.any() and config.too_long == "error":
    raise ValueError(
      f"data.sources[{name}]: {is_long.sum()} of {len(lengths)} documents are"
      f" longer than the {seq_len + 1} tokens that a sequence of {seq_len}"
      f" holds with its last target, the first of them document"
      f" {is_long.argmax()} with {lengths[is_long.argmax()]}; set"
      " data.sequence.too_long to 'drop' (leaves them out) or 'right' (cuts"
      " them in pieces), or raise seq_len"
    )
  counts = np.where(is_long, -(-(lengths - 1) // seq_len), lengths >= 2)
  if config.too_long == "drop":
    counts[is_long] = 0
  if not counts.any():
    raise ValueError(
      f"data.sources[{name}]: none of {len(lengths)} documents can be packed:"
      f" {is_long.sum()} are longer than {seq_len + 1} tokens, the others have"
      " fewer than two; give another source, or raise seq_len"
    )
  documents = np.repeat(np.arange(len(lengths)), counts)
  pieces = np.arange(len(documents))
  pieces -= np.repeat(np.cumsum(counts) - counts, counts)
  starts = pieces * seq_len
  return _Items(
    documents=_narrow(documents),
    starts=_narrow(starts),
    lengths=_narrow(np.minimum(lengths[documents] - starts, seq_len + 1)),
  )


def _reader(tokens: chunk.TokenSource):
  """A function for tokens [start, stop), as quick as the source allows."""
  flat = getattr(tokens, "flat", None)
  if flat is None:
    return tokens.read
  # Slices of np.memmap are slower.
  array = np.asarray(flat)
  return lambda start, stop: array[start:stop]


def _narrow(values: Int[np.ndarray, "_"]) -> Int[np.ndarray, "_"]:
  """The same in half the memory, if they allow it: there may be many."""
  return values.astype(np.int32) if values.max() < 1 << 31 else values
