"""Meta's Llama 2, 3, 3.1 and 3.2.

Sources: arXiv:2307.09288 (Llama 2), arXiv:2407.21783 (Llama 3), and the
published config.json of each. Parameter counts equal those of the published
checkpoints (presets_test.py).
"""

from model import config as model_config

_VOCAB_SIZE = 128_256
_ROPE_3 = model_config.RopeConfig(theta=500_000.0)


def v2_7b() -> model_config.ModelConfig:
  """Llama 2 7B."""
  return _v2(name="llama-2-7b", dim=4096, num_layers=32, mlp_dim=11_008)


def v2_13b() -> model_config.ModelConfig:
  """Llama 2 13B."""
  return _v2(name="llama-2-13b", dim=5120, num_layers=40, mlp_dim=13_824)


def v3_8b() -> model_config.ModelConfig:
  """Llama 3 8B."""
  return _8b(name="llama-3-8b", rope=_ROPE_3, max_seq_len=8192)


def v3_70b() -> model_config.ModelConfig:
  """Llama 3 70B."""
  return model_config.dense(
    name="llama-3-70b",
    vocab_size=_VOCAB_SIZE,
    dim=8192,
    num_layers=80,
    num_heads=64,
    num_kv_heads=8,
    head_dim=128,
    mlp_dim=28_672,
    tie_embeddings=False,
    rope=_ROPE_3,
    max_seq_len=8192,
  )


def v3_1_8b() -> model_config.ModelConfig:
  """Llama 3.1 8B: the 8B with a context of 131,072 tokens."""
  return _8b(name="llama-3.1-8b", rope=_rope_3_1(8.0), max_seq_len=131_072)


def v3_1_405b() -> model_config.ModelConfig:
  """Llama 3.1 405B."""
  return model_config.dense(
    name="llama-3.1-405b",
    vocab_size=_VOCAB_SIZE,
    dim=16_384,
    num_layers=126,
    num_heads=128,
    num_kv_heads=8,
    head_dim=128,
    mlp_dim=53_248,
    tie_embeddings=False,
    rope=_rope_3_1(8.0),
    max_seq_len=131_072,
  )


def v3_2_1b() -> model_config.ModelConfig:
  """Llama 3.2 1B."""
  return model_config.dense(
    name="llama-3.2-1b",
    vocab_size=_VOCAB_SIZE,
    dim=2048,
    num_layers=16,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    mlp_dim=8192,
    tie_embeddings=True,
    rope=_rope_3_1(32.0),
    max_seq_len=131_072,
  )


def v3_2_3b() -> model_config.ModelConfig:
  """Llama 3.2 3B."""
  return model_config.dense(
    name="llama-3.2-3b",
    vocab_size=_VOCAB_SIZE,
    dim=3072,
    num_layers=28,
    num_heads=24,
    num_kv_heads=8,
    head_dim=128,
    mlp_dim=8192,
    tie_embeddings=True,
    rope=_rope_3_1(32.0),
    max_seq_len=131_072,
  )


def _rope_3_1(factor: float) -> model_config.RopeConfig:
  return model_config.RopeConfig(
    theta=500_000.0, scaling=model_config.Llama3Scaling(factor=factor)
  )


def _v2(
  *, name: str, dim: int, num_layers: int, mlp_dim: int
) -> model_config.ModelConfig:
  return model_config.dense(
    name=name,
    vocab_size=32_000,
    dim=dim,
    num_layers=num_layers,
    num_heads=dim // 128,
    num_kv_heads=dim // 128,
    head_dim=128,
    mlp_dim=mlp_dim,
    tie_embeddings=False,
    max_seq_len=4096,
  )


def _8b(
  *, name: str, rope: model_config.RopeConfig, max_seq_len: int
) -> model_config.ModelConfig:
  return model_config.dense(
    name=name,
    vocab_size=_VOCAB_SIZE,
    dim=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    mlp_dim=14_336,
    tie_embeddings=False,
    rope=rope,
    max_seq_len=max_seq_len,
  )
