from absl.testing import absltest
from absl.testing import parameterized

from model import config as model_config
from model.hf import config_json

_LLAMA3 = {
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 64,
}
_LONG = {"short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0]}

# The same RoPE in version 4's keys and in version 5's.
_ROPES = {
  "default": (
    {"rope_theta": 5e5, "rope_scaling": None},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    model_config.RopeConfig(theta=5e5),
  ),
  "fraction": (
    {"rope_theta": 5e5, "partial_rotary_factor": 0.5},
    {"rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 0.5}},
    model_config.RopeConfig(theta=5e5, fraction=0.5),
  ),
  "linear": (
    {"rope_scaling": {"type": "linear", "factor": 4}},
    {"rope_parameters": {"rope_type": "linear", "factor": 4.0}},
    model_config.RopeConfig(scaling=model_config.LinearScaling(factor=4.0)),
  ),
  "llama3": (
    {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **_LLAMA3}},
    {
      "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        **_LLAMA3,
      }
    },
    model_config.RopeConfig(
      theta=5e5,
      scaling=model_config.Llama3Scaling(
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_seq_len=64,
      ),
    ),
  ),
  "yarn": (
    {
      "rope_scaling": {
        "type": "yarn",
        "factor": 8,
        "original_max_position_embeddings": 64,
        "beta_fast": None,
        "mscale": 0.7,
        "mscale_all_dim": 0.7,
        "truncate": False,
      }
    },
    {
      "rope_parameters": {
        "rope_type": "yarn",
        "type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 0.7,
        "mscale_all_dim": 0.7,
        "truncate": False,
      }
    },
    model_config.RopeConfig(
      scaling=model_config.YarnScaling(
        factor=8.0,
        original_max_seq_len=64,
        mscale=0.7,
        mscale_all_dim=0.7,
        truncate=False,
      )
    ),
  ),
  "longrope": (
    {
      "original_max_position_embeddings": 64,
      "rope_scaling": {"type": "su", **_LONG},
    },
    {
      "rope_parameters": {
        "rope_type": "longrope",
        "original_max_position_embeddings": 64,
        **_LONG,
      }
    },
    model_config.RopeConfig(
      scaling=model_config.LongRopeScaling(
        short_factor=(1.0, 1.5),
        long_factor=(2.0, 3.0),
        original_max_seq_len=64,
        factor=8.0,
      )
    ),
  ),
}


def read_rope(keys):
  reader = config_json.Reader(keys)
  rope = reader.rope(max_seq_len=512, partial=True)
  reader.finish()
  return rope


class RopeTest(parameterized.TestCase):
  @parameterized.parameters(*_ROPES)
  def test_both_styles(self, kind):
    old, new, expected = _ROPES[kind]
    self.assertEqual(read_rope(old), expected)
    self.assertEqual(read_rope(new), expected)

  @parameterized.parameters(*_ROPES)
  def test_written_and_read(self, kind):
    rope = _ROPES[kind][2]
    keys = config_json.write_rope(rope, max_seq_len=512)
    self.assertEqual(read_rope(keys), rope)

  def test_factor_that_the_lengths_do_not_tell(self):
    rope = model_config.RopeConfig(
      scaling=model_config.LongRopeScaling(
        short_factor=(1.0,),
        long_factor=(2.0,),
        original_max_seq_len=64,
        factor=3.0,
        attention_factor=1.5,
      )
    )
    keys = config_json.write_rope(rope, max_seq_len=512)
    self.assertEqual(read_rope(keys), rope)

  def test_which_of_two_goes_first(self):
    both = {
      "original_max_position_embeddings": 64,
      "rope_scaling": {
        "type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 32,
      },
      "rope_parameters": {"rope_theta": 5e5},
    }
    expected = model_config.RopeConfig(
      scaling=model_config.YarnScaling(factor=8.0, original_max_seq_len=64)
    )
    self.assertEqual(read_rope(both), expected)

  def test_whole_heads(self):
    reader = config_json.Reader({"partial_rotary_factor": 0.5})
    with self.assertRaisesRegex(ValueError, "factor=0.5 is not supported for"):
      reader.rope(max_seq_len=512)
    rope = reader.rope(max_seq_len=512, partial=True)
    self.assertEqual(rope.fraction, 0.5)
    reader = config_json.Reader({})
    rope = reader.rope(max_seq_len=512, partial=True, default_fraction=0.25)
    self.assertEqual(rope.fraction, 0.25)

  @parameterized.parameters(
    ({"type": "dynamic", "factor": 2.0}, "rope_type='dynamic' is not support"),
    ({"type": "linear"}, "rope_type='linear' needs 'factor'"),
    ({"type": "llama3", "factor": 8.0}, "'llama3' needs 'low_freq_factor'"),
    ({"type": "linear", "factor": 2.0, "knob": 3}, "understood: {'knob': 3}"),
  )
  def test_refusals(self, scaling, message):
    with self.assertRaisesRegex(ValueError, message):
      read_rope({"rope_scaling": scaling})


