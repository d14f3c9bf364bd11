import pathlib
import struct

from absl.testing import absltest
from absl.testing import parameterized
import gguf

from model.hf import gguf_fixtures
from model.hf import gguf_header

_METADATA = {
  "/general.name": "이름",
  "/some.words": ["one", "", "세"],
  "/some.numbers": [1, -2, 3],
  "/some.fractions": [0.5, -1.25],
  "/some.truth": True,
}


class GgufHeaderTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.file = pathlib.Path(self.create_tempdir().full_path) / "model.gguf"
    arrays = gguf_fixtures.make_tensors("llama")
    kinds = {"token_embd.weight": gguf.GGMLQuantizationType.Q8_0}
    gguf_fixtures.write(self.file, arrays, metadata=_METADATA, kinds=kinds)
    self.content = self.file.read_bytes()

  def assert_refused(self, content, message):
    self.file.write_bytes(content)
    with self.assertRaisesRegex(ValueError, f"(?s)model.gguf.*{message}"):
      gguf_header.read(self.file)

  def test_reads_what_the_library_does(self):
    header = gguf_header.read(self.file)
    library = gguf.GGUFReader(self.file)
    fields = {
      name: field.contents()
      for name, field in library.fields.items()
      if not name.startswith("GGUF.")
    }
    self.assertEqual(header.metadata, fields)
    self.assertEqual(header.metadata["some.words"], ["one", "", "세"])
    self.assertLen(header.tensors, len(library.tensors))
    for tensor in library.tensors:
      found = header.tensors[tensor.name]
      self.assertEqual(found.shape, tuple(reversed(tensor.shape.tolist())))
      self.assertEqual(found.kind, tensor.tensor_type)
      self.assertEqual(found.offset, tensor.data_offset)
      self.assertEqual(found.num_bytes, tensor.n_bytes)

  def test_refuses_a_file_that_is_cut_short_anywhere(self):
    sizes = [4, 10, 23, *range(24, len(self.content) - 64, 487)]
    for size in sizes:
      self.assert_refused(self.content[:size], "cut short")
    # The last tensor's padding need not be there.
    size = len(self.content)
    self.assert_refused(self.content[: size - 32], f"has {size - 32} bytes")

  @parameterized.named_parameters(
    ("magic", b"PK\x03\x04", "not a GGUF file .it begins with"),
    ("old", b"GGUF" + struct.pack("<I", 1), "is version 1; only"),
    ("big_endian", b"GGUF" + struct.pack(">I", 3), "is big-endian"),
    ("pointer", b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
  )
  def test_refuses_other_files(self, start, message):
    self.assert_refused(start + self.content[len(start) :], message)

  def test_refuses_damage(self):
    def with_bytes(old, new):
      self.assertIn(old, self.content)
      return self.content.replace(old, new, 1)

    self.assert_refused(
      with_bytes(b"llama.block_count", b"llama.block_c\xff\xffnt"), "not UTF-8"
    )
    self.assert_refused(
      with_bytes(b"some.truth" + struct.pack("<I", 7), b"some.truth\x63\0\0\0"),
      "some.truth has the unknown GGUFValueType 99",
    )
    self.assert_refused(
      with_bytes(b"blk.1.attn_q.weight", b"blk.0.attn_q.weight"),
      "tensor blk.0.attn_q.weight is there twice",
    )
    self.assert_refused(
      with_bytes(b"some.numbers", b"general.name"), "general.name.* twice"
    )
    dims = b"token_embd.weight" + struct.pack("<I", 2)
    self.assert_refused(
      with_bytes(dims, dims[:-4] + struct.pack("<I", 9)),
      "token_embd.weight has 9 dims",
    )


if __name__ == "__main__":
  absltest.main()
