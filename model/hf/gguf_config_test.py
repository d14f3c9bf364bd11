import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from model.hf import gguf_config
from model.hf import gguf_fixtures
from model.hf import gguf_header

_KEY_LENGTHS = {"attention.key_length": 8, "attention.value_length": 8}


class GgufConfigTest(parameterized.TestCase):
  def model_of(self, arrays=None, architecture="llama", **metadata):
    folder = pathlib.Path(self.create_tempdir().full_path)
    self.arrays = arrays or gguf_fixtures.make_tensors(architecture)
    file = gguf_fixtures.write(
      folder / "model.gguf",
      self.arrays,
      architecture=architecture,
      metadata={key.replace("__", "."): v for key, v in metadata.items()},
    )
    header = gguf_header.read(file)
    return gguf_config.model_of(header, self.arrays.__getitem__)

  def assert_refused(self, message, *args, **metadata):
    with self.assertRaisesRegex(ValueError, f"model.gguf.*{message}"):
      self.model_of(*args, **metadata)

  def test_config_of_llama(self):
    ids = {f"/tokenizer.ggml.{n}_token_id": i for i, n in enumerate("ab")}
    ids |= {
      "/tokenizer.ggml.bos_token_id": 1,
      "/tokenizer.ggml.padding_token_id": 3,
    }
    config = self.model_of(**ids, vocab_size=40).config
    self.assertEqual(
      config,
      {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 40,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": None,
        "pad_token_id": 3,
      },
    )

  @parameterized.parameters(
    ("qwen2", "Qwen2ForCausalLM"), ("qwen3", "Qwen3ForCausalLM")
  )
  def test_config_of_others(self, architecture, class_name):
    model = self.model_of(architecture=architecture, **_KEY_LENGTHS)
    self.assertEqual(model.config["architectures"], [class_name])
    self.assertEqual(model.config["model_type"], architecture)
    self.assertFalse(model.config["use_sliding_window"])
    self.assertEmpty(model.num_permuted_heads)
    part = {"qwen2": "q_proj.bias", "qwen3": "q_norm.weight"}[architecture]
    self.assertIn(f"model.layers.1.self_attn.{part}", model.names.values())

  def test_a_head_of_its_own_is_not_tied(self):
    arrays = gguf_fixtures.make_tensors("llama")
    arrays["output.weight"] = arrays["token_embd.weight"]
    model = self.model_of(arrays)
    self.assertFalse(model.config["tie_word_embeddings"])
    self.assertEqual(model.names["output.weight"], "lm_head.weight")

  def test_biases(self):
    biases = gguf_fixtures.ATTENTION_BIASES
    model = self.model_of(gguf_fixtures.make_tensors("llama", **biases))
    self.assertTrue(model.config["attention_bias"])
    self.assertFalse(model.config["mlp_bias"])
    self.assertEqual(
      model.num_permuted_heads["model.layers.1.self_attn.k_proj.bias"], 2
    )
    partial = {k: v for k, v in biases.items() if k != "attn_output.bias"}
    self.assert_refused(
      "lacks blk.0.attn_output.bias .2 tensors",
      gguf_fixtures.make_tensors("llama", **partial),
    )

  def test_counts_may_be_given_for_each_layer(self):
    counts = {"attention.head_count": [4, 4]}
    self.assertEqual(self.model_of(**counts).config["num_attention_heads"], 4)
    counts = {"attention.head_count": [4, 8]}
    self.assert_refused("head_count is .4, 8.; .* same in every", **counts)

  def test_rope_scaling(self):
    def scaling(**metadata):
      metadata = {f"rope.scaling.{k}": v for k, v in metadata.items()}
      return self.model_of(**metadata).config["rope_scaling"]

    self.assertIsNone(scaling(type="none", finetuned=False))
    self.assertEqual(
      scaling(type="linear", factor=2.5), {"rope_type": "linear", "factor": 2.5}
    )
    self.assertEqual(
      scaling(
        type="yarn", factor=4.0, original_context_length=64, yarn_beta_fast=16.0
      ),
      {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 16.0,
      },
    )
    with self.assertRaisesRegex(ValueError, "type is 'longrope'; only 'none'"):
      scaling(type="longrope")
    with self.assertRaisesRegex(ValueError, "factor is None"):
      scaling(type="linear")
    with self.assertRaisesRegex(ValueError, "original_context_length is None"):
      scaling(type="yarn", factor=4.0)
    with self.assertRaisesRegex(ValueError, "attn_factor is 2.0; .*not know"):
      scaling(type="linear", factor=2.0, attn_factor=2.0)

  def test_llama3_scaling_is_found_in_its_factors(self):
    # Wavelengths 6.3, 167, 4443 and 118,148: kept, kept, between and divided.
    arrays = gguf_fixtures.make_tensors("llama")
    wavelength = 2 * np.pi * 500_000.0**0.5
    smooth = (8192 / wavelength - 1) / 3
    between = 1 / ((1 - smooth) / 8 + smooth)
    factors = np.array([1, 1, between, 8], np.float32)
    scaling = self.model_of(arrays | {"rope_freqs.weight": factors}).config[
      "rope_scaling"
    ]
    self.assertEqual(
      scaling,
      {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
      },
    )
    ones = arrays | {"rope_freqs.weight": np.ones(4, np.float32)}
    self.assertIsNone(self.model_of(ones).config["rope_scaling"])
    factors = np.array([1, 1, 2, 8], np.float32)
    self.assert_refused(
      "rope_freqs.weight .* not Llama 3's",
      arrays | {"rope_freqs.weight": factors},
    )

  @parameterized.parameters(
    ({"/general.architecture": "gemma2"}, "'gemma2'; known are llama, qwen2"),
    ({"/general.type": "adapter"}, "general.type is 'adapter'"),
    ({"/split.count": 3}, "split.count is 3; merge the parts"),
    ({"logit_scale": 2.0}, "llama.logit_scale is 2.0; .*may change numbers"),
    ({"expert_count": 8}, "llama.expert_count is 8; only 0"),
    ({"attention.sliding_window": 128}, "sliding_window is 128"),
    ({"rope.dimension_count": 4}, "rope.dimension_count is 4; only 8"),
    ({"vocab_size": 50}, "vocab_size is 50; only 40"),
    ({"block_count": 3}, "lacks blk.2.attn_norm.weight .9 tensors"),
    ({"block_count": 1}, "has blk.1.attn_k.weight .9 tensors"),
    ({"block_count": None}, "llama.block_count is None"),
    ({"attention.head_count": 2}, "blk.0.attn_k.*16, 32.*has 32 rows"),
    ({"attention.layer_norm_rms_epsilon": 0.0}, "epsilon is 0.0"),
    ({"/tokenizer.ggml.tokens": ["x"] * 41}, "41 tokens, .* 40 rows"),
  )
  def test_refuses_what_is_not_known(self, metadata, message):
    self.assert_refused(message, **metadata)


if __name__ == "__main__":
  absltest.main()
