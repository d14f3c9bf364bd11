import itertools

from absl.testing import absltest
import numpy as np

from data import chunk
from data import config as config_lib
from data import forecast_counts
from data import pack

_SEQ_LEN = 16


class Memory:
  """Documents of some lengths, in memory."""

  def __init__(self, lengths):
    self.document_lengths = np.array(lengths)
    self.num_tokens = sum(lengths)

  def read(self, start, stop):
    return np.arange(start, stop)


class Paired:
  """Two rows a sample: of k tokens and of one more, from 2 to 9."""

  rows_per_sample = 2
  length = 7

  def fill(self, samples, rows, places):
    for sample, place in zip(samples.tolist(), places.tolist(), strict=True):
      for side in range(2):
        size = 2 + sample % self.length + side
        rows.is_target[place + side, size:] = False
        rows.segment_ids[place + side, size:] = 0

  def describe(self, sample):
    raise NotImplementedError

  def num_samples(self, epochs):
    return round(epochs * self.length)


def packs():
  lengths = np.random.RandomState(0).randint(1, 40, 150).tolist()
  return pack.Packs(
    Memory(lengths),
    name="a",
    seq_len=_SEQ_LEN,
    seed=0,
    shuffle=True,
    config=config_lib.SequenceConfig(kind="pack", too_long="right"),
  )


class UnevenTest(absltest.TestCase):
  def test_all_parts_are_what_is_read(self):
    for sequences in (packs(), Paired()):
      counter = forecast_counts.Uneven(sequences, seq_len=_SEQ_LEN)
      epoch = sequences.num_samples(1)
      borders = (0, 2, 5, epoch, epoch + 3, epoch + 4, 3 * epoch, 3 * epoch + 1)
      for first, stop in itertools.combinations(borders, 2):
        expected = forecast_counts.count_reference(
          sequences, np.arange(first, stop), seq_len=_SEQ_LEN
        )
        found = counter.count(first, stop, _SEQ_LEN)
        self.assertEqual(found, expected[:2], (first, stop))
      self.assertEqual(counter.count(4, 4, _SEQ_LEN), (0, 0))
      self.assertFalse(counter.is_estimated)
      whole = forecast_counts.count_reference(
        sequences, np.arange(epoch), seq_len=_SEQ_LEN
      )
      self.assertEqual(counter.tokens_of_epoch, whole[2])
      self.assertEqual(counter.epochs(3 * epoch, _SEQ_LEN), 3)

  def test_the_reference_counts_rows(self):
    # Rows of 2, 3, 3 and 4 tokens; the first is no target.
    found = forecast_counts.count_reference(
      Paired(), np.array([0, 1]), seq_len=_SEQ_LEN
    )
    self.assertEqual(found, (8, 4 * 16 - 12, 12))

  def test_many_are_estimated(self):
    exact = forecast_counts.Uneven(packs(), seq_len=_SEQ_LEN)
    counter = forecast_counts.Uneven(packs(), seq_len=_SEQ_LEN, most=32 * 16)
    self.assertTrue(counter.is_estimated)
    epoch = packs().num_samples(1)
    for found, expected in zip(
      counter.count(0, epoch, _SEQ_LEN),
      exact.count(0, epoch, _SEQ_LEN),
      strict=True,
    ):
      self.assertAlmostEqual(found, expected, delta=0.02 * epoch * _SEQ_LEN)


class EvenTest(absltest.TestCase):
  def test_chunks(self):
    sequences = chunk.Chunks(
      Memory([30, 25]), name="a", seq_len=_SEQ_LEN, seed=0, shuffle=True
    )
    counter = forecast_counts.Even(55)
    found = forecast_counts.count_reference(
      sequences, np.arange(2, 9), seq_len=_SEQ_LEN
    )
    self.assertEqual(counter.count(2, 9, _SEQ_LEN), found[:2])
    self.assertEqual(counter.epochs(55, 16), 16)


if __name__ == "__main__":
  absltest.main()
