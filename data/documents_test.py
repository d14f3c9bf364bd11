import bz2
import gzip
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import fsspec
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import pyarrow as pa
from pyarrow import ipc
from pyarrow import parquet

from data import documents
from data import fixtures

_TEXTS = [fixtures.text(index) for index in range(60)] + ["한글\n두 줄"]


def split_slowly(sizes, parts):
  """(file, start, stop) of each part, by looking at every file for it."""
  total = sum(sizes)
  runs = []
  for part in range(parts):
    first, last = total * part // parts, total * (part + 1) // parts
    run, begin = [], 0
    for file, size in enumerate(sizes):
      start, stop = max(first - begin, 0), min(last - begin, size)
      if start < stop:
        run.append((str(file), start, stop))
      begin += size
    runs.append(run)
  return runs


class DocumentsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def write(self, name, content):
    file = self.folder / name
    file.write_bytes(
      content if isinstance(content, bytes) else content.encode()
    )
    return str(file)

  def read(self, files, *, parts=1, format=documents.Format.AUTO, field="text"):
    return [
      document.text
      for run in documents.split(files, format=format, parts=parts)
      for span in run
      for document in documents.read(span, field=field)
    ]

  @parameterized.parameters(1, 2, 3, 7, 50, 500)
  def test_jsonl_spans_give_every_document_once(self, parts):
    files = [
      str(fixtures.write_jsonl(self.folder / f"{i}.jsonl", _TEXTS[i::2]))
      for i in range(2)
    ]
    read = self.read(files, parts=parts)
    self.assertEqual(read, _TEXTS[::2] + _TEXTS[1::2])

  @parameterized.parameters(1, 2, 3, 7, 500)
  def test_parquet_spans_give_every_row_once(self, parts):
    table = pa.table({"id": range(len(_TEXTS)), "body": _TEXTS})
    file = self.folder / "x.parquet"
    parquet.write_table(table, file, row_group_size=13)
    self.assertEqual(self.read([str(file)], parts=parts, field="body"), _TEXTS)

  def write_arrow(self, name, new=ipc.new_stream):
    # The layout of `data-00000-of-00001.arrow` of datasets.save_to_disk.
    table = pa.table({"id": range(len(_TEXTS)), "text": _TEXTS})
    file = self.folder / name
    with new(str(file), table.schema) as writer:
      writer.write_table(table, max_chunksize=13)
    return file

  @parameterized.parameters(1, 2, 3, 7, 500)
  def test_arrow_spans_give_every_row_once(self, parts):
    files = [
      str(self.write_arrow("stream.arrow")),
      str(self.write_arrow("file.arrow", ipc.new_file)),
    ]
    self.assertEqual(self.read(files, parts=parts), 2 * _TEXTS)

  @parameterized.parameters(0, 1, 8, 200)
  def test_arrow_that_was_cut(self, num_bytes):
    file = self.write_arrow("x.arrow")
    content = file.read_bytes()
    file.write_bytes(content[: -num_bytes or None])
    if not num_bytes:
      self.assertEqual(self.read([str(file)]), _TEXTS)
      return
    with self.assertRaisesRegex(ValueError, "x.arrow: not an Arrow file"):
      self.read([str(file)])

  @parameterized.parameters(1, 3)
  def test_compressed_files(self, parts):
    plain = fixtures.write_jsonl(self.folder / "plain", _TEXTS).read_bytes()
    zstd = pa.Codec("zstd").compress(plain, asbytes=True)
    # Files of several members are one text: that is how they are appended to.
    two = gzip.compress(plain[:100]) + gzip.compress(plain[100:])
    files = [
      self.write("a.jsonl.gz", two),
      self.write("b.jsonl.bz2", bz2.compress(plain)),
      self.write("c.jsonl.zst", zstd),
      self.write("d.txt.gz", gzip.compress(b"text")),
    ]
    expected = [*_TEXTS, *_TEXTS, *_TEXTS, "text"]
    self.assertEqual(self.read(files, parts=parts), expected)

  def test_bad_compressed_files(self):
    lines = gzip.compress(b'{"text": "a"}\n{"text": 1}\n')
    file = self.write("a.jsonl.gz", lines)
    with self.assertRaisesRegex(ValueError, "a.jsonl.gz:2: field 'text'"):
      self.read([file])
    file = self.write("b.jsonl.gz", lines[:-12])
    with self.assertRaisesRegex(ValueError, "b.jsonl.gz"):
      self.read([file])
    file = self.write("c.jsonl.zst", b"no such thing")
    with self.assertRaisesRegex(ValueError, "c.jsonl.zst cannot be read"):
      self.read([file])

  @parameterized.parameters(1, 3)
  def test_urls(self, parts):
    fixtures.write_jsonl(self.folder / "in/a.jsonl", _TEXTS)
    self.write_arrow("in/b.arrow")
    parquet.write_table(
      pa.table({"text": _TEXTS}), self.folder / "in/c.parquet"
    )
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(self.folder / "in"), "/bucket/", recursive=True)
    found = documents.find(["memory://bucket"])
    self.assertLen(found, 3)
    self.assertEqual(found, documents.find(["memory://bucket/in/*"]))
    self.assertEqual(self.read(found, parts=parts), 3 * _TEXTS)
    before = documents.version_of(found[0])
    filesystem.pipe_file("/bucket/in/a.jsonl", b"other")
    self.assertNotEqual(documents.version_of(found[0]), before)
    with self.assertRaisesRegex(ValueError, "memory://none.* is no file"):
      documents.find(["memory://none"])
    with self.assertRaisesRegex(ValueError, "correct the URL"):
      documents.find(["nosuch://x"])

  @settings(max_examples=200, deadline=None)
  @given(
    st.lists(st.integers(0, 9), min_size=1, max_size=9), st.integers(1, 20)
  )
  def test_split_is_by_bytes(self, sizes, parts):
    with mock.patch.object(documents, "size_of", lambda file: sizes[int(file)]):
      runs = documents.split(
        list(map(str, range(len(sizes)))),
        format=documents.Format.LINES,
        parts=parts,
      )
    found = [[(s.path, s.start, s.stop) for s in run] for run in runs]
    self.assertEqual(found, split_slowly(sizes, parts))

  def test_globs(self):
    for name in ("b.txt", "a.txt", "c.md"):
      self.write(name, "x")
    found = documents.find([str(self.folder / "*.txt")])
    self.assertEqual([f[-5:] for f in found], ["a.txt", "b.txt"])

  @parameterized.parameters(1, 2, 9)
  def test_text_files_are_documents(self, parts):
    files = [
      self.write(f"{i}.txt", f"{text}\n") for i, text in enumerate("abc")
    ]
    self.assertEqual(self.read(files, parts=parts), ["a\n", "b\n", "c\n"])

  @parameterized.parameters(1, 2, 9)
  def test_lines_are_documents(self, parts):
    file = self.write("x.txt", "one\r\n\n two\u2028same\nlast")
    read = self.read([file], parts=parts, format=documents.Format.LINES)
    self.assertEqual(read, ["one", " two\u2028same", "last"])

  def test_find_is_sorted_and_skips_hidden_files(self):
    names = ("b.txt", "a.txt", ".hidden", "c/d.txt")
    (self.folder / "c").mkdir()
    for name in names:
      self.write(name, "x")
    found = [
      pathlib.Path(file).relative_to(self.folder).as_posix()
      for file in documents.find([self.folder])
    ]
    self.assertEqual(found, ["a.txt", "b.txt", "c/d.txt"])

  def test_check_reads_one_document_of_each_format(self):
    files = [
      self.write("0.jsonl", ""),
      self.write("a.jsonl", b'{"text": "a"}\n{"text": 1}\n'),
      self.write("b.jsonl", '{"body": "b"}\n'),
      self.write("c.txt", b"\xff"),
      str(self.write_arrow("d.arrow")),
    ]
    for format in (documents.Format.AUTO, documents.Format.TEXT):
      documents.check(files, format=format, field="text")
    with self.assertRaisesRegex(ValueError, "a.jsonl:1: no field 'body'"):
      documents.check(files, format=documents.Format.AUTO, field="body")
    with self.assertRaisesRegex(ValueError, "d.arrow: no column 'body'"):
      documents.check(files[2:], format=documents.Format.AUTO, field="body")

  def test_find_refuses(self):
    with self.assertRaisesRegex(ValueError, "does not exist"):
      documents.find([self.folder / "missing"])
    with self.assertRaisesRegex(ValueError, "has no files"):
      documents.find([self.folder])
    self.write("x.txt", "")
    with self.assertRaisesRegex(ValueError, "is empty"):
      documents.find([self.folder])

  @parameterized.parameters(
    (b'{"text": "a"}\n{"text": }\n', r"x.jsonl:2: not valid JSON"),
    (
      b'{"text": "a"}\n\n{"body": "b"}\n',
      r"x.jsonl:3: no field 'text' in body",
    ),
    (b'{"text": 5}\n', r"x.jsonl:1: field 'text' is int, not a string"),
    (b"[1]\n", r"x.jsonl:1: no field 'text'"),
    (b'{"text": "\\ud800"}\n', r"x.jsonl:1: .* surrogate"),
    (b'{"text": "a"}\n{"text": "\xff"}\n', r"x.jsonl:2: byte 24 is not UTF-8"),
  )
  def test_bad_jsonl(self, content, message):
    file = self.write("x.jsonl", content)
    with self.assertRaisesRegex(ValueError, message):
      self.read([file], parts=2)

  def test_bad_text(self):
    file = self.write("x.txt", b"ab\ncd\xff")
    with self.assertRaisesRegex(ValueError, "x.txt:2: byte 5 is not UTF-8"):
      self.read([file])

  def test_unknown_suffix(self):
    file = self.write("x.bin", b"ab")
    with self.assertRaisesRegex(ValueError, "'.bin' does not tell the format"):
      self.read([file])

  @parameterized.parameters(
    ({"text": [1, 2]}, "'text' is int64, not string"),
    ({"body": ["a"]}, "no column 'text' in body"),
    ({"text": ["a", None]}, "row 1: column 'text' is null"),
  )
  def test_bad_parquet(self, columns, message):
    file = self.folder / "x.parquet"
    parquet.write_table(pa.table(columns), file)
    with self.assertRaisesRegex(ValueError, message):
      self.read([str(file)])

  def test_parquet_that_is_not(self):
    file = self.write("x.parquet", "text")
    with self.assertRaisesRegex(ValueError, "not a Parquet file"):
      self.read([file])

  def test_parquet_with_a_damaged_page(self):
    file = self.folder / "x.parquet"
    parquet.write_table(pa.table({"text": _TEXTS}), file)
    content = bytearray(file.read_bytes())
    content[4:40] = b"?" * 36
    file.write_bytes(content)
    with self.assertRaisesRegex(ValueError, "x.parquet: not a Parquet file"):
      self.read([str(file)])

  @parameterized.parameters(1, 3)
  def test_parquet_without_rows(self, parts):
    schema = pa.schema([("text", pa.string())])
    file = self.folder / "x.parquet"
    with parquet.ParquetWriter(file, schema) as writer:
      writer.write_table(schema.empty_table())
    self.assertEqual(self.read([str(file)], parts=parts), [])
    with ipc.new_stream(str(self.folder / "x.arrow"), schema) as writer:
      writer.write_table(schema.empty_table())
    self.assertEqual(self.read([str(self.folder / "x.arrow")], parts=parts), [])


if __name__ == "__main__":
  absltest.main()
