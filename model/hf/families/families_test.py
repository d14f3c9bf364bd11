"""All families, by the config.json files of tiny models of each."""

import dataclasses
import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized

from model import config as model_config
from model import transformer
from model.hf import architecture

_TESTDATA = pathlib.Path(__file__).parents[1] / "testdata"
_CASES = tuple(
  sorted(f.parent.name for f in _TESTDATA.glob("*/config_legacy.json"))
)


def values(case, file="config.json"):
  return json.loads((_TESTDATA / case / file).read_text())


class FamiliesTest(parameterized.TestCase):
  @parameterized.parameters(*_CASES)
  def test_styles_and_back(self, case):
    found, config = architecture.read(values(case))
    old = values(case, "config_legacy.json")
    self.assertEqual(architecture.read(old), (found, config))
    if case == "llama_kanana15_tied":
      # See test_llama_of_an_odd_width.
      return
    # By its own family, whichever else could hold it.
    written = json.loads(json.dumps(found.write(config)))
    again = architecture.read(written)
    self.assertEqual(again, (found, config))
    self.assertEqual(written["architectures"], [found.architecture])

  @parameterized.parameters(
    "deepseek_v2_groups",
    "deepseek_v3_yarn",
    "gpt2",
    "gpt_oss",
    "llama_biases",
    "mixtral",
    "phi3_sliding",
    "qwen3_next",
  )
  def test_every_parameter_has_a_name(self, case):
    found, config = architecture.read(values(case))
    _, shapes = transformer.abstract(config, model_config.ExecutionConfig())
    names = [b.theirs for b in architecture.bind(found, config, shapes)]
    self.assertLen(set(names), len(names))

  def test_all_are_here(self):
    kinds = {architecture.read(values(case))[0].model_type for case in _CASES}
    self.assertEqual(kinds, {f.model_type for f in architecture.FAMILIES})


