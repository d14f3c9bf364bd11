"""Small dense models of our own, for laptops, tests and quick experiments.

Named by their parameter count at the vocabulary given. Shapes follow Llama's
habits: head dim 64 (32 in the smallest), a third as many key/value heads as
query heads or half, gated MLP of about 8/3 D, tied embeddings. Weights begin
at about 1 / sqrt(D): with the 0.02 of large models these barely learn in their
first 100 steps (train/README.md).
"""

from model import config as model_config


def m1(*, vocab_size: int = 2048) -> model_config.ModelConfig:
  """About 1M parameters: 4 layers of width 128."""
  return model_config.dense(
    name="small-1m",
    vocab_size=vocab_size,
    dim=128,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    mlp_dim=352,
    tie_embeddings=True,
    max_seq_len=2048,
    init_std=0.08,
  )


def m10(*, vocab_size: int = 8192) -> model_config.ModelConfig:
  """About 10M parameters: 7 layers of width 320."""
  return model_config.dense(
    name="small-10m",
    vocab_size=vocab_size,
    dim=320,
    num_layers=7,
    num_heads=5,
    num_kv_heads=5,
    head_dim=64,
    mlp_dim=864,
    tie_embeddings=True,
    max_seq_len=2048,
    init_std=0.05,
  )


def m100(*, vocab_size: int = 32_768) -> model_config.ModelConfig:
  """About 100M parameters: 12 layers of width 768."""
  return model_config.dense(
    name="small-100m",
    vocab_size=vocab_size,
    dim=768,
    num_layers=12,
    num_heads=12,
    num_kv_heads=4,
    head_dim=64,
    mlp_dim=2048,
    tie_embeddings=True,
    max_seq_len=4096,
    init_std=0.03,
  )
