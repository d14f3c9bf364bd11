"""The mixture `weighted`: samples dealt by exact weights, stage after stage.

Between two changes (a new stage, a source that is used up) the samples are one
deal of `data/blend.py`: each prefix of it has the exact share of every source
to within a sample. A source goes on in every deal where it was in the one
before. Where the sequence length changes, a new section begins: all sources
count their samples from 0 again, and go on after the tokens they gave before.

All deals of a run are known when it starts and there are few of them, so any
sample is found in O(1). A sample is a row of a batch, or a pair of them.

N samples, S sources.
"""

import collections.abc
import dataclasses

from jaxtyping import Int
import numpy as np

from data import blend as blend_lib

# (source, sequence length, tokens that it gave before) -> how many samples of
# that length it may give; None: any number.
Capacity = collections.abc.Callable[[int, int, int], int | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
  """Samples of the run that are dealt by the same settings.

  Attributes:
    num_samples: how many; None: without end.
    seq_len: tokens of a row.
    weights: of the S sources; 0: the source rests.
  """

  num_samples: int | None
  seq_len: int
  weights: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
  """Parts of one sequence length, one after another.

  Attributes:
    first: number of its first sample of the run.
    seq_len: tokens of a row.
    begins: tokens that each source gave before.
    limits: samples that each source gives in it, if another section follows.
  """

  first: int
  seq_len: int
  begins: tuple[int, ...]
  limits: tuple[int, ...] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Deal:
  """Samples that are dealt by the same weights.

  Attributes:
    section: index of its section.
    first: number of its first sample of the run.
    blend: who gives.
    sources: source of each weight in the blend.
    offsets: how many samples each of these gave in the section before.
  """

  section: int
  first: int
  blend: blend_lib.Blend
  sources: np.ndarray
  offsets: np.ndarray


class Weighted:
  """Which source gives each sample of the run.

  Args:
    parts: of the run, one after another.
    capacity: how many samples a source may give.
    stop: end with the first sample that a source cannot give; else the others
      go on without it.

  Attributes:
    sections: at least one.
    num_rows: how many samples there are; None: without end.
    ended_by: the source that had no more; None if the parts ended.
  """

  def __init__(
    self,
    parts: collections.abc.Sequence[Part],
    *,
    capacity: Capacity,
    stop: bool,
  ):
    num_sources = len(parts[0].weights)
    self._deals: list[_Deal] = []
    self._blends: dict[tuple[float, ...], blend_lib.Blend] = {}
    self.sections: list[Section] = []
    self.num_rows: int | None = None
    self.ended_by: int | None = None
    first = 0
    begins, given = [0] * num_sources, [0] * num_sources
    for number, part in enumerate(parts):
      if not number or part.seq_len != self.sections[-1].seq_len:
        if number:
          last = self._end_section(given)
          begins = [
            b + g * last.seq_len for b, g in zip(begins, given, strict=True)
          ]
          given = [0] * num_sources
        self.sections.append(
          Section(
            first=first, seq_len=part.seq_len, begins=tuple(begins), limits=None
          )
        )
      end = self._deal(part, first, given, capacity, stop)
      self.num_rows = end
      if end is None or self.ended_by is not None:
        break
      first = end
    self._first = np.array([deal.first for deal in self._deals], np.int64)

  def locate(
    self, rows: Int[np.ndarray, "N"]
  ) -> tuple[Int[np.ndarray, "N"], Int[np.ndarray, "N"]]:
    """Source of each sample, and how many it gave in the section before."""
    rows = np.asarray(rows, np.int64)
    numbers = np.searchsorted(self._first, rows, "right") - 1
    sources, samples = np.empty_like(rows), np.empty_like(rows)
    for number in np.unique(numbers).tolist():
      mine = numbers == number
      deal = self._deals[number]
      places, given = deal.blend.locate(rows[mine] - deal.first)
      sources[mine] = deal.sources[places]
      samples[mine] = deal.offsets[places] + given
    return sources, samples

  def given(self, num_samples: int) -> list[list[int]]:
    """Samples of each source among the first ones of the run, by section."""
    counts = [[0] * len(section.begins) for section in self.sections]
    stops = [deal.first for deal in self._deals[1:]] + [num_samples]
    for deal, stop in zip(self._deals, stops, strict=False):
      length = max(0, min(stop, num_samples) - deal.first)
      pairs = zip(deal.sources, deal.blend.given(length), strict=True)
      for source, count in pairs:
        counts[deal.section][source] += count
    return counts

  def deals(self, num_samples: int) -> list[tuple[int, dict[int, int]]]:
    """First sample, and counts by source, of each deal among the first."""
    return [
      (
        deal.first,
        dict(zip(deal.sources.tolist(), deal.blend.counts, strict=True)),
      )
      for deal in self._deals
      if deal.first < num_samples
    ]

  def _end_section(self, given: list[int]) -> Section:
    ended = dataclasses.replace(self.sections[-1], limits=tuple(given))
    self.sections[-1] = ended
    return ended

  def _deal(
    self,
    part: Part,
    first: int,
    given: list[int],
    capacity: Capacity,
    stop_early: bool,
  ) -> int | None:
    """Deals a part; the first sample after it. Adds to `given`."""
    section = self.sections[-1]
    end = None if part.num_samples is None else first + part.num_samples
    active = [i for i, weight in enumerate(part.weights) if weight > 0]
    while end is None or first < end:
      blend = self._blend(tuple(part.weights[i] for i in active))
      # Where each source gives the first sample that it does not have.
      lacks = {}
      for place, source in enumerate(active):
        most = capacity(source, section.seq_len, section.begins[source])
        if most is not None:
          left = max(0, most - given[source])
          lacks[blend.index(place, left)] = source
      stop = first + min(lacks) if lacks else None
      if stop is None or (end is not None and end <= stop):
        stop, missing = end, None
      else:
        missing = lacks[stop - first]
      if stop is None or stop > first:
        deal = _Deal(
          section=len(self.sections) - 1,
          first=first,
          blend=blend,
          sources=np.array(active),
          offsets=np.array([given[source] for source in active], np.int64),
        )
        self._deals.append(deal)
      if stop is None:
        return None
      for source, count in zip(active, blend.given(stop - first), strict=True):
        given[source] += count
      first = stop
      if missing is not None:
        active.remove(missing)
        if stop_early or not active:
          self.ended_by = missing
          break
    return first

  def _blend(self, weights: tuple[float, ...]) -> blend_lib.Blend:
    if weights not in self._blends:
      self._blends[weights] = blend_lib.Blend(weights)
    return self._blends[weights]
