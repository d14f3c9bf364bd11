import dataclasses
import json
import os
import pathlib
import pickle
import shutil
from typing import Any
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from data import config as config_lib
from data import fixtures
from data import indexed
from data import rows as rows_lib
from data.megatron import items
from data.megatron import mixture as mixture_lib

_GOLDENS = pathlib.Path("data/testdata/megatron")
_SEQ_LEN = 8


class MixtureTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    cache = {"XDG_CACHE_HOME": str(self.folder / "cache")}
    self.enter_context(mock.patch.dict(os.environ, cache))
    self.tokenizer = fixtures.write_tokenizer(self.folder / "tokenizer")

  def write(self, name: str, lengths) -> str:
    random = np.random.default_rng(len(name))
    prefix = self.folder / name
    with indexed.Writer(prefix, "uint16") as writer:
      for length in lengths:
        writer.add_document([random.integers(0, 300, size=length)])
    return str(prefix)

  def config(
    self, sources: dict[str, Any], **settings
  ) -> config_lib.DataConfig:
    megatron = config_lib.MegatronConfig(**settings.pop("megatron", {}))
    return config_lib.DataConfig(
      kind=config_lib.Kind.DATASETS,
      mixture="megatron",
      tokenizer=str(self.tokenizer),
      sources=tuple(
        config_lib.SourceConfig(name=name, **source)
        for name, source in sources.items()
      ),
      megatron=megatron,
      **settings,
    )

  def two(self, **settings) -> config_lib.DataConfig:
    return self.config(
      {
        "a": {"path": self.write("a", [9] * 30), "weight": 0.7},
        "b": {"path": self.write("b", [21] * 10), "weight": 0.3},
      },
      **settings,
    )

  def rows(self, opened: mixture_lib.Opened, rows, seq_len=_SEQ_LEN):
    batch = rows_lib.empty(len(rows), seq_len)
    sources, numbers = opened.mixture.locate(np.array(rows))
    for source, sequences in enumerate(opened.sequences):
      mine = np.flatnonzero(sources == source)
      sequences.fill(numbers[mine], batch, mine)
    return batch.tokens

  def goldens(self):
    with open(_GOLDENS / "goldens.json") as file:
      cases = json.load(file)["blend"]
    arrays = np.load(_GOLDENS / "goldens.npz")
    for name, case in cases.items():
      if case.get("extra", True) and case.get("drop_last", True):
        yield name, case, arrays

  def test_gives_the_samples_of_megatron(self):
    compared = 0
    # The tokens of the goldens are no tokenizer's.
    self.enter_context(mock.patch("data.sources.megatron.MegatronSource"))
    for name, case, arrays in self.goldens():
      own = case.get("per_split")
      names, weights = (
        own[0] or ([], None)
        if own
        else (
          case["corpora"],
          case["weights"],
        )
      )
      size = case["sizes"][0]
      # Sources are named, so none is there twice; a run has a size.
      if (
        not case["splits"]["train"] or len(set(names)) < len(names) or not size
      ):
        continue
      config = self.config(
        {
          corpus: {
            "path": str(_GOLDENS / "corpora" / corpus),
            "weight": (weights or [1.0] * len(names))[number],
          }
          for number, corpus in enumerate(names)
        },
        seed=case["seed"],
        megatron={
          "split": "1,0,0" if own else case["split"],
          "surplus": case.get("surplus", 0.005),
          "blend": "weights" if weights and len(names) > 1 else "lengths",
        },
      )
      if not own and weights and len(names) == 1:
        config = dataclasses.replace(
          config,
          megatron=dataclasses.replace(config.megatron, blend="weights"),
        )
      try:
        opened = mixture_lib.open_train(
          config, seq_len=case["seq"], num_rows=size
        )
      except ValueError as error:
        # Megatron repeats a source until it makes a sample; a run does not.
        self.assertIn("of a sample", str(error))
        continue
      with self.subTest(name):
        text = arrays[f"blend/{name}/train/text"]
        self.assertEqual(
          opened.mixture.num_rows, case["splits"]["train"]["length"]
        )
        got = self.rows(opened, range(len(text)), case["seq"])
        np.testing.assert_array_equal(got, text)
        compared += 1
    self.assertGreater(compared, 3)

  def test_the_order_is_that_of_the_blend_and_the_sources(self):
    opened = mixture_lib.open_train(
      self.two(seed=5), seq_len=_SEQ_LEN, num_rows=60
    )
    self.assertEqual(opened.names, ["a", "b"])
    self.assertEqual(opened.mixture.num_rows, 60)
    split = opened.mixture.split
    sources, numbers = split.locate(np.arange(60))
    got = self.rows(opened, range(60))
    for row in range(60):
      corpus = indexed.Indexed(self.folder / "ab"[sources[row]])
      expected = items.texts(
        split.indices[sources[row]],
        numbers[row : row + 1],
        tokens=corpus.tokens,
        sequence_starts=corpus.sequence_starts,
        pad=-1,
      )[0]
      self.assertEqual(got[row].tolist(), expected.tolist())

  def test_goes_to_other_processes(self):
    opened = mixture_lib.open_train(self.two(), seq_len=_SEQ_LEN, num_rows=60)
    other = pickle.loads(pickle.dumps(opened))
    np.testing.assert_array_equal(
      self.rows(opened, range(60)), self.rows(other, range(60))
    )

  def test_a_cache_gives_the_same(self):
    plain = mixture_lib.open_train(self.two(), seq_len=_SEQ_LEN, num_rows=60)
    config = self.two(megatron={"cache": str(self.folder / "indices")})
    for _ in range(2):
      opened = mixture_lib.open_train(config, seq_len=_SEQ_LEN, num_rows=60)
      self.assertEqual(opened.digest, plain.digest)
      np.testing.assert_array_equal(
        self.rows(plain, range(60)), self.rows(opened, range(60))
      )
    made = sorted(os.listdir(self.folder / "indices"))
    self.assertLen(made, 3)
    with mock.patch("data.megatron.index.build") as build:
      mixture_lib.open_train(config, seq_len=_SEQ_LEN, num_rows=60)
      build.assert_not_called()

  def test_a_cache_knows_changed_files(self):
    config = self.two(megatron={"cache": str(self.folder / "indices")})
    old = mixture_lib.open_train(config, seq_len=_SEQ_LEN, num_rows=60)
    old_rows = self.rows(old, range(60))
    self.write("a", [10] * 27)
    new = mixture_lib.open_train(config, seq_len=_SEQ_LEN, num_rows=60)
    self.assertNotEqual(new.digest, old.digest)
    self.assertFalse(np.array_equal(self.rows(new, range(60)), old_rows))
    self.assertLen(os.listdir(self.folder / "indices"), 4)

  def test_the_digest_tells_what_changes_samples(self):
    def digest(num_rows=60, seq_len=_SEQ_LEN, **settings):
      return mixture_lib.open_train(
        self.two(**settings), seq_len=seq_len, num_rows=num_rows
      ).digest

    base = digest()
    # A few more samples of the same epochs are the same samples.
    self.assertEqual(digest(num_rows=59), base)
    self.assertEqual(digest(megatron={"surplus": 0.004}), base)
    others = {
      base,
      digest(num_rows=600),
      digest(seq_len=9),
      digest(seed=1),
      digest(megatron={"rounding": "fused"}),
      digest(megatron={"split": "9,1,0"}),
      digest(megatron={"blend": "lengths"}),
    }
    self.assertLen(others, 7)

  def test_validation_of_the_split(self):
    config = self.two(megatron={"split": "8,2,0", "eval_samples": 7})
    opened = mixture_lib.open_eval(config, seq_len=_SEQ_LEN)
    self.assertEqual(opened.mixture.num_rows, 5 + 3)
    self.assertEqual(opened.mixture.split.indices[0].documents.min(), 24)
    train = mixture_lib.open_train(config, seq_len=_SEQ_LEN, num_rows=9)
    self.assertEqual(train.mixture.split.indices[0].documents.max(), 23)

  def test_validation_of_files_of_its_own(self):
    config = self.config(
      {
        "a": {"path": self.write("a", [30]), "weight": 3.0},
        "b": {
          "path": self.write("b", [30]),
          "eval_path": self.write("valid", [50]),
        },
      },
      megatron={"eval_samples": 4},
    )
    opened = mixture_lib.open_eval(config, seq_len=_SEQ_LEN)
    self.assertEqual(opened.names, ["b"])
    expected = indexed.Indexed(self.folder / "valid").tokens.tolist()
    got = self.rows(opened, range(4))
    for row in got.tolist():
      self.assertIn(row, [expected[8 * k : 8 * k + 9] for k in range(6)])

  def test_the_share_of_a_source(self):
    config = self.two(megatron={"split": "8,2,0", "eval_samples": 7})
    opened = mixture_lib.open_eval(config, seq_len=_SEQ_LEN)
    sources, _ = opened.mixture.locate(np.arange(8))
    rows = self.rows(opened, range(8))
    for number, name in enumerate("ab"):
      share = opened.share(name)
      mine = rows[sources == number]
      self.assertEqual(share.num_samples(1.0), len(mine))
      batch = rows_lib.empty(len(mine), _SEQ_LEN)
      share.fill(np.arange(len(mine)), batch, np.arange(len(mine)))
      np.testing.assert_array_equal(batch.tokens, mine)
      self.assertEqual(share.describe(0), opened.sequences[number].describe(0))

  def test_more_epochs_than_the_machine_can_index(self):
    config = self.config({"a": {"path": self.write("a", [3] * 100)}})
    with self.assertRaisesRegex(
      ValueError, r"sources\[a\].* epochs of 300 .*GiB"
    ):
      mixture_lib.open_train(config, seq_len=_SEQ_LEN, num_rows=10**12)

  def test_without_the_extra_token(self):
    config = self.two(megatron={"add_extra_token": False})
    opened = mixture_lib.open_train(config, seq_len=_SEQ_LEN, num_rows=20)
    self.assertFalse(self.rows(opened, range(20))[:, -1].any())

  def test_tokens_beyond_the_vocabulary(self):
    prefix = self.folder / "a"
    with indexed.Writer(prefix, "uint16") as writer:
      writer.add_document([[7] * 30, [7, 300, 7]])
    config = self.config({"a": {"path": str(prefix)}})
    with self.assertRaisesRegex(ValueError, r"sources\[a\].*a.bin.*is 300"):
      mixture_lib.open_train(config, seq_len=_SEQ_LEN, num_rows=2)

  def test_a_file_that_is_damaged(self):
    path = pathlib.Path(self.write("a", [99]))
    index = path.with_suffix(".idx")
    index.write_bytes(index.read_bytes()[:-1])
    with self.assertRaisesRegex(ValueError, r"sources\[a\].*a.idx is damaged"):
      mixture_lib.open_train(
        self.config({"a": {"path": str(path)}}), seq_len=4, num_rows=2
      )

  @parameterized.parameters(
    ([8], "1,0,0", "train split has 8 tokens in 1 sequences.*9 of a sample"),
    ([9] * 9, "0,1,0", "leaves nothing for train"),
    ([9] * 9, "1,99,0", "train split has 0 tokens in 0 sequences"),
    ([9] * 9, "a", "data.megatron.split is 'a'"),
    ([], "1,0,0", "a.bin has no tokens"),
  )
  def test_too_little(self, lengths, split, message):
    config = self.config(
      {"a": {"path": self.write("a", lengths)}}, megatron={"split": split}
    )
    with self.assertRaisesRegex(ValueError, message):
      mixture_lib.open_train(config, seq_len=_SEQ_LEN, num_rows=2)

  def test_settings_that_are_wrong(self):
    config = self.two()
    with self.assertRaisesRegex(ValueError, "num_rows is 0"):
      mixture_lib.open_train(config, seq_len=_SEQ_LEN, num_rows=0)
    with self.assertRaisesRegex(ValueError, "seq_len is 0"):
      mixture_lib.open_train(config, seq_len=0, num_rows=1)
    with self.assertRaisesRegex(
      ValueError, "data.seed is 4294967296.*2\\*\\*32"
    ):
      mixture_lib.open_train(
        self.two(seed=1 << 32), seq_len=_SEQ_LEN, num_rows=1
      )
    with self.assertRaisesRegex(ValueError, "eval_samples is 0"):
      mixture_lib.open_eval(config, seq_len=_SEQ_LEN)
    shutil.rmtree(self.tokenizer)


if __name__ == "__main__":
  absltest.main()
