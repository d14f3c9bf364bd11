"""Rows of a batch on their way from the sources, and who fills them.

A `Mixture` says which source gives row g of the run and which of its samples
that is; the source's `Sequences` say which tokens are in it. Both are pure
functions of the config and a number, so a row can be made at any time, on any
host.

N rows, T sequence length.
"""

import dataclasses
import typing

from jaxtyping import Bool, Int
import numpy as np

from data import buffers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
  """Rows to be filled in place, with one token more than is computed on.

  Attributes:
    tokens: Place t + 1 holds the target of place t; 0 in padding.
    segment_ids: Number, from 1, of the segment of each token: what attention
      may be kept inside of; ascending; 0 is padding.
    is_target: Whether the token is to be predicted from those before it. Place
      0 never is.
  """

  tokens: Int[np.ndarray, "N T+1"]
  segment_ids: Int[np.ndarray, "N T+1"]
  is_target: Bool[np.ndarray, "N T+1"]

  def __getitem__(self, index) -> "Rows":
    """Some of the rows, as views where NumPy makes views."""
    return Rows(
      tokens=self.tokens[index],
      segment_ids=self.segment_ids[index],
      is_target=self.is_target[index],
    )


def empty(
  num_rows: int, seq_len: int, memory: buffers.Buffers | None = None
) -> Rows:
  """Rows of one whole segment, in which every token is a target.

  Args:
    num_rows: N.
    seq_len: T.
    memory: where they lie; None: of their own.
  """
  memory = memory or buffers.Buffers()
  shape = (num_rows, seq_len + 1)
  return Rows(
    tokens=memory.full(shape, 0, np.int32),
    segment_ids=memory.full(shape, 1, np.int32),
    is_target=memory.full(shape, True, bool),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
  """Tokens [start, stop) of a document, as it comes in an epoch."""

  epoch: int
  document: int
  start: int
  stop: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
  """What a row is made of, for logs and post-mortems.

  Attributes:
    epoch: Of the source, in which the sample begins; from 0.
    number: Which sequence of the source it is, in an order of the source's own.
    documents: The pieces of documents, in order.
  """

  epoch: int
  number: int
  documents: tuple[Span, ...]


class Sequences(typing.Protocol):
  """The samples of one source, numbered as they are drawn, without an end."""

  def fill(self, samples: Int[np.ndarray, "N"], rows: Rows, places) -> None:
    """Writes samples into rows.

    Args:
      samples: Numbers, from 0.
      rows: Of a batch, as `empty` makes them.
      places: Index in `rows` of each sample.
    """
    ...

  def describe(self, sample: int) -> Sample:
    """What a sample is made of."""
    ...

  def num_samples(self, epochs: float) -> int:
    """How many of the first samples begin within so many epochs."""
    ...


class Mixture(typing.Protocol):
  """Which source gives each row of the run."""

  @property
  def num_rows(self) -> int | None:
    """How many there are; None: without end."""
    ...

  def locate(
    self, rows: Int[np.ndarray, "N"]
  ) -> tuple[Int[np.ndarray, "N"], Int[np.ndarray, "N"]]:
    """Source of each row, and how many samples it gave before."""
    ...
