import collections
import dataclasses
import json
import os
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from data import config as config_lib
from data import conversation_fixtures
from data import fixtures
from data import forecast
from data import pipeline

_Stage = config_lib.StageConfig

_CHATS = [
  {"messages": conversation_fixtures.chat(f"q{n}", "answer " * (1 + n % 7))}
  for n in range(29)
]
_PAIRS = [
  {"prompt": f"p{n}", "chosen": "good " * (1 + n % 5), "rejected": f"bad {n}"}
  for n in range(11)
]


class ForecastTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    environment = {"XDG_CACHE_HOME": str(self.root / "cache")}
    self.enter_context(mock.patch.dict(os.environ, environment))

  def assert_is_drawn(self, config, *, seq_len, batch_size, num_steps):
    """The forecast is what the batches have when all are made."""
    made = forecast.make(
      config, seq_len=seq_len, batch_size=batch_size, num_steps=num_steps
    )
    needs_length = config.mixture == "megatron"
    batches = pipeline.make(
      dataclasses.replace(config, prefetch_batches=0),
      seq_len=seq_len,
      global_batch_size=batch_size,
      num_steps=num_steps if needs_length else None,
    )
    self.addCleanup(batches.close)
    given = batches.num_steps
    want = num_steps if given is None else min(num_steps, given)
    self.assertEqual(made.num_steps, want)
    first = 0
    for stage in made.stages:
      self.assertEqual(stage.first_step, first)
      counts: dict[str, collections.Counter] = collections.defaultdict(
        collections.Counter
      )
      for step in range(first, first + stage.num_steps):
        batch = next(batches)
        shape = (stage.batch_size, stage.seq_len)
        self.assertEqual(batch["tokens"].shape, shape)
        for row, located in enumerate(batches.locate(step)):
          count = counts[located.source]
          count["rows"] += 1
          count["targets"] += int(batch["loss_weights"][row].sum())
          count["padding"] += int((batch["segment_ids"][row] == 0).sum())
      first += stage.num_steps
      each = 2 if config.sequence.kind == "preference" else 1
      for share in stage.shares:
        count = counts.pop(share.name, collections.Counter())
        self.assertEqual(share.num_samples * each, count["rows"])
        self.assertEqual(share.num_tokens, count["rows"] * stage.seq_len)
        self.assertEqual(share.num_targets, count["targets"])
        self.assertEqual(share.num_padding, count["padding"])
        rows = stage.num_steps * stage.batch_size
        self.assertAlmostEqual(share.delivered, count["rows"] / rows)
        self.assertFalse(share.is_estimate or share.targets_are_estimate)
      self.assertEmpty(counts)
    self.assertEqual(first, made.num_steps)
    for index, share in enumerate(made.total):
      parts = [stage.shares[index] for stage in made.stages]
      for field in ("num_samples", "num_targets", "num_padding"):
        self.assertEqual(
          getattr(share, field), sum(getattr(part, field) for part in parts)
        )
    windows = made.windows
    self.assertEqual(sum(w.num_steps for w in windows), made.num_steps)
    self.assertEqual(sum(w.num_tokens for w in windows), made.num_tokens)
    for index, share in enumerate(made.total):
      tokens = sum(w.num_tokens * w.delivered[index] for w in windows)
      self.assertAlmostEqual(share.num_tokens, tokens, places=3)
    json.dumps(forecast.to_dict(made))
    return made

  def mixture(self, *, max_epochs=0.0, **settings):
    config = fixtures.write_mixture(self.root)
    a, b = config.sources
    b = dataclasses.replace(b, max_epochs=max_epochs)
    return dataclasses.replace(config, sources=(a, b), **settings)

  def test_stages(self):
    config = self.mixture(
      stages=(
        _Stage(tokens=9 * 4 * 32),
        _Stage(tokens=5 * 2 * 16, weights=(0.0, 2.0), seq_len=16, batch_size=2),
        _Stage(weights=(0.25, 0.5), batch_size=8),
      )
    )
    made = self.assert_is_drawn(config, seq_len=32, batch_size=4, num_steps=60)
    self.assertEqual([stage.num_steps for stage in made.stages], [9, 5, 46])
    asked = [[str(s.asked) for s in stage.shares] for stage in made.stages]
    self.assertEqual(asked, [["7/10", "3/10"], ["0", "1"], ["1/3", "2/3"]])
    values = forecast.to_dict(made)
    self.assertEqual(values["stages"][0]["shares"][0]["asked"], "7/10")
    # An epoch is as long as the dataset says.
    for source, share in zip(made.sources, made.total, strict=True):
      self.assertEqual(source.num_documents, 30)
      self.assertEqual(source.held_out_documents, 7)
      self.assertAlmostEqual(share.epochs, share.num_tokens / source.num_tokens)

  def test_a_source_is_used_up(self):
    config = self.mixture(max_epochs=0.8, on_exhaustion="renormalize")
    made = self.assert_is_drawn(config, seq_len=32, batch_size=4, num_steps=90)
    self.assertEqual(made.num_steps, 90)
    self.assertBetween(made.total[1].epochs, 0.75, 0.8)
    self.assertIn("used up (max_epochs=0.8) at step", made.warnings[0])
    self.assertIn("delivers other shares than asked", made.warnings[1])

  def test_the_data_ends(self):
    config = self.mixture(max_epochs=0.8, on_exhaustion="stop")
    made = self.assert_is_drawn(config, seq_len=32, batch_size=4, num_steps=90)
    self.assertLess(made.num_steps, 90)
    self.assertIn(f"ends after step {made.num_steps} of 90", made.warnings[0])

  def test_packs(self):
    sequence = config_lib.SequenceConfig(kind="pack", too_long="right")
    config = self.mixture(sequence=sequence, mask_documents=True)
    # Into the third epoch of one source, and less far of the other.
    made = self.assert_is_drawn(config, seq_len=128, batch_size=2, num_steps=50)
    self.assertGreater(made.total[0].epochs, 2)
    self.assertGreater(made.total[0].num_padding, 0)

  @parameterized.parameters("pack", "chunk")
  def test_fill_in_the_middle(self, kind):
    config = self.megatron()
    file = self.root / "tokenizer" / "tokenizer.json"
    text = file.read_text()
    for number, part in enumerate(("prefix", "suffix", "middle")):
      text = text.replace(f"<|reserved_{number}|>", f"<|fim_{part}|>")
    file.write_text(text)
    config = dataclasses.replace(
      config,
      mixture="weighted",
      megatron=config_lib.MegatronConfig(),
      sequence=config_lib.SequenceConfig(
        kind=kind, too_long="error" if kind == "chunk" else "drop", fim_rate=0.5
      ),
    )
    self.assert_is_drawn(config, seq_len=100, batch_size=2, num_steps=40)

  def conversations(self, rows, kind, **settings):
    folder = conversation_fixtures.write_tokenizer(
      self.root / "tokenizer", conversation_fixtures.CHATML
    )
    sources = []
    for name, some in (("a", rows), ("b", rows[:7])):
      path = self.root / f"{name}.jsonl"
      path.write_text("".join(json.dumps(row) + "\n" for row in some))
      sources.append(
        config_lib.SourceConfig(name=name, path=str(path), held_out=0.2)
      )
    return config_lib.DataConfig(
      kind=config_lib.Kind.DATASETS,
      sources=tuple(sources),
      tokenizer=str(folder),
      sequence=config_lib.SequenceConfig(kind=kind),
      **settings,
    )

  def test_chat(self):
    config = self.conversations(_CHATS, "chat", mask_documents=True)
    made = self.assert_is_drawn(config, seq_len=200, batch_size=2, num_steps=15)
    self.assertGreater(made.total[1].epochs, 1)
    self.assertEqual(made.sources[0].format, "jsonl")
    self.assertEqual(made.sources[0].num_documents, 23)
    self.assertEqual(made.sources[0].held_out_documents, 6)
    self.assertIsNone(made.sources[0].held_out_tokens)

  def test_preference(self):
    config = self.conversations(_PAIRS, "preference")
    made = self.assert_is_drawn(config, seq_len=100, batch_size=4, num_steps=9)
    self.assertEqual(made.total[0].num_samples, 9)
    self.assertEqual(made.total[0].epochs, 1)
    self.assertGreater(made.total[1].epochs, 1)

  def megatron(self, **settings):
    tokenizer = fixtures.write_tokenizer(self.root / "tokenizer")
    sources = []
    for name, weight, count in (("a", 0.7, 40), ("b", 0.3, 7)):
      texts = [fixtures.text(index) for index in range(count)]
      prefix = fixtures.write_megatron(
        self.root / name, texts, tokenizer=tokenizer
      )
      sources.append(
        config_lib.SourceConfig(name=name, weight=weight, path=str(prefix))
      )
    return config_lib.DataConfig(
      kind=config_lib.Kind.DATASETS,
      sources=tuple(sources),
      tokenizer=str(tokenizer),
      mixture="megatron",
      megatron=config_lib.MegatronConfig(**settings),
    )

  def test_megatron(self):
    config = self.megatron()
    made = self.assert_is_drawn(config, seq_len=32, batch_size=4, num_steps=30)
    self.assertEqual([s.num_documents for s in made.sources], [40, 7])
    self.assertGreater(made.total[1].epochs, 1)
    self.assertEqual(str(made.total[0].asked), "7/10")
    self.assertIn("no loss is evaluated on a, b", made.warnings[-1])

  def test_megatron_by_lengths(self):
    config = self.megatron(
      blend="lengths", split="8,1,1", add_extra_token=False
    )
    made = self.assert_is_drawn(config, seq_len=16, batch_size=2, num_steps=20)
    self.assertLess(made.sources[0].num_documents, 40)
    # The last place of each row has no target.
    self.assertEqual(
      sum(share.num_targets for share in made.total), 20 * 2 * 15
    )
    alone = dataclasses.replace(config, sources=config.sources[:1])
    self.assert_is_drawn(alone, seq_len=16, batch_size=2, num_steps=10)

  def test_synthetic(self):
    config = config_lib.DataConfig(
      kind=config_lib.Kind.SYNTHETIC, vocab_size=10
    )
    made = self.assert_is_drawn(config, seq_len=8, batch_size=2, num_steps=3)
    self.assertEqual(made.sources[0].format, "synthetic")
    self.assertEqual(made.total[0].num_samples, 6)
    self.assertEmpty(made.warnings)

  def test_a_long_run_is_counted_not_drawn(self):
    config = self.mixture(
      stages=(_Stage(tokens=1 << 40), _Stage(weights=(1, 3)))
    )
    made = forecast.make(config, seq_len=32, batch_size=1000, num_steps=1 << 50)
    self.assertEqual(sum(share.num_samples for share in made.total), 1000 << 50)

  def test_refuses(self):
    config = self.mixture()
    with self.assertRaisesRegex(ValueError, "num_steps is 0"):
      forecast.make(config, seq_len=32, batch_size=4, num_steps=0)


if __name__ == "__main__":
  absltest.main()
