"""Mistral AI's mixtures of experts: 8 experts, 2 of them for each token.

Sources: arXiv:2401.04088 (8x7B) and the published config.json of each.
Parameter counts equal those of the published checkpoints (presets_test.py).
"""

from model import config as model_config


def v0_1_8x7b() -> model_config.ModelConfig:
  """Mixtral 8x7B: 46.7B parameters, 12.9B of them active."""
  return _make(
    name="mixtral-8x7b",
    vocab_size=32_000,
    dim=4096,
    num_layers=32,
    num_heads=32,
    mlp_dim=14_336,
    max_seq_len=32_768,
  )


def v0_1_8x22b() -> model_config.ModelConfig:
  """Mixtral 8x22B: 141B parameters, 39B of them active."""
  return _make(
    name="mixtral-8x22b",
    vocab_size=32_000,
    dim=6144,
    num_layers=56,
    num_heads=48,
    mlp_dim=16_384,
    max_seq_len=65_536,
  )


def _make(
  *,
  name: str,
  vocab_size: int,
  dim: int,
  num_layers: int,
  num_heads: int,
  mlp_dim: int,
  max_seq_len: int,
) -> model_config.ModelConfig:
  block = model_config.BlockConfig(
    mixer=model_config.AttentionConfig(
      num_heads=num_heads,
      num_kv_heads=8,
      head_dim=128,
      rope=model_config.RopeConfig(theta=1_000_000.0),
    ),
    feed_forward=model_config.MoeConfig(
      num_experts=8, experts_per_token=2, dim=mlp_dim
    ),
  )
  return model_config.ModelConfig(
    name=name,
    vocab_size=vocab_size,
    dim=dim,
    groups=model_config.group_layers([block] * num_layers),
    tie_embeddings=False,
    max_seq_len=max_seq_len,
  )
