from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
from hypothesis import strategies as st
import numpy as np

from data.megatron import index as index_lib


def _num_epochs(num_tokens, seq_len, num_samples, extra):
  """By adding epochs one by one."""
  epochs, tokens = 1, num_tokens
  while num_samples is not None and tokens < num_samples * seq_len + extra:
    epochs += 1
    tokens += num_tokens
  return epochs


def _sample_index(lengths, documents, *, seq_len, num_samples, extra):
  """By walking over the sequences, as Megatron does."""
  place = offset = 0
  table = [(0, 0)]
  for _ in range(num_samples):
    rest = seq_len + extra
    while rest:
      length = lengths[documents[place]] - offset
      rest -= length
      if rest <= 0:
        offset += rest + length - extra
        rest = 0
      elif place == len(documents) - 1:
        offset = lengths[documents[place]] - extra
        break
      else:
        place, offset = place + 1, 0
    table.append((place, offset))
  return table


_LENGTHS = st.lists(st.integers(0, 12), min_size=1, max_size=20)


class IndexTest(parameterized.TestCase):
  @hypothesis.settings(max_examples=300, deadline=None)
  @hypothesis.given(
    lengths=_LENGTHS,
    seq_len=st.integers(1, 15),
    num_samples=st.none() | st.integers(0, 40),
    extra=st.integers(0, 1),
    drop_last=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
  )
  def test_equals_the_walk(
    self, lengths, seq_len, num_samples, extra, drop_last, seed
  ):
    lengths = np.array(lengths, np.int32)
    hypothesis.assume(lengths.any())
    index = index_lib.build(
      lengths,
      bounds=(0, len(lengths)),
      seq_len=seq_len,
      num_samples=num_samples,
      seed=seed,
      extra=extra,
      drop_last=drop_last,
    )
    plan = index.plan
    epochs = _num_epochs(int(lengths.sum()), seq_len, num_samples, extra)
    self.assertEqual(plan.num_epochs, epochs)
    np.testing.assert_array_equal(
      np.sort(index.documents), np.repeat(np.arange(len(lengths)), epochs)
    )
    np.testing.assert_array_equal(
      np.sort(index.shuffle), np.arange(plan.num_samples)
    )
    if num_samples is not None:
      self.assertGreaterEqual(plan.num_samples, num_samples)
    # Megatron refuses its own table if the last sequence is too short for it.
    cut = plan.num_samples * seq_len + extra > plan.num_epochs * lengths.sum()
    hypothesis.assume(not cut or lengths[index.documents[-1]] >= extra)
    table = _sample_index(
      lengths,
      index.documents,
      seq_len=seq_len,
      num_samples=plan.num_samples,
      extra=extra,
    )
    np.testing.assert_array_equal(index.sample_index(), table)
    # The pieces are the tokens from a row of the table to the next.
    stream = np.concatenate(
      [np.arange(lengths[d]) + 100 * d for d in index.documents]
    )
    samples = np.arange(plan.num_samples)
    pieces = index.pieces(samples)
    self.assertTrue((pieces.lengths > 0).all())
    for sample in samples:
      (first, offset), (last, end) = (
        table[index.shuffle[sample]],
        table[index.shuffle[sample] + 1],
      )
      expected = stream[
        index.starts[first] + offset : index.starts[last] + end + extra
      ]
      mine = np.flatnonzero(pieces.rows == sample)
      got = [
        np.arange(pieces.lengths[p])
        + pieces.starts[p]
        + 100 * pieces.sequences[p]
        for p in mine
      ]
      np.testing.assert_array_equal(np.concatenate([*got, []]), expected)
      at = np.cumsum([0, *pieces.lengths[mine]])[:-1]
      np.testing.assert_array_equal(pieces.offsets[mine], at)

  @parameterized.parameters(
    # samples, epochs, samples of the first epochs, separate
    (9, 1, 9, False),
    (10, 2, 9, True),  # 1 of 9 from the last epoch
    (15, 2, 9, True),  # 6 < int(0.8 * 9)
    (16, 2, 19, False),  # 7 is enough
    (20, 3, 19, True),
  )
  def test_the_last_epoch(self, num_samples, epochs, first, separate):
    plan = index_lib.plan(
      num_tokens=100, seq_len=10, num_samples=num_samples, extra=1
    )
    self.assertEqual(
      (plan.num_epochs, plan.num_first, plan.separate),
      (epochs, first, separate),
    )

  def test_a_separate_last_epoch_is_shuffled_for_itself(self):
    lengths = np.full(50, 10, np.int32)
    index = index_lib.build(
      lengths, bounds=(0, 50), seq_len=10, num_samples=60, seed=1
    )
    self.assertTrue(index.plan.separate)
    self.assertCountEqual(index.documents[:50], range(50))
    self.assertCountEqual(index.shuffle[:49], range(49))
    self.assertCountEqual(index.shuffle[49:], range(49, 99))

  def test_a_last_sample_that_is_not_full_is_counted_in_float32(self):
    for num_tokens, kept, exact in (
      (33_554_435, 2_097_152, 2_097_153),
      (100, 7, 7),
    ):
      plan = index_lib.plan(
        num_tokens=num_tokens,
        seq_len=16,
        num_samples=None,
        extra=1,
        drop_last=False,
      )
      self.assertEqual(plan.num_samples, kept)
      self.assertEqual(-(-(num_tokens - 1) // 16), exact)

  def test_many_epochs_are_counted_at_once(self):
    plan = index_lib.plan(
      num_tokens=1, seq_len=4096, num_samples=10**12, extra=1
    )
    self.assertEqual(plan.num_epochs, 4096 * 10**12 + 1)

  def test_refuses_samples_of_nothing(self):
    with self.assertRaisesRegex(ValueError, "no tokens.*data.megatron.split"):
      index_lib.plan(num_tokens=0, seq_len=4, num_samples=0, extra=1)

  @parameterized.parameters(0, 1)
  def test_nothing_gives_nothing(self, extra):
    index = index_lib.build(
      np.array([3, 4], np.int32),
      bounds=(1, 1),
      seq_len=1,
      num_samples=None,
      seed=0,
      extra=extra,
    )
    self.assertEqual(index.num_samples, 0)
    self.assertEqual(index.sample_index().tolist(), [[0, 0]])


if __name__ == "__main__":
  absltest.main()