class ReadTest(parameterized.TestCase):
  """What the files say that the goldens' do not."""

  def read(self, case, **changes):
    return architecture.read(values(case, "config_legacy.json") | changes)[1]

  def windows(self, case, **changes):
    layers = self.read(case, **changes).layers
    return [getattr(block.mixer, "window", None) for block in layers]

  def test_windows(self):
    sliding = {"use_sliding_window": True, "sliding_window": 8}
    for case, changes, expected in (
      ("qwen3", {"use_sliding_window": False, "sliding_window": 8}, [None] * 3),
      ("qwen3", sliding | {"max_window_layers": 1}, [None, 8, 8]),
      # Transformers does not look at max_window_layers there.
      ("qwen3_moe", sliding | {"max_window_layers": 1}, [8, 8]),
    ):
      self.assertEqual(self.windows(case, **changes), expected, case)

  def test_deepseek_routers(self):
    for case, value in (
      ("deepseek_v3_kanana2", False),
      # Transformers' V2 never does.
      ("deepseek_v2", True),
    ):
      moe = self.read(case, norm_topk_prob=value).layers[-1].feed_forward
      assert isinstance(moe, model_config.MoeConfig)
      self.assertFalse(moe.router.normalize)
    with self.assertRaisesRegex(ValueError, "topk_method='other'"):
      self.read("deepseek_v2", topk_method="other")

  def test_gemma_without_layer_types(self):
    old = values("gemma3", "config_legacy.json")
    old.pop("layer_types", None)
    old["sliding_window_pattern"] = 2
    _, config = architecture.read(old)
    windows = [
      getattr(block.mixer, "window", None) is None for block in config.layers
    ]
    expected = [(i + 1) % 2 == 0 for i in range(config.num_layers)]
    self.assertEqual(windows, expected)

  def without(self, case, *keys):
    """Where a key is absent, and not null, a class has its own value."""
    left = values(case, "config_legacy.json")
    for key in keys:
      left.pop(key, None)
    return architecture.read(left)[1]

  def test_absent_keys(self):
    windows = {
      block.mixer.window
      for block in self.without("mistral_sliding", "sliding_window").layers
      if isinstance(block.mixer, model_config.AttentionConfig)
    }
    self.assertEqual(windows, {4096})
    self.assertEqual(
      self.windows("mistral_sliding", sliding_window=None)[0], None
    )
    capped = self.without("gemma2", "final_logit_softcapping")
    self.assertEqual(capped.logit_softcap, 30.0)
    self.assertIsNone(
      self.read("gemma2", final_logit_softcapping=None).logit_softcap
    )
    mixer = self.without("deepseek_v3_kanana2", "q_lora_rank").layers[0].mixer
    assert isinstance(mixer, model_config.MlaConfig)
    self.assertEqual(mixer.q_rank, 1536)

  def test_gpt_oss_without_rope(self):
    mixer = self.without("gpt_oss", "rope_scaling").layers[0].mixer
    assert isinstance(mixer, model_config.AttentionConfig)
    assert mixer.rope is not None
    self.assertEqual(
      mixer.rope.scaling,
      model_config.YarnScaling(
        factor=32.0, original_max_seq_len=4096, truncate=False
      ),
    )

  def test_gemma3_of_one_kind_of_layers(self):
    new = values("gemma3") | {"layer_types": None}
    new["rope_parameters"] = {"sliding_attention": {"rope_theta": 5e3}}
    thetas = [
      block.mixer.rope.theta
      for block in architecture.read(new)[1].layers
      if isinstance(block.mixer, model_config.AttentionConfig)
      and block.mixer.rope is not None
    ]
    self.assertEqual(set(thetas), {5e3, 1e6})
    new["rope_parameters"] = {"rope_type": "default"}
    with self.assertRaisesRegex(ValueError, "rope_parameters has .'rope_type'"):
      architecture.read(new)

  def test_biases(self):
    for case in ("gemma2", "gemma3", "olmoe"):
      mixer = self.read(case, attention_bias=True).layers[0].mixer
      assert isinstance(mixer, model_config.AttentionConfig)
      self.assertTrue(mixer.qkv_bias and mixer.out_bias)

  def test_bias_of_an_output_gate(self):
    keys = values("qwen3_next") | {"attention_bias": True}
    found, config = architecture.read(keys)
    _, shapes = transformer.abstract(config, model_config.ExecutionConfig())
    bound = {
      b.theirs.split(".", 3)[-1]: b.their_shape
      for b in architecture.bind(found, config, shapes)
    }
    # Each head's query and gate.
    self.assertEqual(
      bound["self_attn.q_proj.bias"], bound["self_attn.q_proj.weight"][:1]
    )

  def test_gemma3_does_not_bound_scores(self):
    for case, softcap in (("gemma2", 3.0), ("gemma3", None)):
      mixer = self.read(case, attn_logit_softcapping=3.0).layers[0].mixer
      self.assertEqual(getattr(mixer, "softcap", 0), softcap)

  def test_more_dense_layers_than_layers(self):
    config = self.read("deepseek_v3_yarn", first_k_dense_replace=9)
    self.assertEqual(
      config.num_layers, self.read("deepseek_v3_yarn").num_layers
    )

  @parameterized.parameters(
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    ("llama_biases", {"partial_rotary_factor": 0.5}),
    ("qwen2", {"use_mrope": True}),
    ("qwen3_next", {"hidden_act": "gelu"}),
    ("gpt_oss", {"swiglu_limit": 5.0}),
    ("llama_biases", {"rope_interleaved": True}),
    ("llama_biases", {"pretraining_tp": 2}),
    ("gemma2", {"use_bidirectional_attention": True}),
    ("phi3_sliding", {"attention_bias": True}),
    ("qwen3_next", {"use_sliding_window": True}),
    ("deepseek_v2", {"moe_layer_freq": 2}),
  )
  def test_options_that_are_not_supported(self, case, changes):
    (key,) = changes
    with self.assertRaisesRegex(ValueError, f"{key}=.* is not supported"):
      self.read(case, **changes)


class WriteTest(absltest.TestCase):
  def test_llama_of_an_odd_width(self):
    found, config = architecture.read(values("llama_kanana15_tied"))
    with self.assertRaisesRegex(ValueError, "Transformers 5 refuses"):
      found.write(config)
    other, written = architecture.write(config)
    self.assertEqual(other.model_type, "mistral")
    self.assertTrue(architecture.is_same(architecture.read(written)[1], config))

  def test_refuses_models_of_other_families(self):
    _, dense = architecture.read(values("llama_gqa_untied"))
    _, latent = architecture.read(values("deepseek_v3_yarn"))
    mixer = dense.layers[0].mixer
    assert isinstance(mixer, model_config.AttentionConfig)
    no_rope = dataclasses.replace(
      dense.layers[0], mixer=dataclasses.replace(mixer, rope=None)
    )
    bare = dataclasses.replace(
      dense, groups=model_config.group_layers([no_rope] * 3)
    )
    for found in architecture.FAMILIES:
      for config in (latent, dense, bare):
        try:
          _, again = architecture.read(found.write(config))
        except ValueError:
          continue
        same = architecture.is_same(again, config)
        own = ("llama", "mistral", "phi3", "deepseek_v3")
        self.assertTrue(found.model_type in own or not same, found.model_type)


if __name__ == "__main__":
  absltest.main()
