from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
from hypothesis import strategies as st
import numpy as np

from data import chunk
from data import rows
from data.sources import subset


class Memory:
  """Tokens that are their own positions."""

  flat: np.ndarray | None = None

  def __init__(self, lengths):
    self.document_lengths = np.array(lengths, np.int64)
    self.num_tokens = sum(lengths)

  def read(self, start, stop):
    assert 0 <= start <= stop <= self.num_tokens
    return np.arange(start, stop, dtype=np.uint16)


class Rows:
  digest = "rows"

  def __len__(self):
    return 10

  def __getitem__(self, index):
    return {"row": index}

  def name_of(self, index):
    return f"rows.jsonl:{index + 1}"


class HeldOutTest(parameterized.TestCase):
  @hypothesis.given(
    num_documents=st.integers(2, 500),
    share=st.floats(0.0001, 0.9999),
    smaller=st.floats(0.0001, 1),
  )
  @hypothesis.settings(deadline=None)
  def test_is_exact_and_nested(self, num_documents, share, smaller):
    chosen = subset.held_out(num_documents, share)
    expected = min(max(round(share * num_documents), 1), num_documents - 1)
    self.assertEqual(chosen.sum(), expected)
    np.testing.assert_array_equal(chosen, subset.held_out(num_documents, share))
    fewer = subset.held_out(num_documents, share * smaller)
    self.assertFalse((fewer & ~chosen).any())

  def test_new_documents_move_few_of_the_others(self):
    before = subset.held_out(10_000, 0.1)
    after = subset.held_out(10_100, 0.1)[:10_000]
    self.assertLess((before != after).sum(), 30)

  def test_is_spread_over_the_source(self):
    counts = subset.held_out(100_000, 0.1).reshape(100, -1).sum(1)
    # 100 of each thousand, with a standard deviation of 9.5.
    self.assertBetween(counts.min(), 60, 100)
    self.assertBetween(counts.max(), 100, 140)

  def test_blocks_make_no_difference(self):
    expected = subset.held_out(1000, 0.1)
    with mock.patch.object(subset, "_BLOCK", 64):
      np.testing.assert_array_equal(subset.held_out(1000, 0.1), expected)

  def test_does_not_change(self):
    chosen = np.flatnonzero(subset.held_out(100, 0.1))
    # Or a run would train on what it held out before.
    expected = [2, 32, 33, 41, 42, 43, 53, 88, 94, 95]
    self.assertEqual(chosen.tolist(), expected)

  def test_refuses_what_cannot_be_divided(self):
    with self.assertRaisesRegex(ValueError, "held_out is 0.1, .* 1 documents"):
      subset.held_out(1, 0.1)


class TokenSubsetTest(parameterized.TestCase):
  @hypothesis.given(
    documents=st.lists(
      st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=12
    )
  )
  @hypothesis.settings(deadline=None, max_examples=50)
  def test_reads_as_the_documents_laid_end_to_end(self, documents):
    lengths, chosen = map(list, zip(*documents, strict=True))
    hypothesis.assume(any(chosen))
    source = Memory(lengths)
    view = subset.TokenSubset(source, np.array(chosen))
    ends = np.cumsum(lengths)
    tokens = np.concatenate(
      [
        np.arange(end - length, end)
        for end, length, mine in zip(ends, lengths, chosen, strict=True)
        if mine
      ]
    )
    self.assertEqual(view.num_tokens, len(tokens))
    self.assertEqual(view.document_lengths.sum(), len(tokens))
    for start in range(len(tokens) + 1):
      for stop in range(start, len(tokens) + 1):
        read = view.read(start, stop)
        self.assertEqual(read.dtype, np.uint16)
        np.testing.assert_array_equal(read, tokens[start:stop])

  def test_tells_where_the_documents_lie_in_one_array(self):
    lengths, chosen = (
      [2, 9, 0, 3, 4],
      np.array([True, False, True, True, False]),
    )
    read, mapped = Memory(lengths), Memory(lengths)
    mapped.flat = mapped.read(0, mapped.num_tokens)
    tokens = []
    for source in (read, mapped):
      view = subset.TokenSubset(source, chosen)
      chunks = chunk.Chunks(view, name="a", seq_len=3, seed=0, shuffle=True)
      batch = rows.empty(6, 3)
      chunks.fill(np.arange(6), batch, np.arange(6))
      tokens.append(batch.tokens)
    self.assertIsNone(subset.TokenSubset(read, chosen).flat)
    self.assertEqual(view.document_starts.tolist(), [0, 11, 11])
    np.testing.assert_array_equal(tokens[0], tokens[1])
    self.assertEqual(set(tokens[0].ravel().tolist()), {0, 1, 11, 12, 13})

  @parameterized.parameters((-1, 2), (2, 1), (0, 6))
  def test_refuses_ranges_outside(self, start, stop):
    view = subset.TokenSubset(Memory([2, 9, 3]), np.array([True, False, True]))
    with self.assertRaisesRegex(ValueError, r"outside \[0, 5\)"):
      view.read(start, stop)


class RecordSubsetTest(absltest.TestCase):
  def test_has_the_chosen_rows(self):
    chosen = np.isin(np.arange(10), [2, 3, 7])
    view = subset.RecordSubset(Rows(), chosen, digest="a")
    self.assertEqual([row["row"] for row in view], [2, 3, 7])
    self.assertEqual((len(view), view.digest), (3, "a"))
    self.assertEqual(view.name_of(2), "rows.jsonl:8")
    for index in (-1, 3):
      with self.assertRaises(IndexError):
        view[index]


if __name__ == "__main__":
  absltest.main()
