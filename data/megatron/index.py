"""Which tokens are in every sample of one source, as Megatron's GPTDataset has.

The sequences of a split are repeated for as many epochs as the samples asked
for need, shuffled over all of these epochs, and laid end to end: one stream,
with an end. Sample k of it is the tokens [k T, (k + 1) T] (`extra` is 1: the
last target is the first input of the next sample). The samples are shuffled,
too. If little of the last epoch is needed, it is shuffled apart from the
others.

By megatron/core/datasets/gpt_dataset.py and helpers.cpp of Megatron-Core
0.16.1. Its table of where each sample begins is not stored here: sample k
begins at token k T of the stream, and a search in the running sum of lengths
says in which sequence that is.

S sequences of the split, J sequences in the stream (epochs x S), K samples, T
sequence length, N samples asked about.
"""

import dataclasses
import math

from jaxtyping import Int
import numpy as np

# Below this share of an epoch, the last one is shuffled apart.
_SEPARATE_BELOW = 0.80


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """How many epochs and samples are made; what needs no shuffle.

  Attributes:
    seq_len: T.
    extra: tokens of a sample beyond T: 1, or 0.
    num_tokens: of an epoch.
    num_epochs: in the stream.
    num_samples: K; with whole epochs, so usually more than asked for.
    num_first: samples that are shuffled apart from the last epoch's; K if none
      are.
    separate: whether the last epoch is shuffled apart.
  """

  seq_len: int
  extra: int
  num_tokens: int
  num_epochs: int
  num_samples: int
  num_first: int
  separate: bool


