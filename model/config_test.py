from typing import Any

from absl.testing import absltest
from absl.testing import parameterized

from model import config

_ATTENTION = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
_BLOCK = config.BlockConfig(
  mixer=config.AttentionConfig(**_ATTENTION),
  feed_forward=config.MlpConfig(dim=16),
)
_GROUP = {"pattern": (_BLOCK,), "repeats": 2}
_MODEL: dict[str, Any] = {
  "name": "test",
  "vocab_size": 11,
  "dim": 8,
  "groups": (config.LayerGroup(**_GROUP),),
  "tie_embeddings": False,
}


class ConfigTest(parameterized.TestCase):
  @parameterized.parameters(
    (
      config.Llama3Scaling,
      {"factor": 0.0},
      r"Llama3Scaling.factor=0.0 must be positive",
    ),
    (
      config.Llama3Scaling,
      {"factor": 8.0, "low_freq_factor": -1.0},
      r"Llama3Scaling.low_freq_factor=-1.0 must be positive",
    ),
    (
      config.Llama3Scaling,
      {"factor": 8.0, "original_max_seq_len": 0},
      r"Llama3Scaling.original_max_seq_len=0 must be positive",
    ),
    (
      config.Llama3Scaling,
      {"factor": 8.0, "low_freq_factor": 4.0},
      r"Llama3Scaling.high_freq_factor=4.0 must be above low_freq_factor=4.0",
    ),
    (config.RopeConfig, {"theta": 0.0}, r"RopeConfig.theta=0.0 must be pos"),
    (
      config.RopeConfig,
      {"theta": float("nan")},
      r"RopeConfig.theta=nan must be positive",
    ),
    (
      config.AttentionConfig,
      _ATTENTION | {"num_heads": 0},
      r"AttentionConfig.num_heads=0 must be positive",
    ),
    (
      config.AttentionConfig,
      _ATTENTION | {"num_kv_heads": 0},
      r"AttentionConfig.num_kv_heads=0 must be positive",
    ),
    (
      config.AttentionConfig,
      _ATTENTION | {"head_dim": 0},
      r"AttentionConfig.head_dim=0 must be positive",
    ),
    (
      config.AttentionConfig,
      _ATTENTION | {"num_kv_heads": 3},
      r"AttentionConfig.num_heads=4 must be a multiple of num_kv_heads=3",
    ),
    (
      config.AttentionConfig,
      _ATTENTION | {"head_dim": 7},
      r"AttentionConfig.head_dim=7 must be even",
    ),
    (config.MlpConfig, {"dim": -1}, r"MlpConfig.dim=-1 must be positive"),
    (
      config.LayerGroup,
      _GROUP | {"repeats": 0},
      r"LayerGroup.repeats=0 must be positive",
    ),
    (
      config.LayerGroup,
      _GROUP | {"pattern": ()},
      r"LayerGroup.pattern must name a block",
    ),
    (
      config.ModelConfig,
      _MODEL | {"vocab_size": 0},
      r"ModelConfig.vocab_size=0 must be positive",
    ),
    (config.ModelConfig, _MODEL | {"dim": 0}, r"ModelConfig.dim=0 must be"),
    (
      config.ModelConfig,
      _MODEL | {"norm_eps": 0.0},
      r"ModelConfig.norm_eps=0.0 must be positive",
    ),
    (
      config.ModelConfig,
      _MODEL | {"max_seq_len": 0},
      r"ModelConfig.max_seq_len=0 must be positive",
    ),
    (
      config.ModelConfig,
      _MODEL | {"init_std": 0.0},
      r"ModelConfig.init_std=0.0 must be positive",
    ),
    (
      config.ModelConfig,
      _MODEL | {"groups": ()},
      r"ModelConfig.groups must name a layer group",
    ),
  )
  def test_refuses(self, cls, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      cls(**fields)

  def test_counts_layers(self):
    group = config.LayerGroup(pattern=(_BLOCK, _BLOCK), repeats=3)
    model = config.ModelConfig(**_MODEL | {"groups": (group, group)})
    self.assertEqual(group.num_layers, 6)
    self.assertEqual(model.num_layers, 12)

  def test_dense(self):
    rope = config.RopeConfig(theta=5e5)
    model = config.dense(
      name="test",
      vocab_size=11,
      dim=8,
      num_layers=2,
      num_heads=4,
      num_kv_heads=2,
      head_dim=8,
      mlp_dim=16,
      tie_embeddings=False,
      rope=rope,
      norm_eps=1e-6,
      max_seq_len=64,
    )
    block = config.BlockConfig(
      mixer=config.AttentionConfig(**_ATTENTION, rope=rope),
      feed_forward=config.MlpConfig(dim=16),
    )
    self.assertEqual(
      model,
      config.ModelConfig(
        name="test",
        vocab_size=11,
        dim=8,
        groups=(config.LayerGroup(pattern=(block,), repeats=2),),
        tie_embeddings=False,
        norm_eps=1e-6,
        max_seq_len=64,
      ),
    )

  def test_is_hashable(self):
    self.assertLen({config.ModelConfig(**_MODEL) for _ in range(2)}, 1)


if __name__ == "__main__":
  absltest.main()