class ReaderTest(absltest.TestCase):
  def test_get(self):
    reader = config_json.Reader({"a": 1, "b": None, "c": 3, "model_type": "m"})
    self.assertEqual(reader.get("a"), 1)
    self.assertEqual(reader.get("b", "c"), 3)
    self.assertEqual(reader.get("d", default=4), 4)
    self.assertTrue(reader.has("b"))
    with self.assertRaisesRegex(ValueError, "no 'd' or 'e'.*'m' needs"):
      reader.get("d", "e")
    reader.finish()

  def test_all_unknown_keys_are_listed_with_their_values(self):
    keys = {
      "use_cache": True,
      "transformers_version": "5",
      "unset": None,
      "knob": 3,
      "alibi": True,
    }
    with self.assertRaisesRegex(
      ValueError, "folder/x.json: not understood: alibi=True, knob=3"
    ):
      config_json.Reader(keys, where="folder/x.json").finish()

  def test_options_of_every_class(self):
    config_json.Reader({"pruned_heads": {}, "temperature": 0.6}).finish()
    for key, value in (("is_encoder_decoder", True), ("pruned_heads", {0: 1})):
      with self.assertRaisesRegex(ValueError, f"{key}=.* is not supported"):
        config_json.Reader({key: value}).finish()

  def test_only(self):
    reader = config_json.Reader({"a": 2, "b": None})
    reader.only("a", 1, 2)
    reader.only("b", 1)
    reader.only("c", 1)
    with self.assertRaisesRegex(ValueError, "a=2 is not supported; only 1 is"):
      reader.only("a", 1)

  def test_activation(self):
    reader = config_json.Reader({"hidden_act": "gelu_new", "other": "relu"})
    self.assertEqual(reader.activation("hidden_act"), "gelu_tanh")
    with self.assertRaisesRegex(ValueError, "other='relu' is not supported"):
      reader.activation("other")
    for name in ("gelu_fast", "gelu_accurate", "gelu_python_tanh"):
      reader = config_json.Reader({"act": name})
      self.assertEqual(reader.activation("act"), "gelu_tanh")
    for name in ("silu", "gelu", "gelu_tanh"):
      written = config_json.write_activation(name)
      self.assertEqual(
        config_json.Reader({"act": written}).activation("act"), name
      )

  def test_windows(self):
    def windows(types):
      reader = config_json.Reader({"layer_types": types, "sliding_window": 8})
      return reader.windows(2, [1, 2])

    self.assertEqual(windows(None), [1, 2])
    self.assertEqual(
      windows(["sliding_attention", "full_attention"]), [8, None]
    )
    with self.assertRaisesRegex(ValueError, "1 entries for 2 layers"):
      windows(["full_attention"])
    with self.assertRaisesRegex(ValueError, r"has \['chunked_attention'\]"):
      windows(["full_attention", "chunked_attention"])


if __name__ == "__main__":
  absltest.main()
