import dataclasses
import json
import os
import pathlib
from unittest import mock

from absl.testing import absltest

from data import config as config_lib
from data import conversation_fixtures
from data import fixtures
from data import forecast_counts
from data import forecast_sources
from data import plan as plan_lib


class ForecastSourcesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    environment = {"XDG_CACHE_HOME": str(self.root / "cache")}
    self.enter_context(mock.patch.dict(os.environ, environment))

  def describe(self, config, seq_len):
    plan = plan_lib.make(config, seq_len=seq_len, batch_size=2, num_steps=None)
    counters = [forecast_counts.make(plan, i) for i in range(len(plan.names))]
    return forecast_sources.describe(config, plan, counters)

  def test_datasets(self):
    config = fixtures.write_mixture(self.root)
    b = dataclasses.replace(config.sources[1], eval_path="")
    config = dataclasses.replace(config, sources=(config.sources[0], b))
    found = self.describe(config, 32)
    num_bytes = sum(len(fixtures.text(n).encode()) for n in range(30))
    self.assertEqual(found[0].format, "dataset")
    self.assertEqual(found[0].num_documents, 30)
    self.assertEqual(found[0].num_bytes, num_bytes)
    self.assertEqual(found[0].held_out_documents, 7)
    self.assertGreater(found[0].held_out_tokens or 0, 0)
    self.assertIsNone(found[1].held_out_documents)
    self.assertIsNone(found[1].held_out_tokens)
    lost = dataclasses.replace(b, eval_path=str(self.root / "missing"))
    with self.assertRaisesRegex(ValueError, r"sources\[b\].*missing"):
      self.describe(dataclasses.replace(config, sources=(lost,)), 32)

  def test_what_is_left_out(self):
    config = fixtures.write_mixture(self.root)
    found = {}
    for too_long in ("drop", "right"):
      sequence = config_lib.SequenceConfig(kind="pack", too_long=too_long)
      found[too_long] = self.describe(
        dataclasses.replace(config, sequence=sequence), 64
      )[0]
    self.assertGreater(found["drop"].num_dropped, 0)
    self.assertEqual(found["drop"].num_dropped, found["right"].num_cut)
    self.assertEqual(found["drop"].num_cut, 0)
    self.assertLess(found["drop"].num_tokens, found["right"].num_tokens)

  def test_rows_without_a_target(self):
    folder = conversation_fixtures.write_tokenizer(
      self.root / "tokenizer", conversation_fixtures.CHATML
    )
    rows = [{"messages": conversation_fixtures.chat("q", "a")}] * 4
    rows.append({"messages": conversation_fixtures.chat("q")})
    path = self.root / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_lib.DataConfig(
      kind=config_lib.Kind.DATASETS,
      sources=(config_lib.SourceConfig(name="a", path=str(path)),),
      tokenizer=str(folder),
      sequence=config_lib.SequenceConfig(kind="chat", skip_untrainable=True),
      mask_documents=True,
    )
    (found,) = self.describe(config, 100)
    self.assertEqual(found.num_documents, 5)
    self.assertEqual(found.num_untrainable, 1)
    self.assertIsNone(found.num_bytes)


if __name__ == "__main__":
  absltest.main()
