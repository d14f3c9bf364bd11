import os
import pathlib
import pickle
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from data import indexed
from data.sources import megatron

# Documents of sequences: some without tokens, and one without sequences.
_DOCUMENTS = [[[1, 2, 3], [4]], [], [[]], [[5, 6]], [[], [7]]]


class MegatronSourceTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    cache = {"XDG_CACHE_HOME": str(self.folder / "cache")}
    self.enter_context(mock.patch.dict(os.environ, cache))

  def write(self, documents=_DOCUMENTS, dtype="uint16") -> pathlib.Path:
    prefix = self.folder / "corpus"
    with indexed.Writer(prefix, dtype) as writer:
      for document in documents:
        writer.add_document(document)
    return prefix

  @parameterized.parameters(
    "uint8", "int8", "int16", "int32", "int64", "uint16"
  )
  def test_reads_the_documents(self, dtype):
    prefix = self.write(dtype=dtype)
    source = megatron.MegatronSource(prefix, vocab_size=8)
    self.assertEqual(source.document_lengths.tolist(), [4, 2, 1])
    self.assertEqual(source.num_tokens, 7)
    self.assertIsInstance(source.flat, np.memmap)
    copy = pickle.loads(pickle.dumps(source))
    for start in range(8):
      for stop in range(start, 8):
        expected = list(range(start + 1, stop + 1))
        self.assertEqual(source.read(start, stop).tolist(), expected)
        self.assertEqual(copy.read(start, stop).tolist(), expected)
    for start, stop in ((-1, 2), (3, 2), (0, 8)):
      with self.assertRaisesRegex(ValueError, "is outside"):
        source.read(start, stop)

  @parameterized.parameters(
    (
      "uint16",
      7,
      "token 6, in document 2 of those with tokens, is 7, but .* 7",
    ),
    ("int32", 5, "token 4, in document 1 .* is 5"),
  )
  def test_refuses_tokens_that_are_no_ids(self, dtype, vocab_size, message):
    prefix = self.write(dtype=dtype)
    # The range is kept; what it means depends on the tokenizer.
    megatron.MegatronSource(prefix, vocab_size=8)
    with mock.patch.object(megatron, "_range", side_effect=AssertionError):
      for _ in range(2):
        with self.assertRaisesRegex(ValueError, f"{prefix}.bin: {message}"):
          megatron.MegatronSource(prefix, vocab_size=vocab_size)

  def test_refuses_negative_tokens(self):
    prefix = self.write([[[1, 2], [3, -4]]], "int64")
    with self.assertRaisesRegex(ValueError, "token 3, in document 0 .* is -4"):
      megatron.MegatronSource(prefix, vocab_size=8)

  @parameterized.parameters(
    ("uint8", 257), ("int8", 129), ("int16", 32769), ("uint16", 65537)
  )
  def test_refuses_a_dtype_that_cannot_hold_the_ids(self, dtype, vocab_size):
    prefix = self.write(dtype=dtype)
    megatron.MegatronSource(prefix, vocab_size=vocab_size - 1)
    with self.assertRaisesRegex(
      ValueError, f"{prefix}.bin is of {dtype}, .* the {vocab_size} ids"
    ):
      megatron.MegatronSource(prefix, vocab_size=vocab_size)

  def test_all_blocks_are_checked(self):
    tokens = np.arange(1000) % 50
    prefix = self.write([[tokens], [[99]], [tokens]])
    with (
      mock.patch.object(megatron, "_BLOCK", 64),
      self.assertRaisesRegex(ValueError, "token 1000, in document 1 .* 99"),
    ):
      megatron.MegatronSource(prefix, vocab_size=99)

  def test_a_file_that_changed_is_checked_again(self):
    megatron.MegatronSource(self.write(), vocab_size=8)
    documents = [*_DOCUMENTS[:-1], [[], [8]]]
    prefix = self.write(documents)
    with self.assertRaisesRegex(ValueError, "is 8"):
      megatron.MegatronSource(prefix, vocab_size=8)

  def test_the_digest_is_of_the_files(self):
    one = megatron.MegatronSource(self.write(), vocab_size=9).digest
    self.assertEqual(
      one, megatron.MegatronSource(self.write(), vocab_size=10).digest
    )
    prefix = self.write([[[1, 2, 3, 4]], [[5, 6]], [[7]]])
    self.assertNotEqual(
      one, megatron.MegatronSource(prefix, vocab_size=9).digest
    )

  def test_refuses_files_without_tokens(self):
    prefix = self.write([[], [[]]])
    with self.assertRaisesRegex(ValueError, f"{prefix}.bin has no tokens"):
      megatron.MegatronSource(prefix, vocab_size=8)


if __name__ == "__main__":
  absltest.main()
