import dataclasses
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


_MLA: dict[str, Any] = {
  "num_heads": 4,
  "kv_rank": 16,
  "nope_head_dim": 8,
  "rope_head_dim": 4,
  "value_head_dim": 8,
}
_DELTA_NET: dict[str, Any] = {
  "num_key_heads": 2,
  "num_value_heads": 4,
  "key_head_dim": 8,
  "value_head_dim": 8,
}
_MOE: dict[str, Any] = {"num_experts": 8, "experts_per_token": 2, "dim": 16}
_YARN: dict[str, Any] = {"factor": 4.0, "original_max_seq_len": 64}
_LONG: dict[str, Any] = {
  "short_factor": (1.0, 1.0),
  "long_factor": (1.0, 2.0),
  "original_max_seq_len": 64,
  "factor": 4.0,
}


def _block(dim, window=None):
  """A block that differs from others by its numbers."""
  return config.BlockConfig(
    mixer=config.AttentionConfig(**_ATTENTION, window=window),
    feed_forward=config.MlpConfig(dim=dim),
  )


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
      r"of head_dim=7 is 7 features; the number must be even",
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
    (config.LinearScaling, {"factor": 0.0}, r"LinearScaling.factor=0.0 must"),
    (
      config.YarnScaling,
      _YARN | {"factor": -1.0},
      r"YarnScaling.factor=-1.0 must be positive",
    ),
    (
      config.YarnScaling,
      _YARN | {"beta_slow": 0.0},
      r"YarnScaling.beta_slow=0.0 must be positive",
    ),
    (
      config.LongRopeScaling,
      _LONG | {"original_max_seq_len": 0},
      r"LongRopeScaling.original_max_seq_len=0 must be positive",
    ),
    (
      config.LongRopeScaling,
      _LONG | {"long_factor": (1.0,)},
      r"LongRopeScaling.short_factor has 2 numbers, long_factor 1; both need",
    ),
    (config.RopeConfig, {"fraction": 0.0}, r"RopeConfig.fraction=0.0 must be"),
    (config.RopeConfig, {"fraction": 1.5}, r"fraction=1.5 must be at most 1"),
    (
      config.AttentionConfig,
      _ATTENTION | {"rope": config.RopeConfig(fraction=0.4)},
      r"RopeConfig.fraction=0.4 of head_dim=8 is 3 features; the number must",
    ),
    (
      config.AttentionConfig,
      _ATTENTION | {"rope": config.RopeConfig(fraction=0.1)},
      r"is 0 features; the number must be even and above 0",
    ),
    (
      config.AttentionConfig,
      _ATTENTION
      | {"rope": config.RopeConfig(scaling=config.LongRopeScaling(**_LONG))},
      r"short_factor has 2 numbers, but 4 pairs of features rotate",
    ),
    (
      config.AttentionConfig,
      _ATTENTION | {"window": 0},
      r"AttentionConfig.window=0 must be positive",
    ),
    (
      config.AttentionConfig,
      _ATTENTION | {"softcap": 0.0},
      r"AttentionConfig.softcap=0.0 must be positive",
    ),
    (
      config.AttentionConfig,
      _ATTENTION | {"scale": -0.1},
      r"AttentionConfig.scale=-0.1 must be positive",
    ),
    *[
      (config.MlaConfig, _MLA | {name: 0}, rf"MlaConfig.{name}=0 must be pos")
      for name in (*_MLA, "q_rank", "latent_norm_eps")
    ],
    (
      config.MlaConfig,
      _MLA | {"rope_head_dim": 5},
      r"of head_dim=5 is 5 features; the number must be even",
    ),
    *[
      (
        config.GatedDeltaNetConfig,
        _DELTA_NET | {name: 0},
        rf"GatedDeltaNetConfig.{name}=0 must be positive",
      )
      for name in (*_DELTA_NET, "conv_size")
    ],
    (
      config.GatedDeltaNetConfig,
      _DELTA_NET | {"num_value_heads": 3},
      r"num_value_heads=3 must be a multiple of num_key_heads=2",
    ),
    *[
      (config.RouterConfig, {name: 0}, rf"RouterConfig.{name}=0 must be posit")
      for name in ("scale", "num_groups", "groups_per_token")
    ],
    (
      config.RouterConfig,
      {"num_groups": 2, "groups_per_token": 3},
      r"RouterConfig.groups_per_token=3 exceeds num_groups=2",
    ),
    *[
      (config.MoeConfig, _MOE | {name: 0}, rf"MoeConfig.{name}=0 must be posi")
      for name in (*_MOE, "capacity_factor")
    ],
    (
      config.MoeConfig,
      _MOE | {"shared_dim": -1},
      r"MoeConfig.shared_dim=-1 must be 0 or more",
    ),
    (
      config.MoeConfig,
      _MOE | {"shared_gate": True},
      r"MoeConfig.shared_gate=True needs a shared expert: set shared_dim",
    ),
    (
      config.MoeConfig,
      _MOE | {"router": config.RouterConfig(num_groups=3)},
      r"num_experts=8 must be a multiple of router.num_groups=3",
    ),
    (
      config.MoeConfig,
      _MOE
      | {"experts_per_token": 3, "router": config.RouterConfig(num_groups=4)},
      r"experts_per_token=3 exceeds the 2 experts that a token can choose",
    ),
    (
      config.MtpConfig,
      {"block": _BLOCK, "num_modules": 0},
      r"MtpConfig.num_modules=0 must be positive",
    ),
    (
      config.ModelConfig,
      _MODEL | {"embed_scale": 0.0},
      r"ModelConfig.embed_scale=0.0 must be positive",
    ),
    (
      config.ModelConfig,
      _MODEL | {"logit_softcap": 0.0},
      r"ModelConfig.logit_softcap=0.0 must be positive",
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

  def test_layers_are_listed_in_order(self):
    a, b, c = _block(1), _block(2), _block(3)
    model = config.ModelConfig(
      **_MODEL
      | {
        "groups": (
          config.LayerGroup(pattern=(a, b), repeats=2),
          config.LayerGroup(pattern=(c,), repeats=1),
        )
      }
    )
    self.assertEqual(model.layers, (a, b, a, b, c))

  @parameterized.named_parameters(
    ("equal", "aaaa", 1, [("a", 4)]),
    ("equal_with_a_long_period", "aaaa", 3, [("a", 4)]),
    ("alternation", "ababab", 2, [("ab", 3)]),
    ("alternation_cut_short", "ababa", 2, [("ab", 2), ("a", 1)]),
    ("alternation_read_singly", "abab", 1, [(x, 1) for x in "abab"]),
    ("five_to_one", "aaaaab" * 3, 6, [("aaaaab", 3)]),
    (
      "five_to_one_and_a_rest",
      "aaaaab" * 4 + "aa",
      6,
      [("aaaaab", 4), ("a", 2)],
    ),
    ("five_to_one_once", "aaaaab", 6, [("a", 5), ("b", 1)]),
    ("dense_prefix", "abbbb", 1, [("a", 1), ("b", 4)]),
    ("prefix_before_a_pattern", "caabaab", 3, [("c", 1), ("aab", 2)]),
    ("no_layers", "", 2, []),
  )
  def test_group_layers(self, layers, period, wanted):
    blocks = {name: _block(ord(name)) for name in "abc"}
    groups = config.group_layers([blocks[x] for x in layers], period=period)
    self.assertEqual(
      groups,
      tuple(
        config.LayerGroup(
          pattern=tuple(blocks[x] for x in pattern), repeats=repeats
        )
        for pattern, repeats in wanted
      ),
    )
    listed = [b for g in groups for b in g.pattern * g.repeats]
    self.assertEqual(listed, [blocks[x] for x in layers])

  def test_rotated_features(self):
    for fraction, rotated in ((1.0, 128), (0.25, 32), (0.5, 64)):
      rope = config.RopeConfig(fraction=fraction)
      self.assertEqual(rope.num_rotated(128), rotated)

  def test_scales_of_yarn(self):
    # 0.1 ln 40 + 1 = 1.36889 (DeepSeek's get_mscale).
    plain = config.YarnScaling(factor=40.0, original_max_seq_len=4096)
    self.assertAlmostEqual(plain.rotation_scale, 1.3688879)
    self.assertEqual(plain.latent_softmax_scale, 1.0)
    lite = dataclasses.replace(plain, mscale=0.707, mscale_all_dim=0.707)
    self.assertEqual(lite.rotation_scale, 1.0)
    self.assertAlmostEqual(lite.latent_softmax_scale, 1.58962617)
    uneven = dataclasses.replace(plain, mscale=1.0, mscale_all_dim=0.5)
    self.assertAlmostEqual(uneven.rotation_scale, 1.15572199)
    given = dataclasses.replace(plain, attention_factor=1.5)
    self.assertEqual(given.rotation_scale, 1.5)
    none = config.YarnScaling(factor=1.0, original_max_seq_len=4096)
    self.assertEqual(none.rotation_scale, 1.0)

  def test_scale_of_longrope(self):
    # Phi-3's 128k: sqrt(1 + ln 32 / ln 4096) = 1.19023807.
    long: dict[str, Any] = {"original_max_seq_len": 4096, "factor": 32.0}
    scaling = config.LongRopeScaling(**_LONG | long)
    self.assertAlmostEqual(scaling.rotation_scale, 1.19023807)
    self.assertEqual(
      dataclasses.replace(scaling, attention_factor=1.1).rotation_scale, 1.1
    )
    self.assertEqual(dataclasses.replace(scaling, factor=1.0).rotation_scale, 1)

  def test_scale_of_latent_attention(self):
    self.assertAlmostEqual(config.MlaConfig(**_MLA).scale, 12**-0.5)
    yarn = config.YarnScaling(
      factor=40.0, original_max_seq_len=4096, mscale=1.0, mscale_all_dim=1.0
    )
    mla = config.MlaConfig(**_MLA, rope=config.RopeConfig(scaling=yarn))
    self.assertAlmostEqual(mla.scale, 12**-0.5 * 1.3688879**2)

  def test_is_hashable(self):
    self.assertLen({config.ModelConfig(**_MODEL) for _ in range(2)}, 1)


if __name__ == "__main__":
  absltest.main()
