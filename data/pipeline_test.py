import dataclasses
import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from data import config as config_lib
from data import fixtures
from data import pipeline
from data.sources import array_record

_SHAPE = {"seq_len": 16, "global_batch_size": 4}


def temporary_folder(test_class):
  folder = tempfile.TemporaryDirectory()
  test_class.addClassCleanup(folder.cleanup)
  return pathlib.Path(folder.name)


def take(batches, count):
  return [next(batches) for _ in range(count)]


class PipelineTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.config = fixtures.write_mixture(temporary_folder(cls), seed=7)

  def assert_equal(self, got, expected):
    self.assertEqual(set(got), set(expected))
    for name in expected:
      np.testing.assert_array_equal(got[name], expected[name], name)
      self.assertEqual(got[name].dtype, expected[name].dtype)

  def make(self, shard_index=0, shard_count=1, *, shape=None, **settings):
    batches = pipeline.make(
      dataclasses.replace(self.config, **settings),
      **(shape or _SHAPE),
      shard_index=shard_index,
      shard_count=shard_count,
    )
    self.addCleanup(batches.close)
    return batches

  def test_batch(self):
    (batch,) = take(self.make(), 1)
    for name, array in batch.items():
      self.assertEqual(array.shape, (4, 16), name)
    np.testing.assert_array_equal(
      batch["tokens"][:, 1:], batch["targets"][:, :-1]
    )

  @parameterized.parameters(
    {"prefetch_batches": 0},
    {"prefetch_batches": 1},
    {"prefetch_batches": 5},
    {"num_workers": 2},
  )
  def test_prefetching_does_not_change_the_batches(self, **settings):
    expected = take(self.make(prefetch_batches=2), 6)
    for got, batch in zip(
      take(self.make(**settings), 6), expected, strict=True
    ):
      self.assert_equal(got, batch)

  @parameterized.parameters(2, 4)
  def test_hosts_share_the_rows_of_one_batch(self, count):
    hosts = [take(self.make(host, count), 5) for host in range(count)]
    for step, expected in enumerate(take(self.make(), 5)):
      rows = {
        name: np.concatenate([host[step][name] for host in hosts])
        for name in expected
      }
      self.assert_equal(rows, expected)

  def test_resumes_from_every_step(self):
    batches = self.make()
    states, expected = [], []
    for _ in range(12):
      states.append(json.loads(json.dumps(batches.get_state())))
      expected.append(next(batches))
    resumed = self.make()
    for step in (3, 0, 11, 7, 1, 2, 4, 5, 6, 8, 9, 10):
      resumed.set_state(states[step])
      self.assert_equal(next(resumed), expected[step])
      self.assertEqual(resumed.get_state()["step"], step + 1)

  def test_resumes_on_another_number_of_hosts(self):
    one = self.make()
    take(one, 3)
    state = one.get_state()
    expected = next(one)
    for host in range(2):
      other = self.make(host, 2)
      other.set_state(state)
      rows = slice(2 * host, 2 * host + 2)
      self.assert_equal(
        next(other), {name: array[rows] for name, array in expected.items()}
      )

  def test_resumes_with_workers(self):
    one = self.make(num_workers=2)
    take(one, 3)
    other = self.make()
    other.set_state(one.get_state())
    self.assert_equal(next(one), next(other))

  def test_refuses_the_state_of_another_run(self):
    state = self.make().get_state()
    with self.assertRaisesRegex(
      ValueError, "data has seed 7, the config gives"
    ):
      self.make(seed=8).set_state(state)
    with self.assertRaisesRegex(ValueError, "has global_batch_size 4"):
      self.make(shape=_SHAPE | {"global_batch_size": 8}).set_state(state)
    other = dataclasses.replace(self.config.sources[0], weight=0.6)
    with self.assertRaisesRegex(ValueError, "has sources"):
      sources = (other, self.config.sources[1])
      self.make(sources=sources).set_state(state)

  def test_an_epoch_gives_every_token_once(self):
    # One source, so that its samples are the rows; sixteen epochs are whole.
    only = dataclasses.replace(self.config.sources[0], weight=1.0)
    source = array_record.ArrayRecordSource(only.path)
    batches = self.make(
      sources=(only,), shape={"seq_len": 16, "global_batch_size": 1}
    )
    rows = take(batches, source.num_tokens)
    targets = np.concatenate([row["targets"][0] for row in rows])
    first = next(r for r in range(len(rows)) if batches.locate(r)[0].chunk == 0)
    # The stream's first token is missing, the next epoch's is there instead.
    got = np.bincount(targets, minlength=300)
    got[rows[first]["tokens"][0, 0]] += 1
    last = max(range(len(rows)), key=lambda r: batches.locate(r)[0].chunk)
    got[targets.reshape(-1, 16)[last, -1]] -= 1
    tokens = source.read(0, source.num_tokens)
    np.testing.assert_array_equal(got, 16 * np.bincount(tokens, minlength=300))

  def test_mixture_has_the_weights(self):
    batches = self.make(shape={"seq_len": 16, "global_batch_size": 10})
    for step in range(5):
      sources = [row.source for row in batches.locate(step)]
      self.assertEqual((sources.count("a"), sources.count("b")), (7, 3))

  def test_locate_names_what_the_rows_are(self):
    batches = self.make(1, 2)
    sources = {
      source.name: array_record.ArrayRecordSource(source.path)
      for source in self.config.sources
    }
    for step, batch in enumerate(take(batches, 8)):
      for row, tokens in zip(
        batches.locate(step), batch["tokens"], strict=True
      ):
        source = sources[row.source]
        starts = np.cumsum(source.document_lengths) - source.document_lengths
        parts = [
          source.read(
            int(starts[span.document]) + span.start,
            int(starts[span.document]) + span.stop,
          )
          for span in row.documents
        ]
        np.testing.assert_array_equal(np.concatenate(parts)[:-1], tokens)
        self.assertEqual(row.documents[0].epoch, row.epoch)

  def test_seeds_and_shuffle_matter(self):
    batches = [self.make(seed=1), self.make(seed=2), self.make(shuffle=False)]
    rows = {next(batch)["tokens"].tobytes() for batch in batches}
    self.assertLen(rows, 3)

  def test_documents_are_masked_at_eos(self):
    for batch in take(self.make(mask_documents=True), 4):
      ends = batch["tokens"][:, :-1] == 1
      steps = np.diff(batch["segment_ids"], axis=1)
      np.testing.assert_array_equal(steps, ends)
      restarts = batch["positions"][:, 1:] == 0
      np.testing.assert_array_equal(restarts, ends)

  def test_synthetic(self):
    config = config_lib.DataConfig(
      kind=config_lib.Kind.SYNTHETIC, vocab_size=500
    )
    one, two = (pipeline.make(config, **_SHAPE) for _ in range(2))
    self.addCleanup(one.close)
    self.addCleanup(two.close)
    self.assert_equal(next(one), next(two))
    self.assertLess(next(one)["tokens"].max(), 500)

  @parameterized.parameters(
    ({"global_batch_size": 3, "shard_count": 2}, "multiple of 2"),
    ({"global_batch_size": 0}, "global_batch_size is 0"),
    ({"seq_len": 0}, "seq_len is 0"),
    ({"shard_index": 1}, r"shard_index is 1; it must be in \[0, 1\)"),
  )
  def test_refuses(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      pipeline.make(self.config, **(_SHAPE | fields))


if __name__ == "__main__":
  absltest.main()
