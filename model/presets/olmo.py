"""Ai2's OLMo 2 and OLMoE: queries and keys normed over whole projections.

OLMo 2 has its norms after each sublayer, OLMoE before it. Sources:
arXiv:2501.00656, 2409.02060 and the published config.json of each. Parameter
counts equal those of the published checkpoints (presets_test.py).
"""

from model import config as model_config


def v2_1b() -> model_config.ModelConfig:
  """OLMo 2 1B."""
  return _make(
    name="olmo-2-1b", dim=2048, num_layers=16, num_kv_heads=16, mlp_dim=8192
  )


def v2_7b() -> model_config.ModelConfig:
  """OLMo 2 7B."""
  return _make(
    name="olmo-2-7b", dim=4096, num_layers=32, num_kv_heads=32, mlp_dim=11_008
  )


def v2_13b() -> model_config.ModelConfig:
  """OLMo 2 13B."""
  return _make(
    name="olmo-2-13b", dim=5120, num_layers=40, num_kv_heads=40, mlp_dim=13_824
  )


def v2_32b() -> model_config.ModelConfig:
  """OLMo 2 32B: the only one with grouped queries."""
  return _make(
    name="olmo-2-32b", dim=5120, num_layers=64, num_kv_heads=8, mlp_dim=27_648
  )


def olmoe_1b_7b() -> model_config.ModelConfig:
  """OLMoE-1B-7B: 64 experts, 8 per token."""
  block = model_config.BlockConfig(
    mixer=model_config.AttentionConfig(
      num_heads=16, num_kv_heads=16, head_dim=128, qk_norm="projection"
    ),
    feed_forward=model_config.MoeConfig(
      num_experts=64,
      experts_per_token=8,
      dim=1024,
      router=model_config.RouterConfig(normalize=False),
    ),
  )
  return model_config.ModelConfig(
    name="olmoe-1b-7b",
    vocab_size=50_304,
    dim=2048,
    groups=model_config.group_layers([block] * 16),
    tie_embeddings=False,
    max_seq_len=4096,
  )


def _make(
  *, name: str, dim: int, num_layers: int, num_kv_heads: int, mlp_dim: int
) -> model_config.ModelConfig:
  block = model_config.BlockConfig(
    mixer=model_config.AttentionConfig(
      num_heads=dim // 128,
      num_kv_heads=num_kv_heads,
      head_dim=128,
      rope=model_config.RopeConfig(theta=500_000.0),
      qk_norm="projection",
    ),
    feed_forward=model_config.MlpConfig(dim=mlp_dim),
    norms="post",
  )
  return model_config.ModelConfig(
    name=name,
    vocab_size=100_352,
    dim=dim,
    groups=model_config.group_layers([block] * num_layers),
    tie_embeddings=False,
    norm_eps=1e-6,
    max_seq_len=4096,
  )
