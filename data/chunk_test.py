from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from data import chunk

_LENGTHS = [7, 1, 30, 4, 4, 19, 1, 2]


class Memory:
  """A source whose tokens are their own positions."""

  def __init__(self, lengths):
    self.document_lengths = np.array(lengths)
    self.num_tokens = sum(lengths)

  def read(self, start, stop):
    assert 0 <= start <= stop <= self.num_tokens
    return np.arange(start, stop)


def make(lengths=_LENGTHS, *, seq_len=5, seed=0, name="a", shuffle=True):
  return chunk.Chunks(
    Memory(lengths), name=name, seq_len=seq_len, seed=seed, shuffle=shuffle
  )


def reference(chunks, lengths, num_epochs):
  """The stream, laid out whole: documents in each epoch's order."""
  starts = np.concatenate([[0], np.cumsum(lengths)])
  stream = []
  for epoch in range(num_epochs):
    for document in chunks._epoch(epoch).order:
      stream += range(starts[document], starts[document + 1])
  return np.array(stream)


class ChunksTest(parameterized.TestCase):
  # 67 and 97 do not divide into the epoch; 100 is longer than it.
  @parameterized.parameters(1, 2, 5, 17, 67, 68, 69, 100)
  def test_chunks_cut_the_stream(self, seq_len):
    chunks = make(seq_len=seq_len)
    stream = reference(chunks, _LENGTHS, 12)
    for k in range((len(stream) - 1) // seq_len):
      expected = stream[k * seq_len : (k + 1) * seq_len + 1]
      np.testing.assert_array_equal(chunks.read(k), expected, str(k))

  @parameterized.parameters(True, False)
  def test_neighbours_share_one_token(self, shuffle):
    chunks = make(shuffle=shuffle)
    for k in range(60):
      self.assertEqual(chunks.read(k)[-1], chunks.read(k + 1)[0])

  @parameterized.parameters(1, 5, 17, 67)
  def test_every_token_is_a_target_once_an_epoch(self, seq_len):
    # After as many samples as make whole epochs: seq_len of them.
    chunks = make(seq_len=seq_len)
    num_tokens = sum(_LENGTHS)
    samples = np.arange(num_tokens)
    targets = [chunks.read(int(k))[1:] for k in chunks.draw(samples)]
    counts = np.bincount(np.concatenate(targets), minlength=num_tokens)
    # The stream's first token is never a target; the next epoch's first is.
    first, after = chunks.read(0)[0], chunks.read(num_tokens)[0]
    expected = np.full(num_tokens, seq_len)
    expected[first] -= 1
    expected[after] += 1
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
      make(lengths, seed=seed, name=name)._epoch(epoch).order
      for seed in range(3)
      for name in "ab"
      for epoch in range(3)
    ]
    self.assertLen({tuple(order) for order in documents}, len(documents))

  def test_without_shuffle_it_is_the_file(self):
    chunks = make(shuffle=False)
    np.testing.assert_array_equal(chunks.draw(np.arange(50)), np.arange(50))
    tokens = np.concatenate([chunks.read(k)[:-1] for k in range(40)])
    np.testing.assert_array_equal(tokens, np.arange(200) % sum(_LENGTHS))

  def test_any_order_of_reading_gives_the_same(self):
    numbers = np.random.default_rng(0).permutation(300).tolist()
    used = make()
    read = {number: used.read(number) for number in numbers}
    for number in range(300):
      np.testing.assert_array_equal(read[number], make().read(number))

  def test_spans_name_the_documents(self):
    chunks = make(shuffle=False, seq_len=10)
    self.assertEqual(
      list(chunks.spans(0)),
      [
        chunk.Span(epoch=0, document=0, start=0, stop=7),
        chunk.Span(epoch=0, document=1, start=0, stop=1),
        chunk.Span(epoch=0, document=2, start=0, stop=3),
      ],
    )

  def test_far_samples_cost_nothing(self):
    chunks = make()
    sample = 10**12
    (number,) = chunks.draw(np.array([sample]))
    self.assertEqual(chunks.epoch(number), sample * 5 // sum(_LENGTHS))
    self.assertLen(chunks.read(int(number)), 6)


if __name__ == "__main__":
  absltest.main()
