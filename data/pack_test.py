import collections
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
from hypothesis import strategies as st
import numpy as np

from data import config as config_lib
from data import pack
from data import rows as rows_lib

_LENGTHS = [7, 1, 30, 4, 0, 4, 19, 1, 2, 12, 3, 3, 3, 8]


class Memory:
  """A source whose tokens are their own positions, from 1."""

  def __init__(self, lengths, *, is_flat=True):
    self.document_lengths = np.array(lengths)
    self.num_tokens = sum(lengths)
    tokens = np.arange(1, 1 + self.num_tokens, dtype=np.uint16)
    self.flat = tokens if is_flat else None
    self._tokens = tokens

  def read(self, start, stop):
    assert 0 <= start < stop <= self.num_tokens
    return self._tokens[start:stop]


def make(
  lengths=_LENGTHS,
  *,
  seq_len=9,
  seed=0,
  name="a",
  shuffle=True,
  too_long="right",
  is_flat=True,
):
  config: dict[str, Any] = {"kind": "pack", "too_long": too_long}
  return pack.Packs(
    Memory(lengths, is_flat=is_flat),
    name=name,
    seq_len=seq_len,
    seed=seed,
    shuffle=shuffle,
    config=config_lib.SequenceConfig(**config),
  )


def read(packs, samples, seq_len=9):
  """The samples as rows, in reverse order of places."""
  rows = rows_lib.empty(len(samples), seq_len)
  packs.fill(np.array(samples), rows, np.arange(len(samples))[::-1])
  return rows[::-1]


def one_by_one(lengths, capacity):
  """Best fit decreasing as the book has it: the room left in each pack."""
  rooms = []
  for length in lengths:
    fitting = [room for room in rooms if room >= length]
    best = min(fitting, default=capacity)
    if fitting:
      rooms.remove(best)
    rooms.append(best - length)
  return sorted(rooms)


def lognormal(num_documents, longest):
  """Lengths as texts of the web have them."""
  rng = np.random.default_rng(0)
  return np.clip(rng.lognormal(5.5, 1.0, num_documents), 16, longest).astype(
    int
  )


