"""The few shapes in which steps are computed, and their inputs in one array.

Programs are compiled for fixed shapes: rows and tokens are padded to the next
power of two. A padded row belongs to slot 0 and has no tokens.

A step of texts that are read may need several calls: of rows of about equal
length, none of more tokens than are computed at once.

Dims: B rows, T tokens of a row (0 where they are on the device already), C
columns of the array, W pieces of the longest text.
"""

from collections.abc import Sequence
import dataclasses
import functools

import jax
from jaxtyping import Array, Int
import numpy as np

_MIN_TOKENS = 16
_COLUMNS = ("slot", "start", "length", "num_tokens", "num_drafts", "active")
# The column of the numbers of drafts.
NUM_DRAFTS = _COLUMNS.index("num_drafts")


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=[*_COLUMNS, "tokens", "tables"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
  """What the device is told of a call's rows.

  Attributes:
    slot: Of each row; 0: padding.
    start: Tokens in the pages.
    length: Tokens of the text.
    num_tokens: To compute, drafts left out; 0: padding.
    num_drafts: Guesses behind them.
    active: 1 where the next token is to be chosen.
    tokens: To compute, right-padded.
    tables: By window, pages of the text's pieces.
  """

  slot: Int[Array, "B"]
  start: Int[Array, "B"]
  length: Int[Array, "B"]
  num_tokens: Int[Array, "B"]
  num_drafts: Int[Array, "B"]
  active: Int[Array, "B"]
  tokens: Int[Array, "B T"]
  tables: dict[int, Int[Array, "B W"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
  """Where in the array of a call its inputs are.

  Attributes:
    windows: Of the tables, in order.
    num_pieces: W.
  """

  windows: tuple[int, ...]
  num_pieces: int

  @property
  def table_columns(self) -> int:
    """Of all tables."""
    return len(self.windows) * self.num_pieces

  def make(self, rows: int, tokens: int) -> np.ndarray:
    """Padding alone: int32 [B, C], for the caller to fill.

    New for each call: the device may read it where it is.
    """
    return np.zeros(self.shape(rows, tokens), np.int32)

  def shape(self, rows: int, tokens: int) -> tuple[int, int]:
    """[B, C]."""
    return rows, len(_COLUMNS) + self.table_columns + tokens

  def header_shape(self, rows: int) -> tuple[int, int]:
    """Of `header`."""
    return rows, len(_COLUMNS)

  def fill(
    self,
    packed: np.ndarray,
    row: int,
    table: np.ndarray,
    values: tuple[int, ...],
  ) -> None:
    """Writes a row: values in `Inputs`' order up to `active`, and tables."""
    packed[row, : len(_COLUMNS)] = values
    packed[row, len(_COLUMNS) : len(_COLUMNS) + len(table)] = table

  def tokens(self, packed: np.ndarray) -> np.ndarray:
    """The part with the tokens [B, T], to be written to."""
    return packed[:, len(_COLUMNS) + self.table_columns :]

  def header(self, packed: np.ndarray, rows: int) -> np.ndarray:
    """What `unpack` makes of all but tables and tokens, of so many rows."""
    header = np.zeros(self.header_shape(rows), np.int32)
    header[: len(packed)] = packed[:, : len(_COLUMNS)]
    return header

  def unpack(self, packed: Int[Array, "B C"]) -> Inputs:
    """On the device."""
    begin = len(_COLUMNS)
    tables = {}
    for window in self.windows:
      tables[window] = packed[:, begin : begin + self.num_pieces]
      begin += self.num_pieces
    columns = {name: packed[:, i] for i, name in enumerate(_COLUMNS)}
    return Inputs(**columns, tokens=packed[:, begin:], tables=tables)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
  """Some rows of a step that are read together.

  Attributes:
    rows: Indices in the step.
    num_rows: B.
    num_tokens: T.
  """

  rows: tuple[int, ...]
  num_rows: int
  num_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shapes:
  """All that is compiled.

  Attributes:
    decode_rows: Numbers of rows that are continued.
    prefill: (B, T) of texts that are read.
    call_tokens: Computing a call takes as long as these, and its tokens.
  """

  decode_rows: tuple[int, ...]
  prefill: tuple[tuple[int, int], ...]
  call_tokens: int

  @property
  def prefill_tokens(self) -> int:
    """Of the largest call."""
    return max(rows * tokens for rows, tokens in self.prefill)

  def rows(self, num: int) -> int:
    """With padding."""
    return next(rows for rows in self.decode_rows if rows >= num)

  def plan(self, lengths: Sequence[int]) -> list[Call]:
    """Calls that read rows of these lengths, at least cost.

    Rows of like length are read one by one or as many as go into a call, which
    may be more than there are.
    """
    calls = []
    left = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while left:
      longest = lengths[left[0]]
      tokens = next(t for _, t in self.prefill if t >= longest)
      most = max(rows for rows, t in self.prefill if t == tokens)
      alike = [
        i for i in left if 2 * lengths[i] > tokens or tokens == _MIN_TOKENS
      ]
      alone = min(len(alike), most) * (tokens + self.call_tokens)
      if most * tokens + self.call_tokens <= alone:
        taken, rows = left[:most], most
      else:
        taken, rows = left[:1], 1
      calls.append(Call(rows=tuple(taken), num_rows=rows, num_tokens=tokens))
      left = left[len(taken) :]
    return calls


def make(*, max_rows: int, prefill_tokens: int) -> Shapes:
  """The shapes of a server with these limits."""
  decode_rows = _powers(1, max_rows)
  most_tokens = _powers(_MIN_TOKENS, max(prefill_tokens, _MIN_TOKENS))
  prefill = []
  for tokens in most_tokens:
    rows = min(most_tokens[-1] // tokens, decode_rows[-1])
    prefill += [(r, tokens) for r in sorted({1, rows})]
  # A CPU multiplies a row as fast as it reads the weights for a dozen others;
  # accelerators for hundreds.
  call_tokens = 16 if jax.default_backend() == "cpu" else 256
  return Shapes(
    decode_rows=decode_rows, prefill=tuple(prefill), call_tokens=call_tokens
  )


def _powers(first: int, last: int) -> tuple[int, ...]:
  """Powers of two times `first`, up to the first that is not below `last`."""
  values = [first]
  while values[-1] < last:
    values.append(2 * values[-1])
  return tuple(values)
