import json
import pathlib
import shutil
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import jax
import ml_dtypes
import numpy as np

from model import checkpoint
from model import sharding
from model.hf import fixtures
from model.hf import importer

_BFLOAT16 = ml_dtypes.bfloat16
_Q = "model.layers.1.self_attn.q_proj.weight"


class ImporterTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    self.folder = self.root / "tiny-llama"
    self.output = self.root / "out"
    self.tensors = fixtures.tensors()

  def run_import(self, *, values=None, **settings):
    fixtures.write(self.folder, self.tensors, values=values)
    return importer.run(self.folder, self.output, **settings)

  def load(self):
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    return checkpoint.load(self.output, mesh)

  def assert_refused(self, message, **settings):
    with self.assertRaisesRegex(ValueError, message):
      self.run_import(**settings)
    left = self.output.iterdir() if self.output.exists() else ()
    self.assertEmpty(list(left))

  def test_imports(self):
    result = self.run_import()
    self.assertEqual(result.folder, self.output / "0")
    self.assertEqual(result.param_dtype, "float32")
    self.assertFalse(result.has_tokenizer)
    sizes = [array.size for array in self.tensors.values()]
    self.assertEqual(result.num_parameters, sum(sizes))
    self.assertEqual(result.num_bytes, 4 * sum(sizes))
    bundle = self.load()
    self.assertEqual((bundle.config.name, bundle.step), ("tiny-llama", 0))
    self.assertEqual(bundle.config, result.config)
    np.testing.assert_array_equal(
      bundle.params["embed_VD"], self.tensors["model.embed_tokens.weight"]
    )
    np.testing.assert_array_equal(
      bundle.params["head_DV"], self.tensors["lm_head.weight"].T
    )
    block = bundle.params["group_0"]["block_0"]
    np.testing.assert_array_equal(
      block["mixer"]["q_DNH"][1],
      self.tensors[_Q].reshape(2, 4, 8).transpose(2, 0, 1),
    )
    np.testing.assert_array_equal(
      block["feed_forward_norm"]["scale_D"][1],
      self.tensors["model.layers.1.post_attention_layernorm.weight"],
    )

  def test_all_that_does_not_fit_is_said_at_once(self):
    del self.tensors["model.norm.weight"]
    self.tensors["model.layers.0.mlp.knob"] = np.zeros(3, np.float32)
    self.tensors[_Q] = self.tensors[_Q][:4]
    self.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(2)
    self.assert_refused(
      r"1 missing: model.norm.weight; 1 not understood: model.layers.0.mlp.knob"
      rf"; 1 of another shape \(found for expected\): {_Q} "
      r"\(4, 8\) for \(8, 8\). Is it the config.json"
    )

  def test_damaged_weights(self):
    self.tensors[_Q][0, 3] = np.nan
    self.assert_refused(rf"{_Q} has 1 NaN .* first at \[0, 3\]")
    file = self.folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with self.assertRaisesRegex(ValueError, "model.safetensors"):
      importer.run(self.folder, self.output)

  def test_existing_output(self):
    first = self.run_import()
    with self.assertRaisesRegex(ValueError, "/out/0 exists; .*another --outp"):
      self.run_import()
    self.assertTrue((first.folder / "meta").is_dir())

  def test_head_of_a_tied_model(self):
    values = fixtures.config(tie_word_embeddings=True)
    self.assert_refused(
      "tie_word_embeddings is true, but lm_head.weight is not model.embed_to",
      values=values,
    )
    self.tensors["lm_head.weight"] = self.tensors["model.embed_tokens.weight"]
    self.run_import(values=values)
    self.assertNotIn("head_DV", self.load().params)

  def test_names_of_a_base_model(self):
    self.tensors = {
      name.removeprefix("model."): array for name, array in self.tensors.items()
    }
    self.run_import()
    np.testing.assert_array_equal(
      self.load().params["embed_VD"], self.tensors["embed_tokens.weight"]
    )

  def test_tensors_without_elements(self):
    empty = {"model.layers.0.mlp.knob": np.zeros((0, 8), np.float32)}
    fixtures.write(self.folder, fixtures.tensors() | empty)
    self.assertEqual(
      importer.run(self.folder, self.output).param_dtype, "float32"
    )

  def test_tokenizer(self):
    tokenizer = fixtures.write_tokenizer(self.root / "tokenizer", size=300)
    checks: dict[str, Any] = {"count_ids": fixtures.count_ids}
    shutil.copytree(tokenizer, self.folder)
    self.assert_refused(
      "has ids up to 299, but the model's vocab_size is 32", **checks
    )
    (self.folder / "tokenizer.json").write_text("{}")
    self.assert_refused(f"{self.folder}", **checks)
    shutil.copytree(tokenizer, self.folder, dirs_exist_ok=True)
    self.tensors = fixtures.tensors(vocab=320)
    result = self.run_import(values=fixtures.config(vocab_size=320), **checks)
    self.assertTrue(result.has_tokenizer)
    folder = self.load().tokenizer
    assert folder is not None
    self.assertEqual(
      (folder / "tokenizer.json").read_bytes(),
      (tokenizer / "tokenizer.json").read_bytes(),
    )

  def test_dtypes(self):
    self.tensors = fixtures.tensors(_BFLOAT16)
    self.assertEqual(self.run_import().param_dtype, "bfloat16")
    # One tensor that is wider.
    self.tensors["model.norm.weight"] = np.ones(8, np.float32)
    shutil.rmtree(self.output)
    result = self.run_import()
    self.assertEqual(result.param_dtype, "float32")
    meta = checkpoint.read_meta(result.folder)
    dtypes = meta.json(importer.DTYPES_FILE)
    self.assertEqual(dtypes["model.norm.weight"], "float32")
    self.assertEqual(dtypes[_Q], "bfloat16")
    q_DNH = self.load().params["group_0"]["block_0"]["mixer"]["q_DNH"]
    self.assertEqual(q_DNH.dtype, np.float32)

  def test_bits_are_lost_only_if_asked_for(self):
    self.run_import(param_dtype="bfloat16")
    np.testing.assert_array_equal(
      self.load().params["head_DV"],
      self.tensors["lm_head.weight"].T.astype(_BFLOAT16),
    )
    shutil.rmtree(self.output)
    self.tensors[_Q] = self.tensors[_Q].astype(np.float64)
    self.run_import()
    shutil.rmtree(self.output)
    self.tensors[_Q] += 1e-12
    self.assert_refused("loses bits as float32; ask .*--param_dtype=float32")
    self.run_import(param_dtype="float32")
    shutil.rmtree(self.output)
    self.tensors[_Q][0] = 1e300
    self.assert_refused("beyond the range", param_dtype="float32")

  def test_what_an_export_gives_back_is_kept(self):
    values = fixtures.config(bos_token_id=7)
    self.folder.mkdir()
    (self.folder / "generation_config.json").write_text('{"top_k": 3}')
    result = self.run_import(values=values, name="other")
    meta = checkpoint.read_meta(result.folder)
    self.assertEqual(meta.json(importer.CONFIG_FILE), values)
    self.assertEqual(meta.json(importer.GENERATION_FILE), {"top_k": 3})
    self.assertEqual(result.config.name, "other")

  def test_config_file(self):
    fixtures.write(self.folder, self.tensors)
    (self.folder / "config.json").rename(self.folder / "other.json")
    with self.assertRaisesRegex(ValueError, "config.json does not exist"):
      importer.run(self.folder, self.output)
    importer.run(self.folder, self.output, config_file="other.json")
    bad = json.dumps(fixtures.config(knob=1))
    (self.folder / "other.json").write_text(bad)
    with self.assertRaisesRegex(ValueError, "llama/other.json: .* knob=1"):
      importer.run(self.folder, self.output, config_file="other.json")


if __name__ == "__main__":
  absltest.main()
