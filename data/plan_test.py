import dataclasses
import json
import os
import pathlib
from typing import Any
from unittest import mock

from absl.testing import absltest
import numpy as np

from data import config as config_lib
from data import conversation_fixtures
from data import fixtures
from data import indexed
from data import pipeline
from data import plan
from data import tokenizer as tokenizer_lib

_CHATS = [
  {"messages": conversation_fixtures.chat(f"q{n}", f"answer {n}")}
  for n in range(25)
]
_PAIRS = [
  {"prompt": f"p{n}", "chosen": f"good {n}", "rejected": f"bad {n}"}
  for n in range(15)
]


class SequencesTest(absltest.TestCase):
  """Each kind of sequences by config alone, through the pipeline."""

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    environment = {"XDG_CACHE_HOME": str(self.root / "cache")}
    self.enter_context(mock.patch.dict(os.environ, environment))
    self.folder = conversation_fixtures.write_tokenizer(
      self.root / "tokenizer", conversation_fixtures.CHATML
    )
    self.tokenizer = tokenizer_lib.Tokenizer.load(self.folder)

  def config(self, rows, kind, **settings):
    path = self.root / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = config_lib.SourceConfig(name="a", path=str(path), held_out=0.2)
    return config_lib.DataConfig(
      kind=config_lib.Kind.DATASETS,
      sources=(source,),
      tokenizer=str(self.folder),
      sequence=config_lib.SequenceConfig(kind=kind),
      **settings,
    )

  def targets(self, batch):
    """Text of what each row is to predict."""
    counted = batch["loss_weights"] > 0
    return [
      self.tokenizer.decode(row[mask])
      for row, mask in zip(batch["targets"], counted, strict=True)
    ]

  def test_chat(self):
    config = self.config(_CHATS, "chat", mask_documents=True)
    shape = {"seq_len": 200, "batch_size": 2}
    held_out = pipeline.make_eval(config, source="a", **shape)
    texts = [text for batch in held_out for text in self.targets(batch)]
    scored = "".join(texts)
    self.assertEqual(scored.count("answer"), 5)
    self.assertNotIn("q1", scored)
    self.assertEqual(held_out.num_bytes, len(scored.encode()))
    batches = pipeline.make(config, seq_len=200, global_batch_size=2)
    self.addCleanup(batches.close)
    trained = ""
    # All of an epoch, and some more.
    for step in range(12):
      trained += "".join(self.targets(next(batches)))
      self.assertLen(batches.locate(step), 2)
    for row in _CHATS:
      answer = row["messages"][1]["content"] + "<"
      self.assertNotEqual(answer in trained, answer in scored)

  def test_preference(self):
    config = self.config(_PAIRS, "preference")
    batches = [
      pipeline.make(
        config,
        seq_len=60,
        global_batch_size=8,
        shard_index=host,
        shard_count=2,
      )
      for host in range(2)
    ]
    seen = set()
    for step in range(3):
      for host in batches:
        texts = self.targets(next(host))
        self.assertLen(host.locate(step), 4)
        for chosen, rejected in zip(texts[::2], texts[1::2], strict=True):
          self.assertStartsWith(chosen, "good")
          number = chosen.removeprefix("good ")
          self.assertEqual(rejected, f"bad {number}")
          seen.add(number)
    self.assertLen(seen, 12)
    for host in batches:
      host.close()
    with self.assertRaisesRegex(ValueError, "a pair takes 2 .* multiple of 8"):
      pipeline.make(config, seq_len=60, global_batch_size=4, shard_count=4)
    with self.assertRaisesRegex(ValueError, "a pair takes 2 .* multiple of 2"):
      pipeline.make_eval(config, source="a", seq_len=60, batch_size=3)
    (batch,) = pipeline.make_eval(config, source="a", seq_len=60, batch_size=8)
    self.assertEqual((batch["segment_ids"].max(axis=1) > 0).sum(), 6)

  def test_pack_and_fill_in_the_middle(self):
    texts = [fixtures.text(n) for n in range(30)]
    fixtures.write_dataset(self.root / "train", texts, tokenizer=self.folder)
    source = config_lib.SourceConfig(name="a", path=str(self.root / "train"))
    config = config_lib.DataConfig(
      kind=config_lib.Kind.DATASETS,
      sources=(source,),
      tokenizer=str(self.folder),
      mask_documents=True,
    )
    kinds: tuple[dict[str, Any], ...] = (
      {"kind": "pack", "too_long": "right"},
      {"kind": "pack", "too_long": "right", "fim_rate": 0.5},
      {"kind": "chunk", "fim_rate": 0.5},
    )
    for settings in kinds:
      sequence = config_lib.SequenceConfig(**settings)
      changed = dataclasses.replace(config, sequence=sequence)
      try:
        batches = pipeline.make(changed, seq_len=128, global_batch_size=4)
      except ValueError as error:
        # This tokenizer has no sentinels, and that is said.
        self.assertIn("fim_rate", str(error))
        self.assertIn("fim_rate", settings)
        continue
      batch = next(batches)
      batches.close()
      starts = np.diff(batch["segment_ids"], axis=1) > 0
      np.testing.assert_array_equal(
        starts,
        (batch["positions"][:, 1:] == 0) & (batch["segment_ids"][:, 1:] > 0),
      )


