"""Mistral AI's dense models.

Sources: arXiv:2310.06825 (7B) and the published config.json of each. Parameter
counts equal those of the published checkpoints (presets_test.py).
"""

from model import config as model_config


def v0_1_7b() -> model_config.ModelConfig:
  """Mistral 7B v0.1: every layer sees the last 4096 tokens."""
  return _7b(
    name="mistral-7b-v0.1", vocab_size=32_000, theta=10_000.0, window=4096
  )


def v0_3_7b() -> model_config.ModelConfig:
  """Mistral 7B v0.3: no window, and a larger vocabulary."""
  return _7b(
    name="mistral-7b-v0.3", vocab_size=32_768, theta=1_000_000.0, window=None
  )


def nemo_12b() -> model_config.ModelConfig:
  """Mistral Nemo: heads narrower (32 x 128) than D (5120)."""
  return model_config.dense(
    name="mistral-nemo-12b",
    vocab_size=131_072,
    dim=5120,
    num_layers=40,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    mlp_dim=14_336,
    tie_embeddings=False,
    rope=model_config.RopeConfig(theta=1_000_000.0),
    max_seq_len=131_072,
  )


def _7b(
  *, name: str, vocab_size: int, theta: float, window: int | None
) -> model_config.ModelConfig:
  block = model_config.BlockConfig(
    mixer=model_config.AttentionConfig(
      num_heads=32,
      num_kv_heads=8,
      head_dim=128,
      rope=model_config.RopeConfig(theta=theta),
      window=window,
    ),
    feed_forward=model_config.MlpConfig(dim=14_336),
  )
  return model_config.ModelConfig(
    name=name,
    vocab_size=vocab_size,
    dim=4096,
    groups=model_config.group_layers([block] * 32),
    tie_embeddings=False,
    max_seq_len=32_768,
  )
