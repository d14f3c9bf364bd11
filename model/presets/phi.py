"""Microsoft's Phi-3.

Sources: arXiv:2404.14219 and the published config.json. The 128k variant's
LongRoPE factors are in its checkpoint, from which an import takes them.
"""

from model import config as model_config


def v3_mini_4k() -> model_config.ModelConfig:
  """Phi-3-mini-4k: 3.8B parameters; a token sees the last 2047."""
  block = model_config.BlockConfig(
    mixer=model_config.AttentionConfig(
      num_heads=32, num_kv_heads=32, head_dim=96, window=2047
    ),
    feed_forward=model_config.MlpConfig(dim=8192),
  )
  return model_config.ModelConfig(
    name="phi-3-mini-4k",
    vocab_size=32_064,
    dim=3072,
    groups=model_config.group_layers([block] * 32),
    tie_embeddings=False,
    max_seq_len=4096,
  )