class PlanTest(absltest.TestCase):
  def config(self, **settings):
    root = pathlib.Path(self.create_tempdir().full_path)
    config = fixtures.write_mixture(root)
    sources = []
    for name, weight in (("a", 0.5), ("b", 0.5)):
      prefix = str(root / name)
      with indexed.Writer(prefix, np.uint16) as writer:
        for length in range(1, 20):
          writer.add_document([np.arange(length)])
      sources.append(
        config_lib.SourceConfig(name=name, weight=weight, path=prefix)
      )
    return dataclasses.replace(config, sources=tuple(sources), **settings)

  def make(self, config, num_steps=None):
    return plan.make(config, seq_len=8, batch_size=4, num_steps=num_steps)

  def test_identity_is_json(self):
    made = self.make(self.config())
    self.assertEqual(json.loads(json.dumps(made.identity)), made.identity)

  def test_a_changed_end_of_what_was_given_is_refused(self):
    config = self.config()
    limited = tuple(
      dataclasses.replace(source, max_epochs=1.0) for source in config.sources
    )
    ended = dataclasses.replace(
      config, sources=limited, on_exhaustion="renormalize"
    )
    whole, cut = self.make(config), self.make(ended)
    # 23 samples of each are within the epoch: 46 rows, 11 batches.
    self.assertEqual((whole.num_steps, cut.num_steps), (None, 11))
    for step in range(12):
      cut.check(whole.identity, step=step)
    # A source that is used up is left out of the rows that follow.
    fewer = dataclasses.replace(ended, sources=(limited[0], config.sources[1]))
    endless = self.make(fewer)
    self.assertIsNone(endless.num_steps)
    endless.check(whole.identity, step=11)
    with self.assertRaisesRegex(ValueError, "has the weights .*before step 20"):
      endless.check(whole.identity, step=20)

  def test_a_source_that_is_gone(self):
    config = self.config(
      stages=(
        config_lib.StageConfig(tokens=5 * 32, weights=(1.0, 0.0)),
        config_lib.StageConfig(),
      )
    )
    identity = self.make(config).identity
    alone = dataclasses.replace(config, sources=config.sources[:1], stages=())
    # It had not given a row yet.
    self.make(alone).check(identity, step=5)
    with self.assertRaisesRegex(ValueError, "the weights"):
      self.make(alone).check(identity, step=6)

  def test_nothing_to_give(self):
    config = self.config()
    tiny = tuple(
      dataclasses.replace(source, max_epochs=0.001) for source in config.sources
    )
    config = dataclasses.replace(config, sources=tiny, on_exhaustion="stop")
    with self.assertRaisesRegex(ValueError, "needs 1 step, .* after step 0"):
      self.make(config)


if __name__ == "__main__":
  absltest.main()
