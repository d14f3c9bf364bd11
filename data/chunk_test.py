import itertools

from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
from hypothesis import strategies
import numpy as np

from data import chunk
from data import rows as rows_lib

_LENGTHS = [7, 1, 30, 4, 0, 4, 19, 1, 2]


class Memory:
  """A source whose tokens are their own positions."""

  def __init__(self, lengths):
    self.document_lengths = np.array(lengths)
    self.num_tokens = sum(lengths)

  def read(self, start, stop):
    assert 0 <= start <= stop <= self.num_tokens
    return np.arange(start, stop)


class Mapped(Memory):
  """The same, as one array."""

  def __init__(self, lengths):
    super().__init__(lengths)
    self.flat = np.arange(self.num_tokens, dtype=np.uint16)

  def read(self, start, stop):
    raise NotImplementedError


class Epochs(Memory):
  """The same, with other tokens in each epoch."""

  def __init__(self, lengths, epoch=0):
    super().__init__(lengths)
    self.epoch = epoch

  def read(self, start, stop):
    return super().read(start, stop) + 1000 * self.epoch

  def of_epoch(self, epoch):
    return Epochs(self.document_lengths.tolist(), epoch)


def make(
  lengths=_LENGTHS, *, seq_len=5, seed=0, name="a", shuffle=True, source=Memory
):
  return chunk.Chunks(
    source(lengths), name=name, seq_len=seq_len, seed=seed, shuffle=shuffle
  )


def fill(chunks, samples, seq_len):
  """Rows of samples."""
  samples = np.asarray(samples)
  rows = rows_lib.empty(len(samples), seq_len)
  chunks.fill(samples, rows, np.arange(len(samples)))
  return rows


def reference(chunks, lengths, num_epochs):
  """The stream, laid out whole: (token, document) in each epoch's order."""
  starts = np.concatenate([[0], np.cumsum(lengths)])
  stream, owners = [], []
  for epoch in range(num_epochs):
    for document in chunks._stream._epoch(epoch).order:
      tokens = range(starts[document], starts[document + 1])
      stream += tokens
      owners += [(epoch, int(document))] * len(tokens)
  return np.array(stream), owners


