import json
import os
import pathlib
import threading
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import fsspec
import numpy as np
import pyarrow as pa
from pyarrow import parquet

from data import fixtures
from data import manifest
from data import tokenization
from data import tokenizer as tokenizer_lib
from data.sources import array_record
from data.sources import formats
from data.sources import storage
from data.sources import tokenized

_TEXTS = [fixtures.text(index) for index in range(12)]
_ROWS = [{"id": i, "text": text} for i, text in enumerate(_TEXTS)]


class TokenizedTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    cache = {"XDG_CACHE_HOME": str(self.folder / "cache")}
    self.enter_context(mock.patch.dict(os.environ, cache))
    self.tokenizer = fixtures.write_tokenizer(self.folder / "tokenizer")

  def write(self, format: str) -> pathlib.Path:
    path = self.folder / f"in-{format}"
    if format == "arrow":
      return fixtures.write_arrow(path, _ROWS)
    path.mkdir()
    for number in range(2):
      rows = _ROWS[6 * number : 6 * number + 6]
      file = path / f"{number}.{format}"
      match format:
        case "jsonl":
          fixtures.write_jsonl(file, [row["text"] for row in rows])
        case "parquet":
          parquet.write_table(pa.Table.from_pylist(rows), file)
        case "text":
          for row in rows:
            (path / f"{row['id']:03}.txt").write_text(row["text"])
    return path

  def prepare(self, path, format: str, field: str = "text") -> pathlib.Path:
    return tokenized.prepare(
      formats.files(str(path), format),
      format=format,
      field=field,
      tokenizer=self.tokenizer,
    )

  @parameterized.parameters(*tokenized.FORMATS)
  def test_has_the_tokens_of_the_text(self, format):
    path = self.write(format)
    source = array_record.ArrayRecordSource(self.prepare(path, format))
    tokenizer = tokenizer_lib.Tokenizer.load(self.tokenizer)
    ids = [[*tokenizer.encode(text), tokenizer.eos_id] for text in _TEXTS]
    np.testing.assert_array_equal(
      source.read(0, source.num_tokens), np.concatenate(ids)
    )
    self.assertEqual(source.document_lengths.tolist(), list(map(len, ids)))

  @parameterized.parameters(*tokenized.FORMATS)
  def test_is_made_once_for_the_same_content(self, format):
    path = self.write(format)
    made = self.prepare(path, format)
    for file in path.iterdir():
      os.utime(file, ns=(1, 1))
    path = path.rename(self.folder / "moved")
    with mock.patch.object(tokenization, "run", side_effect=AssertionError):
      self.assertEqual(self.prepare(path, format), made)

  @parameterized.parameters(*tokenized.FORMATS)
  def test_remote_text_is_read_where_it_is(self, format):
    path = self.write(format)
    made = manifest.load(self.prepare(path, format))
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for file in path.iterdir():
      memory.pipe(f"/bucket/{file.name}", file.read_bytes())
    there = self.prepare("memory://bucket", format)
    self.assertEqual(manifest.load(there).digest, made.digest)
    with mock.patch.object(tokenization, "run", side_effect=AssertionError):
      self.assertEqual(self.prepare("memory://bucket", format), there)
    copies = [
      file.name
      for file in storage.cache_dir().glob("copies/*/*")
      if not file.name.startswith(".")
    ]
    self.assertEqual(copies, ["state.json"] if format == "arrow" else [])

  def test_remote_text_that_changes_meanwhile_is_refused(self):
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pipe("/bucket/a.jsonl", b'{"text": "a"}')
    run = tokenization.run

    def change(*args, **kwargs):
      run(*args, **kwargs)
      memory.pipe("/bucket/a.jsonl", b'{"text": "b"}')

    with (
      mock.patch.object(tokenization, "run", change),
      self.assertRaisesRegex(ValueError, "a.jsonl changed while it was read"),
    ):
      self.prepare("memory://bucket/a.jsonl", "jsonl")
    source = array_record.ArrayRecordSource(
      self.prepare("memory://bucket/a.jsonl", "jsonl")
    )
    tokenizer = tokenizer_lib.Tokenizer.load(self.tokenizer)
    self.assertEqual(source.read(0, 1).tolist(), tokenizer.encode("b"))

  def test_a_file_that_changes_meanwhile_is_refused(self):
    file = fixtures.write_jsonl(self.folder / "a.jsonl", ["a"])
    run = tokenization.run

    def change(*args, **kwargs):
      run(*args, **kwargs)
      fixtures.write_jsonl(file, ["b"])

    with (
      mock.patch.object(tokenization, "run", change),
      self.assertRaisesRegex(ValueError, "a.jsonl changed while it was read"),
    ):
      self.prepare(file, "jsonl")
    self.assertEmpty(
      list(storage.cache_dir().glob("tokenized/*/manifest.json"))
    )

  def test_what_decides_the_tokens_is_in_the_key(self):
    path = self.write("jsonl")
    made = [self.prepare(path, "jsonl")]
    file = path / "0.jsonl"
    rows = file.read_text().splitlines()
    file.write_text("\n".join(reversed(rows)))
    made.append(self.prepare(path, "jsonl"))
    for line in path.iterdir():
      line.write_text(line.read_text().replace('"text":', '"body":'))
    made.append(self.prepare(path, "jsonl", "body"))
    texts = [fixtures.text(index) for index in range(200)]
    other = tokenizer_lib.Tokenizer.train(texts, vocab_size=299)
    other.save(self.tokenizer)
    made.append(self.prepare(path, "jsonl", "body"))
    self.assertLen(set(made), 4)

  def test_leaves_nothing_but_the_dataset(self):
    made = self.prepare(self.write("arrow"), "arrow")
    work = made.with_name(made.name + ".work")
    self.assertEqual([file.name for file in work.iterdir()], [".lock"])

  def test_goes_on_after_an_interruption(self):
    path = self.write("jsonl")
    save = manifest.Manifest.save
    with (
      mock.patch.object(manifest.Manifest, "save", side_effect=KeyError),
      self.assertRaises(KeyError),
    ):
      self.prepare(path, "jsonl")
    # The second time, the shards are there.
    with (
      mock.patch.object(tokenization, "_make_shard", side_effect=KeyError),
      mock.patch.object(manifest.Manifest, "save", save),
    ):
      self.assertTrue((self.prepare(path, "jsonl") / manifest.FILE).is_file())

  def test_several_at_once_make_it_once(self):
    path = self.write("jsonl")
    made = []
    with mock.patch.object(tokenization, "run", wraps=tokenization.run) as run:
      threads = [
        threading.Thread(
          target=lambda: made.append(self.prepare(path, "jsonl"))
        )
        for _ in range(4)
      ]
      for thread in threads:
        thread.start()
      for thread in threads:
        thread.join()
    self.assertLen(set(made), 1)
    self.assertLen(made, 4)
    run.assert_called_once()

  @parameterized.parameters(
    ("jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', ":2: byte 24 is not UTF-8"),
    ("jsonl", b'{"text": "a"}\n{"text": "b"\n', ":2: not valid JSON"),
    ("jsonl", b'{"body": "a"}\n', ":1: no field 'text' in body; set its field"),
    ("text", b"a\n\xff", ":2: byte 2 is not UTF-8"),
    ("jsonl", b'{"text": ""}\n', "has no document with text"),
    ("parquet", b"PAR1", "not a Parquet file"),
    ("arrow", b"abc", "not an Arrow file"),
  )
  def test_names_what_is_wrong(self, format, content, message):
    file = self.folder / f"x.{format}"
    file.write_bytes(content)
    with self.assertRaisesRegex(ValueError, f"{file}.*{message}"):
      self.prepare(file, format)

  @parameterized.parameters(
    ({"body": "a"}, "no column 'text' in body; set its field"),
    ({"text": 3}, "column 'text' is int64, not string"),
  )
  def test_names_the_column_of_an_arrow_file(self, row, message):
    folder = fixtures.write_arrow(self.folder / "x", [row] * 2)
    with self.assertRaisesRegex(ValueError, f"{folder}/data-00000.*{message}"):
      self.prepare(folder, "arrow")

  def test_names_the_row_of_an_arrow_file(self):
    rows = [*_ROWS, {"id": 12, "text": None}]
    folder = fixtures.write_arrow(self.folder / "x", rows, num_files=1)
    with self.assertRaisesRegex(
      ValueError, f"{folder}/data-00000-of-00001.arrow row 12: .* is null"
    ):
      self.prepare(folder, "arrow")

  def test_the_key_of_a_tokenizer_is_of_its_end_too(self):
    path = self.write("jsonl")
    made = self.prepare(path, "jsonl")
    file = self.tokenizer / "tokenizer_config.json"
    config = {**json.loads(file.read_text()), "eos_token": "<|pad|>"}
    file.write_text(json.dumps(config))
    self.assertNotEqual(self.prepare(path, "jsonl"), made)


if __name__ == "__main__":
  absltest.main()
