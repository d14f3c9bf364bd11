import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import pyarrow as pa
from pyarrow import parquet

from data import documents
from data import fixtures

_TEXTS = [fixtures.text(index) for index in range(60)] + ["한글\n두 줄"]


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


if __name__ == "__main__":
  absltest.main()
