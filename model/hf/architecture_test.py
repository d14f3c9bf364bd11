import dataclasses
import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized

from model import config as model_config
from model.hf import architecture
from model.presets import catalogue
from model.presets import deepseek
from model.presets import gemma
from model.presets import gpt2
from model.presets import gpt_oss
from model.presets import kanana
from model.presets import llama
from model.presets import mistral
from model.presets import mixtral
from model.presets import olmo
from model.presets import phi
from model.presets import qwen
from model.presets import small
from model.presets import smollm

_TESTDATA = pathlib.Path(__file__).parent / "testdata"
_FILE = _TESTDATA / "llama_gqa_untied/config.json"
_PUBLISHED = json.loads((_TESTDATA / "published.json").read_text())

_PRESETS = {
  "deepseek": deepseek,
  "gemma": gemma,
  "gpt2": gpt2,
  "gpt_oss": gpt_oss,
  "kanana": kanana,
  "llama": llama,
  "mistral": mistral,
  "mixtral": mixtral,
  "olmo": olmo,
  "phi": phi,
  "qwen": qwen,
  "smollm": smollm,
}


def values(**changes):
  return json.loads(_FILE.read_text()) | changes


class ReadTest(parameterized.TestCase):
  def test_reads(self):
    found, config = architecture.read(values())
    self.assertEqual(found.architecture, "LlamaForCausalLM")
    self.assertEqual((config.dim, config.num_layers), (64, 3))

  @parameterized.parameters(
    ({"model_type": "bert"}, "x.json: model_type='bert' is not supported; o"),
    ({"model_type": "a", "text_config": {}}, "text part could be imported"),
    (
      {"quantization_config": {"quant_method": "fp8"}},
      "quantization_config={'quant_method': 'fp8'}.*dequantize them first",
    ),
    ({"hidden_size": None}, "no 'hidden_size', which model_type='llama' need"),
    ({"hidden_size": "64"}, "a key has the wrong type"),
    ({"attention_chunk_size": 8}, "understood: attention_chunk_size=8"),
    ({"hidden_act": "relu"}, "hidden_act='relu' is not supported"),
    ({"num_key_value_heads": 3}, "num_heads=4 must be a multiple"),
  )
  def test_refusals(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      architecture.read(values(**changes), where="x.json")

  @parameterized.parameters(*_PUBLISHED)
  def test_published_files_are_the_presets(self, preset):
    module, function = preset.split(".")
    expected = getattr(_PRESETS[module], function)()
    _, config = architecture.read(_PUBLISHED[preset])
    # How it was initialised, and for how long a context, is not the function.
    config = dataclasses.replace(
      config, init_std=expected.init_std, max_seq_len=expected.max_seq_len
    )
    self.assertTrue(architecture.is_same(config, expected))


class WriteTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (preset().name, preset) for preset in catalogue.PUBLISHED
  )
  def test_published_models_survive_the_trip(self, preset):
    config = preset()
    found, keys = architecture.write(config)
    again_found, again = architecture.read(json.loads(json.dumps(keys)))
    self.assertIs(again_found, found)
    self.assertTrue(architecture.is_same(again, config))

  def test_grouping_and_heads_do_not_matter(self):
    config = small.m1()
    layers = [
      model_config.LayerGroup(pattern=(block,), repeats=1)
      for block in config.layers
    ]
    split = dataclasses.replace(
      config,
      name="other",
      groups=tuple(layers),
      mtp=model_config.MtpConfig(block=config.layers[0]),
    )
    self.assertTrue(architecture.is_same(config, split))
    self.assertEqual(architecture.write(config), architecture.write(split))
    changed = dataclasses.replace(config, norm_eps=1e-4)
    self.assertFalse(architecture.is_same(config, changed))

  def test_refuses_what_no_class_computes(self):
    config = dataclasses.replace(small.m1(), logit_softcap=3.0)
    with self.assertRaisesRegex(ValueError, "cannot be exported: no archit"):
      architecture.write(config)


class IgnoredTest(absltest.TestCase):
  def test_buffers_and_layers_behind_the_last(self):
    by_type = {f.model_type: f for f in architecture.FAMILIES}
    _, config = architecture.read(values())
    for kind, name, expected in (
      ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq", True),
      ("llama", "model.layers.0.self_attn.q_proj.weight", False),
      ("llama", "model.layers.3.self_attn.q_proj.weight", False),
      ("deepseek_v3", "model.layers.3.eh_proj.weight", True),
      ("deepseek_v3", "model.layers.2.eh_proj.weight", False),
      ("gpt2", "transformer.h.0.attn.masked_bias", True),
      ("qwen3_next", "mtp.fc.weight", True),
    ):
      found = architecture.is_ignored(by_type[kind], config, name)
      self.assertEqual(found, expected, (kind, name))


if __name__ == "__main__":
  absltest.main()
