import gzip
import itertools
import json
import os
import pathlib
import pickle
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
from hypothesis import strategies as st
import numpy as np
import pyarrow as pa
from pyarrow import ipc
from pyarrow import parquet

from data.sources import records
from data.sources import storage

_ROWS = [
  {
    "id": index,
    "messages": [{"role": "user", "content": f"질문 {index}\n" * (index % 7)}],
  }
  for index in range(50)
]


class RecordsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    cache = {"XDG_CACHE_HOME": str(self.folder / "cache")}
    self.enter_context(mock.patch.dict(os.environ, cache))

  def write(self, name: str, rows=_ROWS, **options) -> pathlib.Path:
    file = self.folder / "in" / name
    file.parent.mkdir(exist_ok=True)
    table = pa.Table.from_pylist(rows)
    if name.endswith(".jsonl"):
      lines = [json.dumps(row, ensure_ascii=False) for row in rows]
      file.write_text("\n".join(lines), encoding="utf-8")
    elif name.endswith(".parquet"):
      parquet.write_table(table, file, row_group_size=8)
    else:
      new = options.get("new", ipc.new_stream)
      with new(str(file), table.schema) as writer:
        writer.write_table(table, max_chunksize=9)
    return file

  def open(self, path: pathlib.Path, format: str) -> records.Records:
    return records.Records(storage.find(str(path)), format=format)

  @parameterized.parameters("jsonl", "parquet", "arrow")
  def test_reads_the_rows_of_all_files_in_any_order(self, format):
    self.write(f"b.{format}", _ROWS[30:])
    self.write(f"a.{format}", _ROWS[:30])
    source = self.open(self.folder / "in", format)
    self.assertLen(source, 50)
    copy = pickle.loads(pickle.dumps(source))
    for index in (49, 0, 29, 30, *range(50)):
      self.assertEqual(source[index], _ROWS[index])
      self.assertEqual(copy[index], _ROWS[index])
    place = f"b.{format}:2" if format == "jsonl" else f"b.{format} row 1"
    self.assertEndsWith(source.name_of(31), place)
    for index in (-1, 50):
      with self.assertRaisesRegex(IndexError, r"outside \[0, 50\)"):
        source[index]

  def test_reads_arrow_files_as_well_as_streams(self):
    file = self.write("a.arrow", new=ipc.new_file)
    self.assertEqual(self.open(file, "arrow")[17], _ROWS[17])

  @parameterized.parameters("jsonl", "parquet", "arrow")
  def test_the_digest_is_of_the_content(self, format):
    file = self.write(f"a.{format}")
    digest = self.open(file, format).digest
    os.utime(file, ns=(1, 1))
    self.assertEqual(self.open(file, format).digest, digest)
    moved = file.rename(self.folder / f"moved.{format}")
    self.assertEqual(self.open(moved, format).digest, digest)
    self.write(f"a.{format}", [*_ROWS[:-1], _ROWS[0]])
    self.assertNotEqual(self.open(file, format).digest, digest)

  def test_empty_lines_are_no_rows(self):
    file = self.folder / "a.jsonl"
    file.write_bytes(b'\n{"a": 1}\r\n  \n\n {"a": 2}\n\t\n{"a": 3}\n \n')
    # In one block, and in blocks shorter than a line.
    for block in (1 << 26, 4):
      with mock.patch.object(records, "_BLOCK", block):
        source = self.open(file, "jsonl")
      self.assertEqual([source[i]["a"] for i in range(3)], [1, 2, 3])
      self.assertEqual(source.name_of(1), f"{file}:5")
      self.assertLen(source, 3)
      for kept in (storage.cache_dir() / "lines").iterdir():
        kept.unlink()

  @hypothesis.given(
    content=st.text("a {\n\r\t질\x0b", max_size=40), block=st.integers(1, 50)
  )
  @hypothesis.settings(deadline=None)
  def test_lines_are_those_of_the_whole_file(self, content, block):
    file = self.folder / "lines.jsonl"
    file.write_bytes(content.encode())
    with mock.patch.object(records, "_BLOCK", block):
      starts = records._scan(file, "lines.jsonl").tolist()
    lines = content.encode().split(b"\n")
    ends = [0, *itertools.accumulate(len(line) + 1 for line in lines)]
    expected = [
      end for end, line in zip(ends, lines, strict=False) if line.strip()
    ]
    self.assertEqual(starts, expected)

  def test_the_index_of_lines_is_kept(self):
    file = self.write("a.jsonl")
    self.open(file, "jsonl")
    with mock.patch.object(records, "_scan", side_effect=AssertionError):
      self.assertEqual(self.open(file, "jsonl")[3], _ROWS[3])
    (kept,) = (storage.cache_dir() / "lines").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    self.assertEqual(self.open(file, "jsonl")[3], _ROWS[3])

  @parameterized.parameters(
    (b'{"a": 1}\n\n{"a": \n{"a": 2}', r"a.jsonl:3: not valid JSON"),
    (b'{"a": 1}\n{"a": 2', r"a.jsonl:2: not valid JSON .* correct the line"),
    (b'{"a": 1}\n[1]', r"a.jsonl:2: \[1\] is not an object"),
    (b'{"a": 1}\n{"a": "\\ud800"}', r"a.jsonl:2: half of a surrogate pair"),
  )
  def test_names_the_line_that_is_wrong(self, content, message):
    file = self.folder / "a.jsonl"
    file.write_bytes(content)
    source = self.open(file, "jsonl")
    self.assertEqual(source[0], {"a": 1})
    with self.assertRaisesRegex(ValueError, message):
      source[1]

  def test_reads_compressed_lines(self):
    file = self.write("a.jsonl")
    packed = self.folder / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    source = self.open(packed, "jsonl")
    self.assertEqual(source[31], _ROWS[31])
    self.assertEndsWith(source.name_of(31), "b.jsonl.gz:32")
    self.assertEqual(pickle.loads(pickle.dumps(source))[31], _ROWS[31])
    with mock.patch.object(
      records.documents, "open_binary", side_effect=KeyError
    ):
      self.open(packed, "jsonl")
    packed.write_bytes(packed.read_bytes()[:-20])
    with self.assertRaisesRegex(ValueError, f"{packed} cannot be read"):
      self.open(packed, "jsonl")

  def test_bytes_that_are_not_utf8_are_refused_when_opened(self):
    file = self.folder / "a.jsonl"
    file.write_bytes(b'{"a": 1}\n{"a": "\xff"}\n')
    with self.assertRaisesRegex(ValueError, "a.jsonl:2: byte 16 is not UTF-8"):
      self.open(file, "jsonl")

  @parameterized.parameters(
    ("parquet", 7, "not a whole Parquet file .*; replace it"),
    ("arrow", 7, "not a whole Arrow stream or file .*; replace it"),
    # The end of the stream is a mark of eight bytes.
    ("arrow", 8, "its end is missing"),
    ("arrow", 1000, "its end is missing"),
  )
  def test_a_cut_file_is_refused_when_opened(self, format, missing, message):
    file = self.write(f"a.{format}")
    file.write_bytes(file.read_bytes()[:-missing])
    with self.assertRaisesRegex(ValueError, f"{file}: .*{message}"):
      self.open(file, format)

  @parameterized.parameters("jsonl", "parquet", "arrow")
  def test_files_without_rows_are_refused(self, format):
    file = self.write(f"a.{format}", [])
    with self.assertRaisesRegex(ValueError, f"{file} has no rows"):
      self.open(file, format)

  @parameterized.parameters("jsonl", "parquet", "arrow")
  def test_a_file_that_changes_in_use_is_refused(self, format):
    file = self.write(f"a.{format}")
    source = pickle.dumps(self.open(file, format))
    os.utime(file, ns=(1, 1))
    with self.assertRaisesRegex(ValueError, f"{file} was changed or removed"):
      pickle.loads(source)[0]
    file.unlink()
    with self.assertRaisesRegex(ValueError, f"{file} was changed or removed"):
      pickle.loads(source)[0]

  @parameterized.parameters("parquet", "arrow")
  def test_texts_that_are_not_utf8_are_named(self, format):
    offsets = np.array([0, 1, 4], np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"ab\xffc")]
    column = pa.StringArray.from_buffers(2, *buffers[1:], buffers[0])
    table = pa.table({"text": column})
    file = self.folder / f"a.{format}"
    if format == "parquet":
      parquet.write_table(table, file)
    else:
      with ipc.new_stream(str(file), table.schema) as writer:
        writer.write_table(table)
    source = self.open(file, format)
    self.assertEqual(source[0], {"text": "a"})
    with self.assertRaisesRegex(ValueError, "row 1: byte 1 of a text is not"):
      source[1]

  def test_a_damaged_row_group_is_named(self):
    file = self.write("a.parquet")
    content = bytearray(file.read_bytes())
    content[4:200] = bytes(196)
    file.write_bytes(content)
    source = self.open(file, "parquet")
    with self.assertRaisesRegex(ValueError, f"{file}: row group 0 cannot"):
      source[0]


if __name__ == "__main__":
  absltest.main()
