"""Samples of Megatron's GPTDataset, whole: what its __getitem__ gives.

By megatron/core/datasets/gpt_dataset.py, Megatron-Core 0.16.1. Training takes
its rows from `data/megatron/sequences.py`; this is for comparisons.

N samples, T sequence length.
"""

import dataclasses

from jaxtyping import Bool, Float, Int
import numpy as np

from data.megatron import index as index_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """Megatron's options of the same names."""

  reset_position_ids: bool = False
  reset_attention_mask: bool = False
  eod_mask_loss: bool = False
  create_attention_mask: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
  """A sample.

  Attributes:
    tokens: inputs.
    labels: targets.
    loss_mask: weight of each target.
    position_ids: of the inputs.
    attention_mask: True where attention is masked out; None if not asked for.
  """

  tokens: Int[np.ndarray, "T"]
  labels: Int[np.ndarray, "T"]
  loss_mask: Float[np.ndarray, "T"]
  position_ids: Int[np.ndarray, "T"]
  attention_mask: Bool[np.ndarray, "1 T T"] | None


def texts(
  index: index_lib.Index,
  samples: Int[np.ndarray, "N"],
  *,
  tokens: Int[np.ndarray, "A"],
  sequence_starts: Int[np.ndarray, "B"],
  pad: int,
) -> Int[np.ndarray, "N T+x"]:
  """The tokens of samples, int64, with the extra one if there is one.

  Args:
    index: of the source.
    samples: their numbers.
    tokens: of the whole file.
    sequence_starts: where in the file each sequence begins.
    pad: fills a last sample that is cut short.
  """
  width = index.plan.seq_len + index.plan.extra
  out = np.full((len(samples), width), pad, np.int64)
  pieces = index.pieces(samples)
  # A slice of a plain array is faster than one of numpy.memmap.
  tokens = np.asarray(tokens)
  begins = sequence_starts[pieces.sequences] + pieces.starts
  for row, begin, length, offset in zip(
    pieces.rows.tolist(),
    begins.tolist(),
    pieces.lengths.tolist(),
    pieces.offsets.tolist(),
    strict=True,
  ):
    out[row, offset : offset + length] = tokens[begin : begin + length]
  return out


def make_all(
  texts: Int[np.ndarray, "N T+x"],
  *,
  seq_len: int,
  pad: int,
  eod: int | None,
  options: Options,
) -> list[Item]:
  """Samples, as Megatron gives them one after the other.

  It keeps the loss mask of the first for all, unless an option makes them
  differ. If the first is cut short, what is padding in it is masked in all.

  Args:
    texts: from `texts`; the first is the first that is ever asked for.
    seq_len: T.
    pad: the padding in it.
    eod: as of `make`.
    options: as Megatron is given.
  """
  made = [
    make(text, seq_len=seq_len, pad=pad, eod=eod, options=options)
    for text in texts
  ]
  if not (
    options.reset_position_ids
    or options.reset_attention_mask
    or options.eod_mask_loss
  ):
    for item in made[1:]:
      item.loss_mask[made[0].loss_mask == 0] = 0
  return made


def make(
  text: Int[np.ndarray, "T+x"],
  *,
  seq_len: int,
  pad: int,
  eod: int | None,
  options: Options,
) -> Item:
  """A sample of its text.

  Args:
    text: from `texts`.
    seq_len: T.
    pad: the padding in it.
    eod: the token that ends a document; None if the tokenizer has none.
    options: as Megatron is given.
  """
  if len(text) > seq_len:
    tokens, labels = text[:-1].copy(), text[1:].copy()
  else:
    tokens, labels = text.copy(), np.roll(text, -1)
    labels[-1] = pad
  ends = np.flatnonzero(tokens == eod) if eod is not None else np.empty(0, int)
  loss_mask = np.ones(seq_len, np.float32)
  if options.eod_mask_loss:
    loss_mask[ends] = 0
  loss_mask[labels == pad] = 0
  places = np.arange(seq_len)
  # A place belongs to the document after the last eod before it.
  begins = np.zeros(seq_len + 1, np.int64)
  begins[ends + 1] = ends + 1
  begins = np.maximum.accumulate(begins)[:seq_len]
  attention_mask = None
  if options.create_attention_mask:
    seen = places[None, :] <= places[:, None]
    if options.reset_attention_mask:
      seen &= begins[:, None] <= places[None, :]
    attention_mask = ~seen[None]
  tokens[tokens == pad] = 0
  labels[labels == pad] = 0
  return Item(
    tokens=tokens,
    labels=labels,
    loss_mask=loss_mask,
    position_ids=places - begins if options.reset_position_ids else places,
    attention_mask=attention_mask,
  )
