import pathlib
import tempfile
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from data import fixtures
from data import held_out
from data import pipeline
from data.sources import array_record


class HeldOutTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = tempfile.TemporaryDirectory()
    cls.addClassCleanup(folder.cleanup)
    cls.config = fixtures.write_mixture(pathlib.Path(folder.name))
    cls.source = array_record.ArrayRecordSource(
      cls.config.source("b").eval_path
    )

  def make(self, **fields) -> held_out.EvalBatches:
    arguments: dict[str, Any] = {
      "source": "b",
      "seq_len": 16,
      "batch_size": 4,
      **fields,
    }
    return pipeline.make_eval(self.config, **arguments)

  @parameterized.parameters((16, 4), (1, 1), (7, 3), (10_000, 2))
  def test_every_token_is_a_target_once(self, seq_len, batch_size):
    batches = self.make(seq_len=seq_len, batch_size=batch_size)
    targets, previous = [], []
    for batch in batches:
      self.assertEqual(batch["tokens"].shape, (batch_size, seq_len))
      counted = batch["loss_weights"] == 1
      targets.append(batch["targets"][counted])
      previous.append(batch["tokens"][counted])
    tokens = self.source.read(0, self.source.num_tokens)
    np.testing.assert_array_equal(np.concatenate(targets), tokens)
    before = [self.source.manifest.eos_id, *tokens[:-1]]
    np.testing.assert_array_equal(np.concatenate(previous), before)
    self.assertEqual(batches.num_tokens, len(tokens))
    self.assertEqual(batches.num_bytes, self.source.manifest.num_bytes)

  def test_hosts_share_the_rows(self):
    expected = list(self.make())
    hosts = [list(self.make(shard_index=i, shard_count=2)) for i in range(2)]
    for number, batch in enumerate(expected):
      for name, array in batch.items():
        rows = np.concatenate([host[number][name] for host in hosts])
        np.testing.assert_array_equal(rows, array)
    self.assertEqual([len(host) for host in hosts], [len(expected)] * 2)

  def test_a_part_counts_its_own_tokens(self):
    whole = list(self.make())
    part = self.make(num_batches=2)
    self.assertLen(part, 2)
    self.assertEqual(part.num_tokens, 2 * 4 * 16)
    for got, expected in zip(part, whole[:2], strict=True):
      np.testing.assert_array_equal(got["tokens"], expected["tokens"])

  def test_is_the_same_each_time(self):
    batches = self.make()
    for one, two in zip(batches, batches, strict=True):
      np.testing.assert_array_equal(one["tokens"], two["tokens"])

  @parameterized.parameters(
    ({"source": "c"}, r"sources\[c\] has no held-out split; .* a, b"),
    ({"num_batches": 0}, "num_batches is 0"),
    ({"num_batches": 10**6}, "num_batches is 1000000, but"),
    ({"shard_count": 3}, "multiple of 3"),
  )
  def test_refuses(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      self.make(**fields)


if __name__ == "__main__":
  absltest.main()
