"""Hugging Face's SmolLM2 (Llama architecture, tied embeddings).

Sources: arXiv:2502.02737 and the published config.json of each. Parameter
counts equal those of the published checkpoints (presets_test.py).
"""

from model import config as model_config


def v2_135m() -> model_config.ModelConfig:
  """SmolLM2 135M."""
  return _make(
    name="smollm2-135m",
    dim=576,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    mlp_dim=1536,
    theta=100_000.0,
  )


def v2_360m() -> model_config.ModelConfig:
  """SmolLM2 360M."""
  return _make(
    name="smollm2-360m",
    dim=960,
    num_layers=32,
    num_heads=15,
    num_kv_heads=5,
    mlp_dim=2560,
    theta=100_000.0,
  )


def v2_1_7b() -> model_config.ModelConfig:
  """SmolLM2 1.7B."""
  return _make(
    name="smollm2-1.7b",
    dim=2048,
    num_layers=24,
    num_heads=32,
    num_kv_heads=32,
    mlp_dim=8192,
    theta=130_000.0,
  )


def _make(
  *,
  name: str,
  dim: int,
  num_layers: int,
  num_heads: int,
  num_kv_heads: int,
  mlp_dim: int,
  theta: float,
) -> model_config.ModelConfig:
  return model_config.dense(
    name=name,
    vocab_size=49_152,
    dim=dim,
    num_layers=num_layers,
    num_heads=num_heads,
    num_kv_heads=num_kv_heads,
    head_dim=64,
    mlp_dim=mlp_dim,
    tie_embeddings=True,
    rope=model_config.RopeConfig(theta=theta),
    max_seq_len=8192,
  )
