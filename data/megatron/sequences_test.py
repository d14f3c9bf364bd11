import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
from hypothesis import strategies as st
import numpy as np

from data import indexed
from data import rows as rows_lib
from data.megatron import index as index_lib
from data.megatron import items
from data.megatron import sequences as sequences_lib

_SEQ_LEN = 6


class SequencesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    prefix = pathlib.Path(self.create_tempdir().full_path) / "corpus"
    random = np.random.default_rng(0)
    with indexed.Writer(prefix, "uint16") as writer:
      for _ in range(20):
        writer.add_document(
          [random.integers(1, 999, size=random.integers(0, 15)) for _ in "ab"]
        )
    self.corpus = indexed.Indexed(prefix)

  def index(self, **options) -> index_lib.Index:
    return index_lib.build(
      self.corpus.sequence_lengths,
      bounds=(2, 38),
      seq_len=_SEQ_LEN,
      seed=3,
      **options,
    )

  def open(self, index) -> sequences_lib.IndexSequences:
    return sequences_lib.IndexSequences(index, self.corpus, name="a")

  def texts(self, index, samples):
    return items.texts(
      index,
      np.array(samples),
      tokens=self.corpus.tokens,
      sequence_starts=self.corpus.sequence_starts,
      pad=-1,
    )

  @hypothesis.settings(max_examples=30, deadline=None)
  @hypothesis.given(data=st.data())
  def test_fills_rows_with_the_samples(self, data):
    extra = data.draw(st.integers(0, 1))
    index = self.index(
      num_samples=data.draw(st.none() | st.integers(1, 99)),
      extra=extra,
      drop_last=data.draw(st.booleans()),
    )
    samples = data.draw(
      st.lists(st.integers(0, index.num_samples - 1), max_size=8)
    )
    places = data.draw(st.permutations(range(len(samples) + 2)))[: len(samples)]
    rows = rows_lib.empty(len(samples) + 2, _SEQ_LEN)
    sequences = self.open(index)
    sequences.fill(np.array(samples, int), rows, np.array(places, int))
    texts = self.texts(index, np.array(samples, int))
    for sample, place, text in zip(samples, places, texts, strict=True):
      there = np.zeros(_SEQ_LEN + 1, bool)
      there[: len(text)] = text >= 0
      expected = np.where(text >= 0, text, 0).tolist() + [0] * (1 - extra)
      self.assertEqual(rows.tokens[place].tolist(), expected)
      self.assertEqual(rows.is_target[place].tolist(), there.tolist())
      spans = sequences.describe(sample).documents
      segments = [
        number
        for number, span in enumerate(spans, 1)
        for _ in range(span.start, span.stop)
      ]
      self.assertEqual(rows.segment_ids[place][there].tolist(), segments)
      self.assertFalse(rows.segment_ids[place][~there].any())
    for place in set(range(len(samples) + 2)) - set(places):
      self.assertFalse(rows.tokens[place].any())
      self.assertTrue(rows.is_target[place].all())

  def test_describes_samples_by_sequences_of_the_file(self):
    index = self.index(num_samples=100)
    self.assertGreater(index.plan.num_epochs, 1)
    sequences = self.open(index)
    epochs = set()
    for sample in range(index.num_samples):
      described = sequences.describe(sample)
      tokens = []
      for span in described.documents:
        start = int(self.corpus.sequence_starts[span.document])
        tokens += self.corpus.tokens[
          start + span.start : start + span.stop
        ].tolist()
        epochs.add(span.epoch)
      self.assertEqual(tokens, self.texts(index, [sample])[0].tolist())
      self.assertEqual(described.number, index.shuffle[sample])
      self.assertEqual(described.epoch, described.documents[0].epoch)
    self.assertEqual(epochs, set(range(index.plan.num_epochs)))

  def test_samples_of_epochs(self):
    index = self.index(num_samples=100)
    sequences = self.open(index)
    plan = index.plan
    self.assertEqual(
      sequences.num_samples(1), (plan.num_tokens - 1) // _SEQ_LEN
    )
    self.assertEqual(sequences.num_samples(99), plan.num_samples)
    self.assertEqual(sequences.num_samples(0), 0)

  @parameterized.parameters(-1, 10**6)
  def test_refuses_samples_that_were_not_made(self, sample):
    sequences = self.open(self.index(num_samples=None))
    rows = rows_lib.empty(1, _SEQ_LEN)
    with self.assertRaisesRegex(
      ValueError, r"data.sources\[a\] has .* samples"
    ):
      sequences.fill(np.array([sample]), rows, np.array([0]))


if __name__ == "__main__":
  absltest.main()
