"""The sources of a split and their blend, as Megatron's builder makes them.

Weights are made to sum to 1; each source is asked for its share of the samples,
rounded up, and a surplus; the blend has the sum of the shares, so it may be a
little longer than was asked for; and its weights are made to sum to 1 again.
Without weights, each source gives one epoch, in proportion to its length. One
source without weights is no blend at all.

By megatron/core/datasets/blended_megatron_dataset_builder.py and
blended_dataset.py, Megatron-Core 0.16.1.

n sources.
"""

import collections.abc
import dataclasses
import math

from jaxtyping import Int
import numpy as np

from data.megatron import blend as blend_lib
from data.megatron import index as index_lib
from data.megatron import split as split_lib

# Megatron numbers sources in 16 bits.
_MOST_SOURCES = 32766


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """What decides the samples, besides the files and their weights.

  Attributes:
    seq_len: T.
    seed: of each source's shuffles.
    split: which split.
    extra: 1 (add_extra_token_to_sequence), or 0.
    drop_last: its drop_last_partial_validation_sequence.
    surplus: its mid_level_dataset_surplus.
    rounding: of the blend's products.
  """

  seq_len: int
  seed: int
  split: split_lib.Split
  extra: int = 1
  drop_last: bool = True
  surplus: float = 0.005
  rounding: blend_lib.Rounding = "x86"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """How many samples of what.

  Attributes:
    weights: of the sources as given; None: in proportion to their length.
    size: samples asked for; None: all of one epoch of each source.
  """

  weights: collections.abc.Sequence[float] | None
  size: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shares:
  """What the sources are asked for.

  Attributes:
    asked: samples of each, with the surplus; None: one epoch.
    weights: given ones, made to sum to 1 once; None: none were given.
    size: samples of the blend; None: known when the sources are.
  """

  asked: list[int | None]
  weights: list[float] | None
  size: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blended:
  """A split, built.

  Attributes:
    indices: of the sources.
    asked: samples that each source was asked for.
    weights: of the blend, as its order is computed with; the numbers of samples
      if each source gives all it has; None if there is no blend.
    blend: which source gives each sample; None: there is one source only.
    size: samples.
    limits: samples of each source if it gives all it has.
  """

  indices: list[index_lib.Index]
  asked: list[int | None]
  weights: list[float] | None
  blend: blend_lib.Blend | None
  size: int
  limits: list[int] | None = None

  def locate(
    self, rows: Int[np.ndarray, "N"]
  ) -> tuple[Int[np.ndarray, "N"], Int[np.ndarray, "N"]]:
    """Source of each sample, and which of its samples it is."""
    if self.blend is None:
      rows = np.asarray(rows, np.int64)
      return np.zeros_like(rows), rows
    return self.blend.locate(rows)


def shares(request: Request, *, num_sources: int, surplus: float) -> Shares:
  """How many samples each source is asked for.

  Raises:
    ValueError: the weights are wrong, or do not say how many.
  """
  if not 1 <= num_sources <= _MOST_SOURCES:
    raise ValueError(
      f"there are {num_sources} sources; Megatron blends 1 to {_MOST_SOURCES}"
    )
  if request.size is not None and request.size < 0:
    raise ValueError(f"{request.size} samples are asked for; give 0 or more")
  if request.weights is None:
    size = request.size if num_sources == 1 else None
    return Shares(asked=[size] * num_sources, weights=None, size=None)
  if len(request.weights) != num_sources:
    raise ValueError(
      f"there are {len(request.weights)} weights of {num_sources} sources"
    )
  if not all(0 < weight < math.inf for weight in request.weights):
    raise ValueError(
      f"weights are {list(request.weights)}; every weight must be positive"
      " (leave a source out instead of weighing it 0)"
    )
  if request.size is None:
    raise ValueError("weights are given, so the number of samples must be, too")
  weights = blend_lib.normalize(request.weights).tolist()
  targets = [math.ceil(request.size * weight) for weight in weights]
  return Shares(
    asked=[math.ceil(target * (1 + surplus)) for target in targets],
    weights=weights,
    size=sum(targets),
  )


