"""Which documents hold parts of evaluation sets.

A document is contaminated if it has `ngram` words in a row of an example, as
in GPT-3 (Brown et al. 2020, appendix C). An example with fewer words counts
when it is there whole, if it has at least `min_words`; shorter ones could be
there by chance, and are counted but not looked for.
"""

import collections
import collections.abc
import dataclasses

import numpy as np

from data import documents
from data import words

# An odd number: multiplying by it is a bijection of 64 bits.
_PLACE = np.uint64(0x9E3779B97F4A7C15)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluations:
  """What to look for.

  Attributes:
    paths: files and folders with the examples of a set each; a field other
      than `field` is given after a "#": "gsm8k.jsonl#question".
    field: JSONL field, or column, with the text of an example.
    ngram: words in a row.
    min_words: of the shortest example that is looked for.
    drop: leave contaminated documents out; off: only report them.
  """

  paths: tuple[str, ...] = ()
  field: str = "text"
  ngram: int = 13
  min_words: int = 8
  drop: bool = False

  def __post_init__(self):
    if self.ngram < 1:
      raise ValueError(f"ngram is {self.ngram}; it must be >= 1 words")
    if not 1 <= self.min_words <= self.ngram:
      raise ValueError(
        f"min_words is {self.min_words}; it must be 1 to ngram, {self.ngram}"
      )
    if self.drop and not self.paths:
      raise ValueError(
        "drop is set, but there is no evaluation set; give paths, or turn it"
        " off"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Match:
  """What a document has of an evaluation set.

  Attributes:
    evaluation: the path of the set.
    num_ngrams: places of the document that are in the set.
    num_examples: examples that they are of.
    words: at the first place.
  """

  evaluation: str
  num_ngrams: int
  num_examples: int
  words: str


class Index:
  """The n-grams of evaluation sets.

  A word that is in no example ends all n-grams of a document at once, and the
  others are looked up by a hash, so most of a document is never compared; what
  is found is compared word by word.

  Attributes:
    num_examples: of each set.
    num_too_short: examples of each set that are not looked for.
  """

  def __init__(
    self,
    sets: collections.abc.Mapping[str, collections.abc.Iterable[str]],
    *,
    ngram: int = 13,
    min_words: int = 8,
  ):
    """Reads the sets.

    Args:
      sets: texts of the examples of each, by name.
      ngram: as in `Evaluations`.
      min_words: the same.
    """
    self._names = list(sets)
    self.num_examples = dict.fromkeys(sets, 0)
    self.num_too_short = dict.fromkeys(sets, 0)
    self._vocabulary: dict[str, int] = {}
    stream: list[int] = []
    # Places of the stream, by the length of the n-grams that begin there.
    places = collections.defaultdict(list)
    ends: list[int] = []
    self._set_of_example: list[int] = []
    for number, (name, texts) in enumerate(sets.items()):
      for text in texts:
        ids = [
          self._vocabulary.setdefault(word, len(self._vocabulary) + 1)
          for word in words.split(text)
        ]
        self.num_examples[name] += 1
        if len(ids) < min_words:
          self.num_too_short[name] += 1
          continue
        length = min(len(ids), ngram)
        first = len(stream)
        places[length] += range(first, first + len(ids) - length + 1)
        stream += ids
        ends.append(len(stream))
        self._set_of_example.append(number)
    self._stream = np.array(stream, np.int32)
    self._ends = np.array(ends, np.int64)
    self._tables = {}
    for length in sorted(places, reverse=True):
      starts = np.array(places[length], np.int64)
      hashes = _hashes(self._stream, length)[starts]
      order = np.argsort(hashes, kind="stable")
      self._tables[length] = (hashes[order], starts[order])

  def find(self, text: str) -> list[Match]:
    """What a document has of each set; those it has nothing of are left out."""
    spelled = words.split(text)
    known = self._vocabulary
    ids = np.fromiter(
      (known.get(word, 0) for word in spelled), np.int32, len(spelled)
    )
    hits = [
      hit
      for length in self._tables
      if len(ids) >= length
      for hit in self._hits(ids, length)
    ]
    matches = []
    for number, name in enumerate(self._names):
      own = [hit for hit in hits if self._set_of_example[hit[2]] == number]
      if own:
        place, length, _ = min(own)
        matches.append(
          Match(
            evaluation=name,
            num_ngrams=len({(place, length) for place, length, _ in own}),
            num_examples=len({example for _, _, example in own}),
            words=" ".join(spelled[place : place + length]),
          )
        )
    return matches

  def _hits(
    self, ids: np.ndarray, length: int
  ) -> collections.abc.Iterator[tuple[int, int, int]]:
    """(place, length, example) of every n-gram of a length."""
    unknown = np.concatenate([[0], np.cumsum(ids == 0)])
    places = np.flatnonzero(unknown[length:] == unknown[:-length])
    if not len(places):
      return
    hashes, starts = self._tables[length]
    wanted = _hashes(ids, length)[places]
    low = np.searchsorted(hashes, wanted, "left")
    high = np.searchsorted(hashes, wanted, "right")
    for at in np.flatnonzero(low < high):
      place = int(places[at])
      words_here = ids[place : place + length]
      for start in starts[low[at] : high[at]]:
        if np.array_equal(self._stream[start : start + length], words_here):
          example = int(np.searchsorted(self._ends, start, "right"))
          yield place, length, example


def load(evaluations: Evaluations) -> Index:
  """Reads the evaluation sets.

  Raises:
    ValueError: a file is missing or cannot be read, or a set has no example
      that can be looked for.
  """
  sets = {path: _read(path, evaluations.field) for path in evaluations.paths}
  index = Index(sets, ngram=evaluations.ngram, min_words=evaluations.min_words)
  for path, count in index.num_examples.items():
    if count == index.num_too_short[path]:
      raise ValueError(
        f"evaluation {path!r} has {count} examples, none with as many as"
        f" {evaluations.min_words} words; give another file or field"
      )
  return index


def files(evaluations: Evaluations) -> list[str]:
  """The files of all sets."""
  paths = [path.partition("#")[0] for path in evaluations.paths]
  return documents.find(paths, name="evaluation") if paths else []


def _read(path: str, field: str) -> collections.abc.Iterator[str]:
  name, _, own_field = path.partition("#")
  found = documents.find([name], name="evaluation")
  for spans in documents.split(found, format=documents.Format.AUTO, parts=1):
    for span in spans:
      for document in documents.read(span, field=own_field or field):
        yield document.text


def _hashes(ids: np.ndarray, length: int) -> np.ndarray:
  """uint64 hash of the words [i, i + length) at each i."""
  # Multiply-xorshift, so that near ids are far apart.
  spread = ids.astype(np.uint64) * _PLACE
  spread ^= spread >> np.uint64(29)
  count = len(ids) - length + 1
  hashes = np.zeros(max(count, 0), np.uint64)
  for place in range(length):
    hashes = hashes * _PLACE + spread[place : place + len(hashes)]
  return hashes