def plan(
  *,
  num_tokens: int,
  seq_len: int,
  num_samples: int | None,
  extra: int,
  drop_last: bool = True,
) -> Plan:
  """Decides epochs and samples.

  Args:
    num_tokens: of the split.
    seq_len: T.
    num_samples: asked for; None: one epoch.
    extra: 1 (add_extra_token_to_sequence), or 0.
    drop_last: leave out a last sample that is not full. Only the validation
      split is ever asked to keep it.

  Raises:
    ValueError: there are no tokens, but samples are asked for.
  """
  num_epochs = 1
  if num_samples is not None:
    wanted = num_samples * seq_len + extra
    if wanted > num_tokens:
      if not num_tokens:
        raise ValueError(
          f"the split has no tokens, but {num_samples} samples of it are asked"
          " for; give it a larger share of data.megatron.split, or a file with"
          " more sequences"
        )
      num_epochs = -(-wanted // num_tokens)
  separate, num_first = False, 0
  if num_epochs > 1:
    assert num_samples is not None
    num_first = ((num_epochs - 1) * num_tokens - extra) // seq_len
    per_epoch = (num_tokens - extra) // seq_len
    separate = num_samples - num_first < int(_SEPARATE_BELOW * per_epoch)
  last = num_epochs * num_tokens - extra
  if drop_last:
    made = max(last, 0) // seq_len
  else:
    # Megatron counts in float32 here.
    made = max(0, math.ceil(np.float32(last) / np.float32(seq_len)))
  return Plan(
    seq_len=seq_len,
    extra=extra,
    num_tokens=num_tokens,
    num_epochs=num_epochs,
    num_samples=made,
    num_first=num_first if separate else made,
    separate=separate,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pieces:
  """What samples are made of: P pieces of sequences, in order.

  Attributes:
    rows: which of the samples each is a piece of; ascending.
    places: where in the stream's order the sequence is.
    sequences: its number in the file.
    starts: first token, in the sequence.
    lengths: tokens; never 0.
    offsets: where in the sample the piece begins.
  """

  rows: Int[np.ndarray, "P"]
  places: Int[np.ndarray, "P"]
  sequences: Int[np.ndarray, "P"]
  starts: Int[np.ndarray, "P"]
  lengths: Int[np.ndarray, "P"]
  offsets: Int[np.ndarray, "P"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Index:
  """The index of one source and split.

  Attributes:
    plan: its counts.
    documents: int32 [J] sequence numbers in the order of the stream
      (Megatron's document_index).
    starts: int64 [J + 1] where in the stream each begins, and the end.
    shuffle: [K] which piece of the stream each sample is (Megatron's
      shuffle_index).
  """

  plan: Plan
  documents: Int[np.ndarray, "J"]
  starts: Int[np.ndarray, "J1"]
  shuffle: Int[np.ndarray, "K"]

  @property
  def num_samples(self) -> int:
    return self.plan.num_samples

  def positions(self, chunks: Int[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
    """Where in the stream the chunks begin; a last one may be cut short."""
    end = int(self.starts[-1]) - self.plan.extra
    chunks = np.asarray(chunks, np.int64)
    return np.minimum(chunks * self.plan.seq_len, end)

  def sample_index(self) -> Int[np.ndarray, "K1 2"]:
    """Megatron's sample_index: where each sample begins, and the last ends.

    Returns:
      Place in `documents` and token in that sequence.
    """
    chunks = np.arange(self.num_samples + 1)
    positions = self.positions(chunks)
    if self.plan.extra:
      places = np.searchsorted(self.starts, positions, "right") - 1
    else:
      # Without the extra token, a sample that ends where a sequence does has
      # not yet gone on to the next.
      places = np.searchsorted(self.starts, positions, "left") - 1
    # Past the end, it stays in the last sequence.
    past = chunks * self.plan.seq_len > positions
    places[past] = len(self.documents) - 1
    places[0], positions[0] = 0, 0
    table = np.stack([places, positions - self.starts[places]], axis=1)
    table[0] = 0
    small = len(self.documents) <= np.iinfo(np.int32).max
    return table.astype(np.int32 if small else np.int64)

  def pieces(self, samples: Int[np.ndarray, "N"]) -> Pieces:
    """The pieces of sequences that samples are made of.

    Args:
      samples: numbers, in [0, K).
    """
    chunks = self.shuffle[samples].astype(np.int64)
    begin = self.positions(chunks)
    end = self.positions(chunks + 1) + self.plan.extra
    first = np.searchsorted(self.starts, begin, "right") - 1
    last = np.searchsorted(self.starts, end, "left")
    counts = np.maximum(last - first, 0)
    rows = np.repeat(np.arange(len(chunks)), counts)
    offset = np.cumsum(counts) - counts
    places = np.arange(len(rows)) - (offset - first)[rows]
    starts = self.starts[places]
    from_ = np.maximum(starts, begin[rows])
    to = np.minimum(self.starts[places + 1], end[rows])
    kept = to > from_
    if not kept.all():
      rows, places, starts, from_, to = (
        array[kept] for array in (rows, places, starts, from_, to)
      )
    return Pieces(
      rows=rows,
      places=places,
      sequences=self.documents[places],
      starts=from_ - starts,
      lengths=to - from_,
      offsets=from_ - begin[rows],
    )


def build(
  lengths: Int[np.ndarray, "A"],
  *,
  bounds: tuple[int, int],
  seq_len: int,
  num_samples: int | None,
  seed: int,
  extra: int = 1,
  drop_last: bool = True,
) -> Index:
  """The index of a source.

  Args:
    lengths: int32, of all sequences of the file.
    bounds: of the split.
    seq_len: T.
    num_samples: asked for; None: one epoch.
    seed: of numpy.random.RandomState.
    extra: 1 (add_extra_token_to_sequence), or 0.
    drop_last: see `plan`.
  """
  split = np.arange(*bounds, dtype=np.int32)
  made = plan(
    num_tokens=int(lengths[bounds[0] : bounds[1]].sum(dtype=np.int64)),
    seq_len=seq_len,
    num_samples=num_samples,
    extra=extra,
    drop_last=drop_last,
  )
  random = np.random.RandomState(seed)
  if made.separate:
    parts = [np.tile(split, made.num_epochs - 1), split.copy()]
  else:
    parts = [np.tile(split, made.num_epochs)]
  for part in parts:
    random.shuffle(part)
  documents = np.concatenate(parts)
  starts = np.zeros(len(documents) + 1, np.int64)
  np.cumsum(lengths[documents], dtype=np.int64, out=starts[1:])
  large = made.num_samples >= np.iinfo(np.uint32).max - 1
  dtype = np.int64 if large else np.uint32
  shuffle = np.arange(made.num_samples, dtype=dtype)
  for part in (shuffle[: made.num_first], shuffle[made.num_first :]):
    # A shuffle of nothing draws nothing.
    random.shuffle(part)
  return Index(plan=made, documents=documents, starts=starts, shuffle=shuffle)
