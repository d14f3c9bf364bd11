"""Samples of a Megatron index, as rows of a batch.

N samples, T sequence length.
"""

from jaxtyping import Int
import numpy as np

from data import indexed
from data import rows as rows_lib
from data.megatron import index as index_lib


class IndexSequences:
  """The samples of one source, in Megatron's order; see `rows.Sequences`.

  A piece of a sequence is a segment of its own: Megatron shuffles sequences,
  and those of a document do not stay together.

  Args:
    index: of the source.
    corpus: its files.
    name: of the source, for errors.
  """

  def __init__(
    self, index: index_lib.Index, corpus: indexed.Indexed, *, name: str
  ):
    self._index = index
    self._corpus = corpus
    self._name = name

  def fill(
    self,
    samples: Int[np.ndarray, "N"],
    rows: rows_lib.Rows,
    places: Int[np.ndarray, "N"],
  ) -> None:
    """Writes samples into rows; see `rows.Sequences`."""
    samples = self._checked(samples)
    if not samples.size:
      return
    places = np.asarray(places, np.int64)
    pieces = self._index.pieces(samples)
    plan, width = self._index.plan, rows.tokens.shape[1]
    assert width == plan.seq_len + 1, (width, plan.seq_len)
    begins = self._corpus.sequence_starts[pieces.sequences] + pieces.starts
    to = places[pieces.rows] * width + pieces.offsets
    # A slice of a plain array is faster than one of numpy.memmap.
    source = np.asarray(self._corpus.tokens)
    flat = rows.tokens.reshape(-1, copy=False)
    for begin, end, first, last in zip(
      begins.tolist(),
      (begins + pieces.lengths).tolist(),
      to.tolist(),
      (to + pieces.lengths).tolist(),
      strict=True,
    ):
      flat[first:last] = source[begin:end]
    # Segments are numbered from 1 in each row.
    first = np.searchsorted(pieces.rows, np.arange(len(samples)))
    numbers = np.arange(1, len(pieces.rows) + 1) - first[pieces.rows]
    segments = np.repeat(numbers.astype(np.int32), pieces.lengths)
    if len(segments) == len(samples) * width:
      rows.segment_ids[places] = segments.reshape(len(samples), width)
      return
    # Of a sample without the extra token, or that is cut short, the rest is
    # padding.
    lengths = np.bincount(
      pieces.rows, weights=pieces.lengths, minlength=len(samples)
    )
    there = np.arange(width) < lengths[:, None]
    padded = np.zeros(there.shape, np.int32)
    padded[there] = segments
    rows.segment_ids[places] = padded
    rows.is_target[places] &= there
    rows.tokens[places] = np.where(there, rows.tokens[places], 0)

  def describe(self, sample: int) -> rows_lib.Sample:
    """What a sample is made of, by sequence numbers of the file.

    The epoch is that of the place in the stream: within the epochs that are
    shuffled together, a sequence may come twice before another comes at all.
    """
    samples = self._checked(np.array([sample]))
    pieces = self._index.pieces(samples)
    per_epoch = len(self._index.documents) // self._index.plan.num_epochs
    epochs = pieces.places // per_epoch
    return rows_lib.Sample(
      epoch=int(epochs[0]) if len(epochs) else 0,
      number=int(self._index.shuffle[sample]),
      documents=tuple(
        rows_lib.Span(
          epoch=epoch, document=document, start=start, stop=start + length
        )
        for epoch, document, start, length in zip(
          epochs.tolist(),
          pieces.sequences.tolist(),
          pieces.starts.tolist(),
          pieces.lengths.tolist(),
          strict=True,
        )
      ),
    )

  def num_samples(self, epochs: float) -> int:
    """How many samples so many epochs give; see `rows.Sequences`."""
    plan = self._index.plan
    tokens = int(epochs * plan.num_tokens) - plan.extra
    return max(0, min(tokens // plan.seq_len, plan.num_samples))

  def _checked(self, samples: Int[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
    samples = np.asarray(samples, np.int64)
    most = self._index.num_samples
    if samples.size and not 0 <= samples.min() <= samples.max() < most:
      raise ValueError(
        f"data.sources[{self._name}] has {most} samples, of which"
        f" {samples.min()} to {samples.max()} are asked for; ask for more when"
        " the run starts (run.steps)"
      )
    return samples
