import os
import pathlib
import pickle
import struct
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
from hypothesis import strategies as st
import numpy as np

from data import indexed

_DOCUMENTS = [[[1, 2, 3], [4]], [], [[]], [[5, 6]], [[], [7]]]
_DTYPES = ("uint8", "int8", "int16", "int32", "int64", "uint16")


class IndexedTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.prefix = self.folder / "corpus"

  def write(self, documents=_DOCUMENTS, dtype="uint16"):
    with indexed.Writer(self.prefix, dtype) as writer:
      for document in documents:
        writer.add_document(document)
    return self.prefix

  def edit(self, suffix: str, offset: int, data: bytes):
    file = self.prefix.with_suffix(suffix)
    content = bytearray(file.read_bytes())
    content[offset : offset + len(data)] = data
    file.write_bytes(content)

  @parameterized.parameters(*_DTYPES)
  def test_reads_what_was_written(self, dtype):
    opened = indexed.Indexed(self.write(dtype=dtype))
    self.assertEqual(opened.dtype, np.dtype(dtype))
    self.assertEqual(opened.sequence_lengths.tolist(), [3, 1, 0, 2, 0, 1])
    self.assertEqual(opened.sequence_starts.tolist(), [0, 3, 4, 4, 6, 6])
    self.assertEqual(opened.document_indices.tolist(), [0, 2, 2, 3, 4, 6])
    self.assertEqual(opened.document_lengths.tolist(), [4, 0, 0, 2, 1])
    self.assertEqual(opened.tokens.tolist(), [1, 2, 3, 4, 5, 6, 7])
    self.assertEqual(
      (opened.num_documents, opened.num_sequences, opened.num_tokens), (5, 6, 7)
    )
    self.assertIsNone(opened.modes)
    self.assertIsInstance(opened.tokens, np.memmap)

  @hypothesis.settings(max_examples=50, deadline=None)
  @hypothesis.given(
    documents=st.lists(st.lists(st.lists(st.integers(0, 255)))),
    dtype=st.sampled_from(["uint8", "int16", "int64"]),
  )
  def test_any_documents_come_back(self, documents, dtype):
    opened = indexed.Indexed(self.write(documents, dtype))
    starts = opened.sequence_starts.tolist()
    lengths = opened.sequence_lengths.tolist()
    read = [
      [
        opened.tokens[starts[s] : starts[s] + lengths[s]].tolist()
        for s in range(*opened.document_indices[number : number + 2])
      ]
      for number in range(opened.num_documents)
    ]
    self.assertEqual(read, documents)

  def test_the_bytes_are_those_of_the_format(self):
    self.write([[[258, 3]], [[4]]], "int16")
    self.assertEqual(
      self.prefix.with_suffix(".bin").read_bytes(), b"\x02\x01\x03\0\x04\0"
    )
    self.assertEqual(
      self.prefix.with_suffix(".idx").read_bytes(),
      b"MMIDIDX\0\0"
      + struct.pack("<QBQQ", 1, 3, 2, 3)
      + struct.pack("<2i2q3q", 2, 1, 0, 4, 0, 1, 2),
    )

  def test_modes(self):
    with indexed.Writer(self.prefix, "int32", multimodal=True) as writer:
      writer.add_document([[1], [2, 3]], modes=[0, 1])
      with self.assertRaisesRegex(ValueError, "modes"):
        writer.add_document([[1]])
      with self.assertRaisesRegex(ValueError, "2 modes of 1"):
        writer.add_document([[1]], modes=[0, 1])
    modes = indexed.Indexed(self.prefix).modes
    assert modes is not None
    self.assertEqual(modes.tolist(), [0, 1])

  def test_a_writer_leaves_nothing_behind_an_error(self):
    with (
      self.assertRaisesRegex(RuntimeError, "mine"),
      indexed.Writer(self.prefix, "uint8") as writer,
    ):
      writer.add_document([[1]])
      raise RuntimeError("mine")
    self.assertEmpty(os.listdir(self.folder))

  @parameterized.parameters(
    ([[256]], "256"), ([[-1]], "-1"), ([[0.5]], "whole")
  )
  def test_a_writer_refuses_tokens(self, document, message):
    with indexed.Writer(self.prefix, "uint8") as writer:
      writer.add_document([[7]])
      with self.assertRaisesRegex(ValueError, message):
        writer.add_document([[3], *document])
    self.assertEqual(indexed.Indexed(self.prefix).tokens.tolist(), [7])

  def test_a_writer_refuses_other_dtypes(self):
    with self.assertRaisesRegex(ValueError, "float32.*uint16"):
      indexed.Writer(self.prefix, "float32")

  @parameterized.parameters(
    (65499, "uint16"), (65500, "int32"), (None, "int32"), (2, "uint16")
  )
  def test_best_dtype(self, vocab_size, dtype):
    self.assertEqual(indexed.best_dtype(vocab_size), np.dtype(dtype))

  def test_a_file_without_tokens_can_be_read(self):
    opened = indexed.Indexed(self.write([[]]))
    self.assertEqual(opened.tokens.tolist(), [])
    self.assertEqual(opened.num_documents, 1)
    self.assertLen(opened.fingerprint, 64)

  def test_the_fingerprint_tells_files_apart(self):
    seen = set()
    for documents, dtype in (
      (_DOCUMENTS, "uint16"),
      (_DOCUMENTS, "int16"),
      (_DOCUMENTS[:-1], "uint16"),
      ([[[1, 2, 3], [4]], [], [[]], [[5, 6]], [[], [8]]], "uint16"),
    ):
      seen.add(indexed.Indexed(self.write(documents, dtype)).fingerprint)
    self.assertLen(seen, 4)
    self.assertIn(indexed.Indexed(self.write()).fingerprint, seen)

  def test_a_large_file_is_sampled(self):
    tokens = np.zeros((1 << 26) + 10, np.uint8)
    one = indexed.Indexed(self.write([[tokens]], "uint8")).fingerprint
    tokens[-1] = 1
    two = indexed.Indexed(self.write([[tokens]], "uint8")).fingerprint
    self.assertNotEqual(one, two)

  def test_the_fingerprint_of_a_file_that_rests_is_noted(self):
    cache = {"XDG_CACHE_HOME": str(self.folder / "cache")}
    with mock.patch.dict(os.environ, cache):
      first = indexed.Indexed(self.write()).fingerprint
      notes = self.folder.glob("cache/**/*.json")
      self.assertEmpty(list(notes))  # It was written a moment ago.
      with mock.patch.object(indexed, "_SETTLED_NS", -1):
        self.assertEqual(indexed.Indexed(self.prefix).fingerprint, first)
      with mock.patch.object(indexed, "_digested", side_effect=AssertionError):
        self.assertEqual(indexed.Indexed(self.prefix).fingerprint, first)
      self.edit(".bin", 0, b"\7")
      os.utime(f"{self.prefix}.bin", (10**9, 10**9))
      self.assertNotEqual(indexed.Indexed(self.prefix).fingerprint, first)

  def test_goes_to_other_processes_as_a_name(self):
    opened = indexed.Indexed(self.write())
    data = pickle.dumps(opened)
    self.assertLess(len(data), 500)
    self.assertEqual(pickle.loads(data).tokens.tolist(), opened.tokens.tolist())
    self.write(_DOCUMENTS[:2])
    with self.assertRaisesRegex(ValueError, "corpus.idx changed"):
      pickle.loads(data)

  @parameterized.parameters(".bin", ".idx")
  def test_refuses_a_missing_file(self, suffix):
    self.write().with_suffix(suffix).unlink()
    with self.assertRaisesRegex(ValueError, f"corpus{suffix} does not exist"):
      indexed.Indexed(self.prefix)

  @parameterized.parameters(
    (0, b"X", "begins with"),
    (9, b"\2", "version 2"),
    (17, b"\0", "code 0"),
    (17, b"\7", "float32"),
    (18, b"\7", "7 sequences"),
    (25, b"\x7f", "sequences and"),
    (26, b"\5", "4 documents"),
    (26, bytes(8), "no entry"),
    (34, b"\xff\xff\xff\xff", "sequence 0 has length -1"),
    (34, b"\2", "sequence 1 should begin at byte 4"),
    (58, b"\1", "sequence 0 should begin at byte 0"),
    (106, b"\1", r"span the sequences \[1, 6\)"),
    (146, b"\5", r"span the sequences \[0, 5\)"),
    (122, b"\4", "document 2 begins at sequence 4"),
  )
  def test_refuses_a_damaged_index(self, offset, data, message):
    self.write()
    self.edit(".idx", offset, data)
    with self.assertRaisesRegex(ValueError, f"corpus.idx .*{message}"):
      indexed.Indexed(self.prefix)

  def test_refuses_an_index_cut_anywhere(self):
    content = self.write().with_suffix(".idx").read_bytes()
    for size in range(len(content)):
      self.prefix.with_suffix(".idx").write_bytes(content[:size])
      with self.assertRaisesRegex(ValueError, "corpus.idx"):
        indexed.Indexed(self.prefix)

  @parameterized.parameters(b"", b"\0\0")
  def test_refuses_tokens_of_another_number(self, more):
    file = self.write().with_suffix(".bin")
    file.write_bytes(file.read_bytes()[: -1 if not more else None] + more)
    with self.assertRaisesRegex(ValueError, "corpus.bin .*7 tokens of 2 bytes"):
      indexed.Indexed(self.prefix)


if __name__ == "__main__":
  absltest.main()