class ChunksTest(parameterized.TestCase):
  # 67 and 97 do not divide into the epoch; 100 is longer than it.
  @parameterized.product(
    seq_len=(1, 2, 5, 17, 67, 68, 69, 100), source=(Memory, Mapped)
  )
  def test_chunks_cut_the_stream(self, seq_len, source):
    chunks = make(seq_len=seq_len, source=source)
    stream, owners = reference(chunks, _LENGTHS, 12)
    samples = np.arange((11 * sum(_LENGTHS) - 1) // seq_len)
    rows = fill(chunks, samples, seq_len)
    for row, k in enumerate(chunks.draw(samples)):
      place = slice(k * seq_len, (k + 1) * seq_len + 1)
      np.testing.assert_array_equal(rows.tokens[row], stream[place], str(k))
      # Segments are counted document by document.
      mine = owners[place]
      steps = [a != b for a, b in itertools.pairwise(mine)]
      expected = np.cumsum([1, *steps])
      np.testing.assert_array_equal(rows.segment_ids[row], expected)
    self.assertTrue(rows.is_target.all())

  def test_other_tokens_in_each_epoch(self):
    chunks = make(source=Epochs)
    plain = fill(make(), np.arange(60), 5)
    epochs = np.array(
      [
        [span.epoch for span in spans for _ in range(span.start, span.stop)]
        for spans in (chunks.describe(k).documents for k in range(60))
      ]
    )
    np.testing.assert_array_equal(
      fill(chunks, np.arange(60), 5).tokens, plain.tokens + 1000 * epochs
    )

  def test_fills_only_its_places(self):
    rows = rows_lib.empty(5, 5)
    make().fill(np.array([7, 2]), rows, np.array([3, 1]))
    expected = fill(make(), [2, 7], 5)
    np.testing.assert_array_equal(rows.tokens[[1, 3]], expected.tokens)
    np.testing.assert_array_equal(
      rows.segment_ids[[1, 3]], expected.segment_ids
    )
    self.assertFalse(rows.tokens[[0, 2, 4]].any())

  @parameterized.parameters(True, False)
  def test_neighbours_share_one_token(self, shuffle):
    chunks = make(shuffle=shuffle)
    numbers = chunks.draw(np.arange(61))
    tokens = fill(chunks, np.argsort(numbers), 5).tokens[:50]
    np.testing.assert_array_equal(tokens[:-1, -1], tokens[1:, 0])

  @parameterized.parameters(1, 5, 17, 67)
  def test_every_token_is_a_target_once_an_epoch(self, seq_len):
    # After as many samples as make whole epochs: seq_len of them.
    chunks = make(seq_len=seq_len)
    num_tokens = sum(_LENGTHS)
    rows = fill(chunks, np.arange(num_tokens), seq_len).tokens
    counts = np.bincount(rows[:, 1:].ravel(), minlength=num_tokens)
    # The stream's first token is never a target; the next epoch's first is.
    stream, _ = reference(chunks, _LENGTHS, seq_len + 1)
    expected = np.full(num_tokens, seq_len)
    expected[stream[0]] -= 1
    expected[stream[num_tokens * seq_len]] += 1
    np.testing.assert_array_equal(counts, expected)

  @parameterized.parameters(5, 17, 67, 100)
  def test_samples_of_an_epoch_are_its_chunks_permuted(self, seq_len):
    chunks = make([10] * 100, seq_len=seq_len)
    drawn = chunks.draw(np.arange(5000 // seq_len))
    epochs = chunks.epoch(drawn)
    self.assertTrue((np.diff(epochs) >= 0).all())
    for epoch in range(4):
      mine = drawn[epochs == epoch]
      first = -(-epoch * 1000 // seq_len)
      np.testing.assert_array_equal(np.sort(mine), first + np.arange(len(mine)))
      # The one that runs into the next epoch comes last.
      if (epoch + 1) * 1000 % seq_len:
        self.assertEqual(mine[-1], mine.max())

  @parameterized.parameters(0.5, 1, 2, 3.25)
  def test_no_token_more_often_than_the_epochs(self, epochs):
    chunks = make([10] * 100, seq_len=7)
    num_samples = chunks.num_samples(epochs)
    self.assertEqual(num_samples, int(epochs * 1000) // 7)
    rows = fill(chunks, np.arange(num_samples), 7)
    counts = np.bincount(rows.tokens[:, 1:].ravel())
    self.assertLessEqual(counts.max(), int(np.ceil(epochs)))

  def test_epochs_seeds_and_names_have_orders_of_their_own(self):
    lengths = [3] * 200
    drawn = [
      make(lengths, seed=seed, name=name).draw(
        np.arange(epoch * 120, (epoch + 1) * 120)
      )
      - 120 * epoch
      for seed in range(3)
      for name in "ab"
      for epoch in range(3)
    ]
    self.assertLen({tuple(order) for order in drawn}, len(drawn))
    documents = [
      make(lengths, seed=seed, name=name)._stream._epoch(epoch).order
      for seed in range(3)
      for name in "ab"
      for epoch in range(3)
    ]
    self.assertLen({tuple(order) for order in documents}, len(documents))

  def test_without_shuffle_it_is_the_file(self):
    chunks = make(shuffle=False)
    np.testing.assert_array_equal(chunks.draw(np.arange(50)), np.arange(50))
    tokens = fill(chunks, np.arange(40), 5).tokens[:, :-1]
    np.testing.assert_array_equal(
      tokens.ravel(), np.arange(200) % sum(_LENGTHS)
    )

  def test_any_order_of_reading_gives_the_same(self):
    numbers = np.random.default_rng(0).permutation(3000)
    expected = fill(make(), np.arange(3000), 5).tokens
    used = make()
    for part in np.split(numbers, 60):
      np.testing.assert_array_equal(fill(used, part, 5).tokens, expected[part])

  def test_describes_the_documents(self):
    chunks = make(shuffle=False, seq_len=10)
    sample = chunks.describe(0)
    self.assertEqual((sample.epoch, sample.number), (0, 0))
    self.assertEqual(
      sample.documents,
      (
        rows_lib.Span(epoch=0, document=0, start=0, stop=7),
        rows_lib.Span(epoch=0, document=1, start=0, stop=1),
        rows_lib.Span(epoch=0, document=2, start=0, stop=3),
      ),
    )

  @hypothesis.settings(max_examples=60, deadline=None)
  @hypothesis.given(
    lengths=strategies.lists(
      strategies.integers(0, 40), min_size=1, max_size=12
    ).filter(lambda lengths: sum(lengths) > 0),
    parts=strategies.lists(
      strategies.tuples(strategies.integers(1, 30), strategies.integers(0, 25)),
      min_size=1,
      max_size=4,
    ),
    shuffle=strategies.booleans(),
  )
  def test_sections_take_every_token_once(self, lengths, parts, shuffle):
    chunks = make(lengths, shuffle=shuffle)
    begin, targets = 0, []
    for seq_len, num_samples in parts:
      part = chunks.section(seq_len=seq_len, begin=begin, limit=num_samples)
      rows = fill(part, np.arange(num_samples), seq_len)
      targets.append(rows.tokens[:, 1:].ravel())
      begin += seq_len * num_samples
    stream, _ = reference(chunks, lengths, begin // sum(lengths) + 2)
    got = np.bincount(np.concatenate(targets), minlength=sum(lengths))
    expected = np.bincount(stream[1 : begin + 1], minlength=sum(lengths))
    np.testing.assert_array_equal(got, expected)

  def test_a_section_without_an_end_begins_as_the_whole(self):
    chunks = make()
    part = chunks.section(seq_len=5, begin=0, limit=None)
    np.testing.assert_array_equal(
      part.draw(np.arange(2000)), chunks.draw(np.arange(2000))
    )

  def test_far_samples_cost_nothing(self):
    chunks = make()
    sample = 10**12
    (number,) = chunks.draw(np.array([sample]))
    self.assertEqual(chunks.epoch(number), sample * 5 // sum(_LENGTHS))
    self.assertEqual(fill(chunks, [sample], 5).tokens.shape, (1, 6))


if __name__ == "__main__":
  absltest.main()
