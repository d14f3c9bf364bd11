"""Kakao's dense Kanana models (Llama architecture).

Sources: the Kanana technical report (arXiv:2502.18934) for the family, whose
9.8B is the 8B depth-upscaled from 32 to 40 layers, and the published
config.json of Kanana-1.5-2.1B and -8B for the shapes. The shapes reproduce the
published sizes (presets_test.py); RoPE's theta cannot be checked that way:
`//tools` that import a checkpoint take it from the checkpoint's own config.
"""

from model import config as model_config

_VOCAB_SIZE = 128_259
_ROPE = model_config.RopeConfig(theta=8_000_000.0)
_MAX_SEQ_LEN = 32_768


def v1_5_2b() -> model_config.ModelConfig:
  """Kanana-1.5-2.1B: tied embeddings, heads wider (3072) than D (1792)."""
  return model_config.dense(
    name="kanana-1.5-2.1b",
    vocab_size=_VOCAB_SIZE,
    dim=1792,
    num_layers=32,
    num_heads=24,
    num_kv_heads=8,
    head_dim=128,
    mlp_dim=8064,
    tie_embeddings=True,
    rope=_ROPE,
    max_seq_len=_MAX_SEQ_LEN,
  )


def v1_5_8b() -> model_config.ModelConfig:
  """Kanana-1.5-8B."""
  return _large(name="kanana-1.5-8b", num_layers=32)


def v1_5_9_8b() -> model_config.ModelConfig:
  """Kanana-1.5-9.8B: the 8B with 8 more layers."""
  return _large(name="kanana-1.5-9.8b", num_layers=40)


def _large(*, name: str, num_layers: int) -> model_config.ModelConfig:
  return model_config.dense(
    name=name,
    vocab_size=_VOCAB_SIZE,
    dim=4096,
    num_layers=num_layers,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    mlp_dim=14_336,
    tie_embeddings=False,
    rope=_ROPE,
    max_seq_len=_MAX_SEQ_LEN,
  )