class PlanTest(parameterized.TestCase):
  @hypothesis.given(
    st.lists(st.integers(1, 40), min_size=1, max_size=120), st.integers(0, 30)
  )
  @hypothesis.settings(
    database=None, deadline=None, derandomize=True, max_examples=150
  )
  def test_is_best_fit_decreasing(self, lengths, more):
    lengths = np.array(sorted(lengths, reverse=True))
    capacity = int(lengths[0]) + more
    plan = pack.plan(lengths, capacity=capacity)
    self.assertEqual(sorted(plan.ranks), list(range(len(lengths))))
    packs = np.split(lengths[plan.ranks], plan.starts[1:-1])
    rooms = sorted(capacity - int(own.sum()) for own in packs)
    self.assertEqual(rooms, one_by_one(lengths.tolist(), capacity))
    for own in packs:
      self.assertTrue((np.diff(own) <= 0).all())

  @parameterized.parameters((2049, 6000), (8193, 6000), (2049, 100))
  def test_fills_rows_of_real_lengths(self, capacity, num_documents):
    lengths = lognormal(num_documents, capacity)
    plan = pack.plan(np.sort(lengths)[::-1], capacity=capacity)
    num_packs = len(plan.starts) - 1
    # No packing has fewer packs than the tokens fill.
    self.assertEqual(num_packs, -(-lengths.sum() // capacity))
    if num_documents == 6000:
      self.assertGreater(lengths.sum() / (num_packs * capacity), 0.995)

  def test_many_lengths(self):
    lengths = np.arange(30_000, 0, -1)
    plan = pack.plan(lengths, capacity=30_001)
    self.assertLen(plan.starts, 15_001)


class PacksTest(parameterized.TestCase):
  @hypothesis.given(
    st.lists(st.integers(0, 40), min_size=1, max_size=60).filter(
      lambda lengths: max(lengths) > 1
    ),
    st.integers(1, 24),
    st.booleans(),
  )
  @hypothesis.settings(
    database=None, deadline=None, derandomize=True, max_examples=100
  )
  def test_every_token_is_a_target_once_an_epoch(self, lengths, length, mix):
    packs = make(lengths, seq_len=length, shuffle=mix)
    starts = np.cumsum([0, *lengths])[:-1]
    expected = set(range(1, 1 + sum(lengths)))
    # Of a document of one token nothing is predicted, nor is any first one.
    expected -= {
      start + 1 for start, n in zip(starts, lengths, strict=True) if n
    }
    for epoch in range(2):
      samples = epoch * packs.num_packs + np.arange(packs.num_packs)
      rows = read(packs, samples, length)
      targets = collections.Counter(rows.tokens[rows.is_target].tolist())
      self.assertEqual(set(targets), expected)
      self.assertEqual(set(targets.values()) - {1}, set())

  @parameterized.parameters(True, False)
  def test_rows(self, is_flat):
    packs = make(is_flat=is_flat)
    tokens = Memory(_LENGTHS)
    starts = np.cumsum([0, *_LENGTHS])
    samples = np.arange(3 * packs.num_packs)
    rows = read(packs, samples)
    for index in samples:
      sample = packs.describe(int(index))
      self.assertEqual(sample.epoch, index // packs.num_packs)
      place = 0
      for number, span in enumerate(sample.documents, 1):
        self.assertEqual(span.epoch, sample.epoch)
        offset, end = place, place + span.stop - span.start
        np.testing.assert_array_equal(
          rows.tokens[index, place:end],
          tokens.read(*(starts[span.document] + [span.start, span.stop])),
        )
        self.assertTrue((rows.segment_ids[index, offset:end] == number).all())
        self.assertFalse(rows.is_target[index, offset])
        self.assertTrue(rows.is_target[index, offset + 1 : end].all())
        place = end
      for array in (rows.tokens, rows.segment_ids, rows.is_target):
        self.assertFalse(array[index, place:].any())

  def test_a_document_is_whole_or_in_pieces(self):
    packs = make([10, 30, 9, 2], shuffle=False)
    spans = sorted(
      (span.document, span.start, span.stop)
      for sample in range(packs.num_packs)
      for span in packs.describe(sample).documents
    )
    # Pieces share a token: a target at the end of one, context in the next.
    pieces = [(1, 0, 10), (1, 9, 19), (1, 18, 28), (1, 27, 30)]
    self.assertEqual(spans, [(0, 0, 10), *pieces, (2, 0, 9), (3, 0, 2)])
    self.assertEqual(
      packs.summary,
      pack.Summary(
        num_documents=4,
        num_untrainable=0,
        num_dropped=0,
        num_cut=1,
        num_packs=packs.num_packs,
        fill=54 / (10 * packs.num_packs),
      ),
    )

  def test_documents_that_are_too_long(self):
    with self.assertRaisesRegex(
      ValueError,
      r"sources\[a\]: 1 of 3 documents .* the first of them document 1 with 11;"
      r" set data.sequence.too_long",
    ):
      make([10, 11, 2], too_long="error")
    dropped = make([10, 11, 2], too_long="drop")
    self.assertEqual(dropped.summary.num_dropped, 1)
    self.assertNotIn(11, read(dropped, range(4)).tokens)
    self.assertEqual(make([10, 2, 1], too_long="error").num_packs, 2)
    for lengths in ([], [1, 0, 1], [11, 12, 1]):
      with self.assertRaisesRegex(ValueError, "can be packed"):
        make(lengths, too_long="drop")

  def test_the_order_is_drawn_anew(self):
    lengths = [3, 4, 5, 6] * 30
    epochs = []
    for seed in range(3):
      for name in "ab":
        packs = make(lengths, seed=seed, name=name)
        for epoch in range(3):
          samples = epoch * packs.num_packs + np.arange(packs.num_packs)
          tokens = read(packs, samples).tokens
          epochs.append(tokens.tobytes())
          # Other neighbours, not only another order of the same packs.
          neighbours = np.sort(tokens[:, 0] * 1000 + tokens[:, 7])
          epochs.append(neighbours.tobytes())
    self.assertLen(set(epochs), len(epochs))

  def test_without_shuffle_it_is_the_order_of_the_file(self):
    packs = make([6, 5, 2, 4, 5, 3, 10], shuffle=False, too_long="error")
    found = [
      [span.document for span in packs.describe(sample).documents]
      for sample in range(packs.num_packs)
    ]
    self.assertEqual(found, [[0, 3], [1, 4], [5, 2], [6]])
    np.testing.assert_array_equal(
      read(packs, range(4)).tokens, read(packs, range(4, 8)).tokens
    )

  def test_any_order_of_reading_gives_the_same(self):
    count = 6 * make().num_packs
    numbers = np.random.default_rng(0).permutation(count)
    mixed, straight = read(make(), numbers), read(make(), range(count))
    np.testing.assert_array_equal(mixed.tokens, straight[numbers].tokens)
    np.testing.assert_array_equal(mixed.is_target, straight[numbers].is_target)

  def test_far_samples(self):
    packs = make()
    sample = packs.describe(10**12)
    self.assertEqual(sample.epoch, 10**12 // packs.num_packs)
    self.assertTrue(read(packs, [10**12]).is_target.any())

  def test_numbers_of_samples(self):
    packs = make([10] * 10)
    for epochs, expected in ((0.1, 1), (0.25, 3), (1, 10), (2.3, 23)):
      self.assertEqual(packs.num_samples(epochs), expected)
      last = packs.describe(expected - 1)
      self.assertEqual(last.epoch, (expected - 1) // 10)


if __name__ == "__main__":
  absltest.main()