def combine(
  indices: list[index_lib.Index],
  request: Request,
  *,
  names: collections.abc.Sequence[str],
  options: Options,
) -> Blended:
  """The blend of sources that are built.

  Args:
    indices: of the sources, with the samples that `shares` says.
    request: as `shares` got it.
    names: of the sources, for errors.
    options: of the split.

  Raises:
    ValueError: a source has too few samples.
  """
  part = shares(request, num_sources=len(indices), surplus=options.surplus)
  lengths = [index.num_samples for index in indices]
  if part.weights is None and len(indices) == 1:
    return Blended(
      indices=indices,
      asked=part.asked,
      weights=None,
      blend=None,
      size=lengths[0],
    )
  if part.weights is None:
    for name, length in zip(names, lengths, strict=True):
      if not length:
        raise ValueError(
          f"{name} is shorter than a sample of {options.seq_len} tokens; leave"
          " it out, or give it a larger share of data.megatron.split"
        )
  limits = None
  if part.weights is None and request.size is None:
    limits, size = lengths, sum(lengths)
    used = [float(length) for length in lengths]
    weights = [length / float(size) for length in lengths]
  else:
    if part.weights is None:
      size = min(request.size or 0, sum(lengths))
      given: collections.abc.Sequence[float] = lengths
    else:
      assert part.size is not None
      size, given = part.size, part.weights
    used = weights = blend_lib.normalize(given).tolist()
  blend = blend_lib.Blend(
    weights, size, rounding=options.rounding, limits=limits
  )
  _check_counts(blend, weights, lengths, names=names)
  return Blended(
    indices=indices,
    asked=part.asked,
    weights=used,
    blend=blend,
    size=size,
    limits=limits,
  )


def build(
  lengths: collections.abc.Sequence[Int[np.ndarray, "A"]],
  request: Request,
  *,
  book_ends: tuple[float, float],
  names: collections.abc.Sequence[str],
  options: Options,
) -> Blended:
  """Builds a split.

  Args:
    lengths: of all sequences of each source's file.
    request: how many samples of what.
    book_ends: of the split.
    names: of the sources, for errors.
    options: of the split.

  Raises:
    ValueError: a source has too few samples.
  """
  part = shares(request, num_sources=len(lengths), surplus=options.surplus)
  indices = [
    build_source(each, asked, book_ends=book_ends, name=name, options=options)
    for each, asked, name in zip(lengths, part.asked, names, strict=True)
  ]
  return combine(indices, request, names=names, options=options)


def build_source(
  lengths: Int[np.ndarray, "A"],
  num_samples: int | None,
  *,
  book_ends: tuple[float, float],
  name: str,
  options: Options,
) -> index_lib.Index:
  """Builds one source of a split.

  Raises:
    ValueError: there are no tokens in the split.
  """
  valid = options.split is split_lib.Split.VALID
  try:
    return index_lib.build(
      lengths,
      bounds=split_lib.bounds(book_ends, len(lengths)),
      seq_len=options.seq_len,
      num_samples=num_samples,
      seed=options.seed,
      extra=options.extra,
      drop_last=options.drop_last or not valid,
    )
  except ValueError as error:
    raise ValueError(f"{name}: {error}") from error


def _check_counts(
  blend: blend_lib.Blend,
  weights: collections.abc.Sequence[float],
  lengths: collections.abc.Sequence[int],
  *,
  names: collections.abc.Sequence[str],
) -> None:
  """Refuses a blend that asks a source for more samples than it has.

  A source is given a sample only when it is behind, so it never has more than
  one above its share: mostly that is enough to know.
  """
  size = blend.size
  if all(
    weight * size + 2 <= length
    for weight, length in zip(weights, lengths, strict=True)
  ):
    return
  given = blend.counts_before(size).tolist()
  for name, count, length in zip(names, given, lengths, strict=True):
    if count > length:
      raise ValueError(
        f"the blend takes {count} samples of {name}, which has {length};"
        " raise data.megatron.surplus"
      )
