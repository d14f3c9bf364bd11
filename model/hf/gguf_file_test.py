import pathlib
import shutil
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import gguf
import ml_dtypes
import numpy as np

from model.hf import gguf_file
from model.hf import gguf_fixtures

_Kind = gguf.GGMLQuantizationType
_Q, _K = "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj"


class GgufFileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.file = self.folder / "model.gguf"
    self.arrays = gguf_fixtures.make_tensors(
      "llama", **gguf_fixtures.ATTENTION_BIASES
    )

  def open(self, **options):
    gguf_fixtures.write(self.file, self.arrays, **options)
    return gguf_file.open_gguf(self.file)

  def test_has_the_names_and_numbers_of_hugging_face(self):
    found = self.open()
    self.assertLen(found, len(self.arrays))
    for ours, theirs in {
      "model.embed_tokens.weight": "token_embd.weight",
      "model.norm.weight": "output_norm.weight",
      "model.layers.0.input_layernorm.weight": "blk.0.attn_norm.weight",
      "model.layers.1.post_attention_layernorm.weight": "blk.1.ffn_norm.weight",
      "model.layers.1.mlp.down_proj.weight": "blk.1.ffn_down.weight",
      f"{_Q}.weight": "blk.1.attn_q.weight",
      f"{_K}.weight": "blk.1.attn_k.weight",
      f"{_Q}.bias": "blk.1.attn_q.bias",
      f"{_K}.bias": "blk.1.attn_k.bias",
    }.items():
      np.testing.assert_array_equal(found.read(ours), self.arrays[theirs])
    self.assertEqual(found.config["hidden_size"], gguf_fixtures.HIDDEN)
    self.assertEqual(found.config["torch_dtype"], "float32")
    self.assertEqual(found.metadata["llama.context_length"], 256)

  @parameterized.parameters("qwen2", "qwen3")
  def test_q_and_k_of_others_are_in_order(self, architecture):
    self.arrays = gguf_fixtures.make_tensors(architecture)
    found = self.open(architecture=architecture)
    for ours, theirs in {_Q: "attn_q", _K: "attn_k"}.items():
      np.testing.assert_array_equal(
        found.read(f"{ours}.weight"), self.arrays[f"blk.1.{theirs}.weight"]
      )

  @parameterized.parameters(
    (_Kind.F16, np.float16, 0),
    (_Kind.BF16, ml_dtypes.bfloat16, 0),
    (_Kind.Q8_0, np.float32, 0.02),
    (_Kind.Q4_1, np.float32, 0.3),
  )
  def test_reads_kinds(self, kind, dtype, tolerance):
    names = {
      "model.embed_tokens.weight": "token_embd.weight",
      f"{_Q}.weight": "blk.1.attn_q.weight",
    }
    found = self.open(kinds=dict.fromkeys(names.values(), kind))
    for ours, theirs in names.items():
      array = found.read(ours)
      self.assertEqual(array.dtype, dtype)
      self.assertEqual(found[ours].dtype, dtype)
      expected = self.arrays[theirs]
      if not tolerance:
        np.testing.assert_array_equal(array, expected.astype(dtype))
        continue
      np.testing.assert_allclose(array, expected, atol=tolerance)
      # Rows are quantized one by one: permuting them changes none.
      quantized = gguf.dequantize(gguf.quantize(expected, kind), kind)
      np.testing.assert_array_equal(array, quantized)

  def test_reads_slices_and_in_blocks(self):
    kinds = {"token_embd.weight": _Kind.Q8_0, "blk.1.attn_q.weight": _Kind.Q8_0}
    found = self.open(kinds=kinds)
    whole = {name: found.read(name) for name in found}
    with mock.patch.object(gguf_file, "_BLOCK", 3 * gguf_fixtures.HIDDEN):
      for name, array in whole.items():
        np.testing.assert_array_equal(found.read(name), array)
        np.testing.assert_array_equal(
          found.read_slice(name, 3, len(array) - 1), array[3:-1]
        )

  @parameterized.parameters((_Kind.I8, "I8"), (_Kind.TQ1_0, "TQ1_0"))
  def test_refuses_kinds(self, kind, name):
    if kind is _Kind.I8:
      kinds = {"blk.0.ffn_up.weight": kind}
    else:
      # A vector has no rows of blocks.
      self.arrays["blk.0.attn_norm.weight"] = np.zeros(256, np.float32)
      kinds = {"blk.0.attn_norm.weight": kind}
    with self.assertRaisesRegex(ValueError, f"blk.0.* is stored as {name}"):
      self.open(kinds=kinds)

  def test_takes_the_only_file_of_a_folder(self):
    with self.assertRaisesRegex(
      ValueError, "must have one .gguf, but has none"
    ):
      gguf_file.open_gguf(self.folder)
    with self.assertRaisesRegex(ValueError, "does not exist"):
      gguf_file.open_gguf(self.file)
    self.open()
    self.assertLen(gguf_file.open_gguf(self.folder), len(self.arrays))
    shutil.copy(self.file, self.folder / "other.gguf")
    with self.assertRaisesRegex(ValueError, "has model.gguf, other.gguf; give"):
      gguf_file.open_gguf(self.folder)


if __name__ == "__main__":
  absltest.main()
