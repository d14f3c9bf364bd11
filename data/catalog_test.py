import dataclasses
import json
import os
import pathlib
import pickle
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import fsspec
import numpy as np
import pyarrow as pa
from pyarrow import parquet

from data import catalog
from data import config as config_lib
from data import fixtures
from data import tokenizer as tokenizer_lib

_TEXTS = [fixtures.text(index) for index in range(25)]


class CatalogTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = tempfile.TemporaryDirectory()
    cls.addClassCleanup(folder.cleanup)
    cls.config = fixtures.write_mixture(pathlib.Path(folder.name))

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    cache = {"XDG_CACHE_HOME": str(self.root / "cache")}
    self.enter_context(mock.patch.dict(os.environ, cache))

  def test_opens_what_the_config_names(self):
    train = catalog.open_train(self.config)
    self.assertEqual(
      [(s.name, s.weight) for s in train], [("a", 0.7), ("b", 0.3)]
    )
    self.assertEqual(catalog.eval_sources(self.config), ("a", "b"))
    self.assertEqual(catalog.vocab_size(self.config), 300)
    held_out = catalog.open_eval(self.config, "a")
    self.assertNotEqual(held_out.digest, train[0].digest)
    self.assertLess(held_out.tokens.num_tokens, train[0].tokens.num_tokens)

  def test_refuses_another_tokenizer(self):
    other = self.root / "other"
    texts = [fixtures.text(index) for index in range(200)]
    tokenizer_lib.Tokenizer.train(texts, vocab_size=299).save(other)
    config = dataclasses.replace(self.config, tokenizer=str(other))
    with self.assertRaisesRegex(ValueError, r"sources\[a\].*made by the token"):
      catalog.open_train(config)
    with self.assertRaisesRegex(ValueError, r"sources\[b\].*made by the token"):
      catalog.open_eval(config, "b")

  def test_refuses_a_recipe_that_is_not_resolved(self):
    config = config_lib.DataConfig(kind=config_lib.Kind.RECIPE, recipe="x")
    for function in (
      catalog.open_train,
      catalog.eval_sources,
      catalog.vocab_size,
    ):
      with self.assertRaisesRegex(ValueError, "recipes.resolve first"):
        function(config)

  def test_refuses_a_split_that_is_not_there(self):
    a, b = self.config.sources
    config = dataclasses.replace(
      self.config, sources=(a, dataclasses.replace(b, eval_path=""))
    )
    self.assertEqual(catalog.eval_sources(config), ("a",))
    with self.assertRaisesRegex(ValueError, r"sources\[b\] has no held-out"):
      catalog.open_eval(config, "b")

  def test_synthetic_splits_differ(self):
    config = config_lib.DataConfig(
      kind=config_lib.Kind.SYNTHETIC, vocab_size=1000
    )
    (train,) = catalog.open_train(config)
    held_out = catalog.open_eval(config, *catalog.eval_sources(config))
    self.assertNotEqual(
      train.tokens.read(0, 50).tolist(), held_out.tokens.read(0, 50).tolist()
    )

  def write(self, format: str, texts=_TEXTS) -> str:
    """Texts in a format; the path."""
    path = self.root / "in" / format
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = pathlib.Path(self.config.tokenizer)
    rows = [{"text": text} for text in texts]
    match format:
      case "dataset":
        fixtures.write_dataset(path / "x", texts, tokenizer=tokenizer)
        return str(path / "x")
      case "megatron":
        return str(
          fixtures.write_megatron(path / "x", texts, tokenizer=tokenizer)
        )
      case "jsonl":
        fixtures.write_jsonl(path / "x.jsonl", texts)
      case "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path / "x.parquet")
      case "arrow":
        return str(fixtures.write_arrow(path / "x", rows))
      case "text":
        for index, text in enumerate(texts):
          (path / f"{index:03}.txt").write_text(text)
    return str(path)

  def of(self, path: str, **fields) -> config_lib.DataConfig:
    """A config with one source."""
    source = config_lib.SourceConfig(name="x", path=path, **fields)
    return dataclasses.replace(
      self.config,
      sources=(source,),
      on_exhaustion="stop" if source.max_epochs else "repeat",
    )

  @parameterized.parameters(
    "dataset", "megatron", "jsonl", "parquet", "arrow", "text"
  )
  def test_every_format_has_the_same_documents(self, format):
    path = self.write(format)
    tokenizer = tokenizer_lib.Tokenizer.load(self.config.tokenizer)
    ids = [[*tokenizer.encode(text), tokenizer.eos_id] for text in _TEXTS]
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    root = self.root / "in"
    for file in root.rglob("*"):
      if file.is_file():
        name = file.relative_to(root).as_posix()
        memory.pipe(f"/bucket/{name}", file.read_bytes())
    url = f"memory://bucket/{pathlib.Path(path).relative_to(root)}"
    for place in (path, f"file://{path}", url):
      (source,) = catalog.open_train(self.of(place, max_epochs=2.5))
      tokens = source.tokens
      np.testing.assert_array_equal(
        tokens.read(0, tokens.num_tokens), np.concatenate(ids)
      )
      self.assertEqual(tokens.document_lengths.tolist(), list(map(len, ids)))
      self.assertEqual(source.eos_id, tokenizer.eos_id)
      self.assertEqual(source.max_epochs, 2.5)
      self.assertIsNone(source.records)
      copy = pickle.loads(pickle.dumps(tokens))
      np.testing.assert_array_equal(copy.read(5, 90), tokens.read(5, 90))
      (told,) = catalog.open_train(self.of(place, format=format))
      self.assertEqual(told.digest, source.digest)

  @parameterized.parameters("dataset", "megatron", "jsonl")
  def test_documents_are_held_out(self, format):
    path = self.write(format)
    config = self.of(path, held_out=0.2)
    (whole,) = catalog.open_train(self.of(path))
    (train,) = catalog.open_train(config)
    split = catalog.open_eval(config, "x")
    self.assertEqual(catalog.eval_sources(config), ("x",))
    documents = []
    for source in (train, split):
      ends = np.cumsum(source.tokens.document_lengths).tolist()
      documents.append(
        [
          tuple(source.tokens.read(start, end).tolist())
          for start, end in zip([0, *ends[:-1]], ends, strict=True)
        ]
      )
    self.assertLen(documents[1], 5)
    tokens = whole.tokens.read(0, whole.tokens.num_tokens)
    ends = np.cumsum(whole.tokens.document_lengths)
    expected = [tuple(part.tolist()) for part in np.split(tokens, ends[:-1])]
    self.assertCountEqual(documents[0] + documents[1], expected)
    self.assertLen({train.digest, split.digest, whole.digest}, 3)
    # Neither seed, name nor weight moves a document.
    (other,) = catalog.open_train(
      dataclasses.replace(
        config,
        seed=9,
        sources=(
          dataclasses.replace(config.sources[0], name="other", weight=3.0),
        ),
      )
    )
    self.assertEqual(other.digest, train.digest)
    tokenizer = tokenizer_lib.Tokenizer.load(self.config.tokenizer)
    texts = [tokenizer.decode(ids[:-1]) for ids in documents[1]]
    num_bytes = sum(len(text.encode()) for text in texts)
    self.assertEqual(split.num_bytes, num_bytes)
    self.assertEqual(train.num_bytes, max(whole.num_bytes - num_bytes, 0))

  def test_the_text_of_megatron_files_is_measured(self):
    path = self.write("megatron")
    config = self.of(path, eval_path=path)
    source = catalog.open_eval(config, "x")
    self.assertEqual(
      source.num_bytes, sum(len(text.encode()) for text in _TEXTS)
    )

  @parameterized.parameters("jsonl", "parquet", "arrow")
  def test_conversations_stay_rows(self, format):
    config = dataclasses.replace(
      self.of(self.write(format), held_out=0.2),
      sequence=config_lib.SequenceConfig(kind="chat"),
      mask_documents=True,
    )
    (train,) = catalog.open_train(config)
    split = catalog.open_eval(config, "x")
    for use in (
      lambda: train.tokens.num_tokens,
      lambda: train.tokens.read(0, 1),
      lambda: train.tokens.document_lengths,
    ):
      with self.assertRaisesRegex(ValueError, r"sources\[x\] has rows, by"):
        use()
    self.assertFalse(hasattr(train.tokens, "flat"))
    rows = []
    for source, count in ((train, 20), (split, 5)):
      assert source.records is not None
      self.assertLen(source.records, count)
      rows += [source.records[index]["text"] for index in range(count)]
    self.assertCountEqual(rows, _TEXTS)
    self.assertNotEqual(train.digest, split.digest)

  def test_a_changed_file_has_another_digest(self):
    path = self.write("jsonl")
    (before,) = catalog.open_train(self.of(path))
    self.write("jsonl", [*_TEXTS[:-1], "another text"])
    (after,) = catalog.open_train(self.of(path))
    self.assertNotEqual(before.digest, after.digest)
    tokenizer = tokenizer_lib.Tokenizer.load(self.config.tokenizer)
    ids = [*tokenizer.encode("another text"), tokenizer.eos_id]
    end = after.tokens.num_tokens
    self.assertEqual(after.tokens.read(end - len(ids), end).tolist(), ids)

  @parameterized.parameters("dataset", "megatron")
  def test_conversations_cannot_be_made_of_tokens(self, format):
    config = dataclasses.replace(
      self.of(self.write(format)),
      sequence=config_lib.SequenceConfig(kind="preference"),
      mask_documents=True,
    )
    with self.assertRaisesRegex(
      ValueError, rf"sources\[x\].*format {format}, but .* is preference"
    ):
      catalog.open_train(config)

  def test_refuses_what_is_trained_on_and_held_out(self):
    path = self.write("jsonl")
    file = f"{path}/x.jsonl"
    for eval_path in (path, file):
      with self.assertRaisesRegex(
        ValueError, r"sources\[x\].* is in path and in eval_path"
      ):
        catalog.open_train(self.of(path, eval_path=eval_path))
    prefix = self.write("megatron")
    with self.assertRaisesRegex(ValueError, "is in path and in eval_path"):
      catalog.open_train(self.of(prefix, eval_path=f"{prefix}.bin"))

  def test_the_splits_of_a_saved_dict_are_apart(self):
    root = self.root / "saved"
    for split, first in (("train", 0), ("test", 15)):
      rows = [{"text": text} for text in _TEXTS[first : first + 10]]
      fixtures.write_arrow(root / split, rows)
    file = root / "dataset_dict.json"
    file.write_text(json.dumps({"splits": ["train", "test"]}))
    config = self.of(str(root), eval_path=str(root / "test"))
    (train,) = catalog.open_train(config)
    split = catalog.open_eval(config, "x")
    self.assertNotEqual(train.digest, split.digest)
    config = self.of(str(root), eval_path=str(root / "train"))
    with self.assertRaisesRegex(ValueError, "is in path and in eval_path"):
      catalog.open_train(config)

  def test_errors_name_the_source(self):
    one = self.root / "one.jsonl"
    fixtures.write_jsonl(one, ["only one document"])
    big = self.root / "big" / "x"
    other = self.root / "other"
    texts = [fixtures.text(index) for index in range(200)]
    tokenizer_lib.Tokenizer.train(texts, vocab_size=299).save(other)
    fixtures.write_megatron(big, texts, tokenizer=other)
    small = tokenizer_lib.Tokenizer.train(texts, vocab_size=290)
    small.save(self.root / "small")
    bad = self.root / "bad.jsonl"
    bad.write_text(json.dumps({"text": "a"}) + "\n{")
    for config, message in (
      (self.of(str(self.root / "none")), "does not exist or has no files"),
      (self.of(str(one), held_out=0.5), "1 documents, which cannot be divided"),
      (self.of(str(bad)), "bad.jsonl:2: not valid JSON"),
      (self.of(str(one), format="megatron"), "one.jsonl.idx does not exist"),
      (
        self.of(str(one), format="text", field="body"),
        "field is 'body', but .* has the format text, which has no fields",
      ),
      (self.of(str(one), format="parquet"), "not a Parquet file"),
      (self.of(str(one), field="body"), "no field 'body' in text; set its"),
      (
        dataclasses.replace(
          self.of(str(big)), tokenizer=str(self.root / "small")
        ),
        "but the tokenizer has 290 ids; set data.tokenizer",
      ),
    ):
      with self.assertRaisesRegex(ValueError, rf"sources\[x\]: .*{message}"):
        catalog.open_train(config)

  def test_refuses_a_source_shorter_than_a_sequence(self):
    (source,) = catalog.open_train(self.of(self.write("jsonl")))
    num_tokens = source.tokens.num_tokens
    catalog.require_length(source, seq_len=num_tokens - 1)
    with self.assertRaisesRegex(
      ValueError, rf"sources\[x\] has {num_tokens} tokens, too few for a"
    ):
      catalog.require_length(source, seq_len=num_tokens)


if __name__ == "__main__":
  absltest.main()
