"""Ai2's OLMo 2: norms after each sublayer, and of queries and keys.

Sources: arXiv:2501.00656 and the published config.json of each. Parameter
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
