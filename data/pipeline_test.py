import dataclasses
import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
from hypothesis import strategies
import numpy as np

from data import catalog
from data import config as config_lib
from data import fixtures
from data import indexed
from data import pipeline
from data import rows as rows_lib
from data.megatron import mixture as megatron
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
    batches = self.make()
    take(batches, 2)
    state = json.loads(json.dumps(batches.get_state()))
    with self.assertRaisesRegex(
      ValueError, "data has seed 7, the config gives"
    ):
      self.make(seed=8).set_state(state)
    with self.assertRaisesRegex(ValueError, "has mask_documents False"):
      self.make(mask_documents=True).set_state(state)
    with self.assertRaisesRegex(ValueError, "has global_batch_size 4"):
      self.make(shape=_SHAPE | {"global_batch_size": 8}).set_state(state)
    with self.assertRaisesRegex(ValueError, "has seq_len 16 at step 0"):
      self.make(shape=_SHAPE | {"seq_len": 8}).set_state(state)
    other = dataclasses.replace(self.config.sources[0], weight=0.6)
    with self.assertRaisesRegex(ValueError, "has the weights .*'a', 7"):
      sources = (other, self.config.sources[1])
      self.make(sources=sources).set_state(state)
    with self.assertRaisesRegex(ValueError, "has the weights"):
      self.make(sources=(other,)).set_state(state)

  def test_refuses_files_that_have_changed(self):
    state = self.make().get_state()
    state["identity"]["sources"][1][1] = "another digest"
    with self.assertRaisesRegex(ValueError, r"sources\[b\] is not what"):
      self.make().set_state(state)

  def stages(self, *parts):
    return tuple(config_lib.StageConfig(**part) for part in parts)

  def test_resumes_with_another_plan_for_what_is_to_come(self):
    one = self.make()
    first = take(one, 5)
    state = json.loads(json.dumps(one.get_state()))
    tokens = 5 * 4 * 16
    new = dataclasses.replace(self.config.sources[0], name="c", weight=1.0)
    sources = (*self.config.sources, new)
    plans = {
      "weights": {
        "stages": self.stages({"tokens": tokens}, {"weights": (0.1, 0.9)})
      },
      "batch": {"stages": self.stages({"tokens": tokens}, {"batch_size": 6})},
      "source": {
        "sources": sources,
        "stages": self.stages(
          {"tokens": tokens, "weights": (0.7, 0.3, 0)}, {"weights": (1, 1, 2)}
        ),
      },
    }
    for name, plan in plans.items():
      with self.subTest(name):
        changed = self.make(**plan)
        changed.set_state(state)
        rest = take(changed, 3)
        whole = take(self.make(**plan), 8)
        for got, expected in zip([*first, *rest], whole, strict=True):
          self.assert_equal(got, expected)
        late = {"step": 7, "identity": state["identity"]}
        with self.assertRaisesRegex(ValueError, "before step 7: keep the"):
          self.make(**plan).set_state(late)

  def test_another_length_later_changes_the_epoch_that_was_begun(self):
    one = self.make()
    take(one, 5)
    length = self.stages({"tokens": 5 * 4 * 16}, {"seq_len": 8})
    changed = self.make(stages=length)
    with self.assertRaisesRegex(ValueError, "another order of"):
      changed.set_state(one.get_state())
    # In the order of the file there is nothing to change.
    one = self.make(shuffle=False)
    take(one, 5)
    self.make(shuffle=False, stages=length).set_state(one.get_state())

  def test_stages_go_on_where_each_source_was(self):
    stages = self.stages(
      {"tokens": 3 * 64},
      {"tokens": 100, "weights": (0, 1), "seq_len": 5, "batch_size": 10},
      {"tokens": 200, "seq_len": 20, "weights": (0.5, 0.5)},
    )
    batches = self.make(stages=stages, shuffle=False)
    got = list(batches)
    self.assertEqual(
      [batch["tokens"].shape for batch in got],
      [(4, 16)] * 3 + [(10, 5)] * 2 + [(4, 20)] * 3,
    )
    streams = {"a": [], "b": []}
    for step, batch in enumerate(got):
      rows = batches.locate(step)
      for row, targets in zip(rows, batch["targets"], strict=True):
        streams[row.source] += targets.tolist()
    for source in self.config.sources:
      tokens = array_record.ArrayRecordSource(source.path)
      end = len(streams[source.name]) + 1
      np.testing.assert_array_equal(
        streams[source.name], tokens.read(1, end), source.name
      )

  def test_the_data_ends_where_a_source_is_used_up(self):
    source = array_record.ArrayRecordSource(self.config.sources[1].path)
    limited = dataclasses.replace(self.config.sources[1], max_epochs=1.5)
    sources = (self.config.sources[0], limited)
    batches = self.make(sources=sources, on_exhaustion="stop")
    most = int(1.5 * source.num_tokens) // 16
    self.assertEqual(batches.num_steps, int(most / 0.3 / 4))
    assert batches.num_steps is not None
    rows = [
      row for step in range(batches.num_steps) for row in batches.locate(step)
    ]
    epochs = [row.epoch for row in rows if row.source == "b"]
    self.assertAlmostEqual(len(epochs), most, delta=2)
    self.assertEqual(max(epochs), 1)
    self.assertLen(list(batches), batches.num_steps)
    self.assertEqual(batches.get_state()["step"], batches.num_steps)
    shape = _SHAPE | {"num_steps": batches.num_steps + 1}
    with self.assertRaisesRegex(
      ValueError,
      rf"ends after step {batches.num_steps}: data.sources\[b\] .*"
      "max_epochs=1.5 .*raise",
    ):
      self.make(sources=sources, on_exhaustion="stop", shape=shape)
    # The others go on.
    batches = self.make(
      sources=sources, on_exhaustion="renormalize", shape=shape
    )
    self.assertIsNone(batches.num_steps)
    names = [row.source for step in range(300) for row in batches.locate(step)]
    self.assertEqual(names.count("b"), most)
    self.assertEqual(set(names[-100:]), {"a"})

  def test_stages_that_end(self):
    stages = self.stages({"tokens": 640})
    self.assertLen(list(self.make(stages=stages)), 10)
    with self.assertRaisesRegex(ValueError, "ends after step 10: the last of"):
      self.make(stages=stages, shape=_SHAPE | {"num_steps": 11})

  @hypothesis.settings(max_examples=10, deadline=None)
  @hypothesis.given(
    hosts=strategies.sampled_from([1, 2, 4, 8]),
    step=strategies.integers(0, 60) | strategies.integers(10**9, 10**9 + 5),
    seed=strategies.integers(0, 3),
    tokens=strategies.integers(1, 2000),
  )
  def test_any_batch_on_any_number_of_hosts(self, hosts, step, seed, tokens):
    settings = {
      "seed": seed,
      "prefetch_batches": 0,
      "stages": self.stages(
        {"tokens": tokens},
        {"tokens": 700, "seq_len": 7, "batch_size": 16},
        {"weights": (1, 2)},
      ),
    }
    shape = _SHAPE | {"global_batch_size": 8}
    whole = self.make(shape=shape, **settings)
    state = whole.get_state() | {"step": step}
    parts = []
    for host in range(hosts):
      part = self.make(host, hosts, shape=shape, **settings)
      part.set_state(state)
      parts.append(next(part))
    whole.set_state(state)
    rows = {
      name: np.concatenate([part[name] for part in parts]) for name in parts[0]
    }
    self.assert_equal(rows, next(whole))

  def test_an_epoch_gives_every_token_once(self):
    # One source, so that its samples are the rows; sixteen epochs are whole.
    only = dataclasses.replace(self.config.sources[0], weight=1.0)
    source = array_record.ArrayRecordSource(only.path)
    batches = self.make(
      sources=(only,), shape={"seq_len": 16, "global_batch_size": 1}
    )
    rows = take(batches, source.num_tokens)
    targets = np.concatenate([row["targets"][0] for row in rows])
    first = next(
      r for r in range(len(rows)) if batches.locate(r)[0].number == 0
    )
    # The stream's first token is missing, the next epoch's is there instead.
    got = np.bincount(targets, minlength=300)
    got[rows[first]["tokens"][0, 0]] += 1
    last = max(range(len(rows)), key=lambda r: batches.locate(r)[0].number)
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

  def test_megatron(self):
    folder = temporary_folder(type(self))
    sources = []
    for name, weight in (("a", 0.7), ("b", 0.3)):
      path = str(folder / name)
      with indexed.Writer(path, np.uint16) as writer:
        for length in range(3, 30):
          writer.add_document([np.arange(length) + len(sources)])
      sources.append(
        config_lib.SourceConfig(name=name, weight=weight, path=path)
      )
    settings = {"sources": tuple(sources), "mixture": "megatron"}
    with self.assertRaisesRegex(ValueError, "give num_steps"):
      self.make(**settings)
    shape = _SHAPE | {"num_steps": 6}
    whole = self.make(shape=shape, **settings)
    assert whole.num_steps is not None
    self.assertGreaterEqual(whole.num_steps, 6)
    batches = take(whole, 6)
    names = [row.source for step in range(6) for row in whole.locate(step)]
    self.assertEqual((names.count("a"), names.count("b")), (17, 7))
    state = whole.get_state() | {"step": 4}
    for host in range(2):
      part = self.make(host, 2, shape=shape, mask_documents=True, **settings)
      with self.assertRaisesRegex(ValueError, "mask_documents False"):
        part.set_state(state)
      part = self.make(host, 2, shape=shape, **settings)
      part.set_state(json.loads(json.dumps(state)))
      rows = slice(2 * host, 2 * host + 2)
      self.assert_equal(
        next(part), {name: array[rows] for name, array in batches[4].items()}
      )
    longer = self.make(shape=_SHAPE | {"num_steps": 60}, **settings)
    with self.assertRaisesRegex(ValueError, "other samples of Megatron's"):
      longer.set_state(state)
    with open(f"{sources[0].path}.bin", "r+b") as file:
      file.write(b"\7")
    with self.assertRaisesRegex(ValueError, r"sources\[a\] is not what"):
      self.make(shape=shape, **settings).set_state(state)

  def test_the_validation_split_of_megatron(self):
    path = str(temporary_folder(type(self)) / "a")
    with indexed.Writer(path, np.uint16) as writer:
      for length in range(3, 60):
        writer.add_document([np.arange(length)])
    config = dataclasses.replace(
      self.config,
      sources=(config_lib.SourceConfig(name="a", path=path),),
      mixture="megatron",
      megatron=config_lib.MegatronConfig(split="7,3,0", eval_samples=6),
    )
    expected = megatron.open_eval(config, seq_len=16)
    rows = rows_lib.empty(6, 16)
    expected.sequences[0].fill(np.arange(6), rows, np.arange(6))
    self.assertEqual(catalog.eval_sources(config), ("a",))
    batches = pipeline.make_eval(config, source="a", seq_len=16, batch_size=4)
    tokens = np.concatenate([batch["tokens"] for batch in batches])
    np.testing.assert_array_equal(tokens[:6], rows.tokens[:, :-1])
    self.assertEqual(batches.num_tokens, 6 * 16)
    weights = np.concatenate([batch["loss_weights"] for batch in batches])
    np.testing.assert_array_equal(weights.sum(1), [16] * 6 + [0] * 2)

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
    ({"seq_len": 10**6}, r"sources\[a\] has .* tokens, too few"),
    ({"shard_index": 1}, r"shard_index is 1; it must be in \[0, 1\)"),
  )
  def test_refuses(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      pipeline.make(self.config, **(_SHAPE | fields))


if __name__ == "__main__":
  absltest.main()
