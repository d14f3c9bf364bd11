"""Google's Gemma 2 and the text models of Gemma 3.

Norms before and after each sublayer, most layers with a window, embeddings
scaled by sqrt(D), a gated MLP with GELU. Gemma 2 bounds scores and logits with
tanh; Gemma 3 norms queries and keys instead, and its windowed layers rotate
with a base of their own.

Sources: arXiv:2408.00118 (Gemma 2), arXiv:2503.19786 (Gemma 3), and the
published config.json of each. Parameter counts equal those of the published
checkpoints, the vision tower of Gemma 3 left out (presets_test.py).
"""

import math

from model import config as model_config


def v2_2b() -> model_config.ModelConfig:
  """Gemma 2 2B."""
  return _v2(
    name="gemma-2-2b",
    dim=2304,
    num_layers=26,
    num_heads=8,
    num_kv_heads=4,
    head_dim=256,
    mlp_dim=9216,
    query_scalar=256,
  )


def v2_9b() -> model_config.ModelConfig:
  """Gemma 2 9B."""
  return _v2(
    name="gemma-2-9b",
    dim=3584,
    num_layers=42,
    num_heads=16,
    num_kv_heads=8,
    head_dim=256,
    mlp_dim=14_336,
    query_scalar=256,
  )


def v2_27b() -> model_config.ModelConfig:
  """Gemma 2 27B: scores are scaled by (D / N) ** -0.5."""
  return _v2(
    name="gemma-2-27b",
    dim=4608,
    num_layers=46,
    num_heads=32,
    num_kv_heads=16,
    head_dim=128,
    mlp_dim=36_864,
    query_scalar=144,
  )


def v3_270m() -> model_config.ModelConfig:
  """Gemma 3 270M: 168M of them are the embedding."""
  return _v3(
    name="gemma-3-270m",
    dim=640,
    num_layers=18,
    num_heads=4,
    num_kv_heads=1,
    head_dim=256,
    mlp_dim=2048,
    query_scalar=256,
    window=512,
  )


def v3_1b() -> model_config.ModelConfig:
  """Gemma 3 1B."""
  return _v3(
    name="gemma-3-1b",
    dim=1152,
    num_layers=26,
    num_heads=4,
    num_kv_heads=1,
    head_dim=256,
    mlp_dim=6912,
    query_scalar=256,
    window=512,
  )


def v3_4b() -> model_config.ModelConfig:
  """Gemma 3 4B, the text model."""
  return _v3_large(
    name="gemma-3-4b",
    dim=2560,
    num_layers=34,
    num_heads=8,
    num_kv_heads=4,
    head_dim=256,
    mlp_dim=10_240,
    query_scalar=256,
  )


def v3_12b() -> model_config.ModelConfig:
  """Gemma 3 12B, the text model."""
  return _v3_large(
    name="gemma-3-12b",
    dim=3840,
    num_layers=48,
    num_heads=16,
    num_kv_heads=8,
    head_dim=256,
    mlp_dim=15_360,
    query_scalar=256,
  )


def v3_27b() -> model_config.ModelConfig:
  """Gemma 3 27B, the text model: scores are scaled by (D / N) ** -0.5."""
  return _v3_large(
    name="gemma-3-27b",
    dim=5376,
    num_layers=62,
    num_heads=32,
    num_kv_heads=16,
    head_dim=128,
    mlp_dim=21_504,
    query_scalar=168,
  )


def _v2(
  *,
  name: str,
  dim: int,
  num_layers: int,
  num_heads: int,
  num_kv_heads: int,
  head_dim: int,
  mlp_dim: int,
  query_scalar: float,
) -> model_config.ModelConfig:
  def block(window: int | None) -> model_config.BlockConfig:
    return model_config.BlockConfig(
      mixer=model_config.AttentionConfig(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        window=window,
        softcap=50.0,
        scale=query_scalar**-0.5,
      ),
      feed_forward=model_config.MlpConfig(dim=mlp_dim, activation="gelu_tanh"),
      norms="sandwich",
    )

  return model_config.ModelConfig(
    name=name,
    vocab_size=256_000,
    dim=dim,
    groups=model_config.group_layers(
      [block(4096), block(None)] * (num_layers // 2), period=2
    ),
    tie_embeddings=True,
    norm="rms_offset",
    norm_eps=1e-6,
    max_seq_len=8192,
    embed_scale=math.sqrt(dim),
    logit_softcap=30.0,
  )


def _v3(
  *,
  name: str,
  dim: int,
  num_layers: int,
  num_heads: int,
  num_kv_heads: int,
  head_dim: int,
  mlp_dim: int,
  query_scalar: float,
  window: int,
  vocab_size: int = 262_144,
  max_seq_len: int = 32_768,
  scaling: model_config.RopeScaling | None = None,
) -> model_config.ModelConfig:
  """Five layers with a window, then one without; any left over have one."""

  def block(index: int) -> model_config.BlockConfig:
    is_global = index % 6 == 5
    return model_config.BlockConfig(
      mixer=model_config.AttentionConfig(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rope=model_config.RopeConfig(theta=1_000_000.0, scaling=scaling)
        if is_global
        else model_config.RopeConfig(theta=10_000.0),
        qk_norm="head",
        window=None if is_global else window,
        scale=query_scalar**-0.5,
      ),
      feed_forward=model_config.MlpConfig(dim=mlp_dim, activation="gelu_tanh"),
      norms="sandwich",
    )

  return model_config.ModelConfig(
    name=name,
    vocab_size=vocab_size,
    dim=dim,
    groups=model_config.group_layers(
      [block(index) for index in range(num_layers)], period=6
    ),
    tie_embeddings=True,
    norm="rms_offset",
    norm_eps=1e-6,
    max_seq_len=max_seq_len,
    embed_scale=math.sqrt(dim),
  )


def _v3_large(
  *,
  name: str,
  dim: int,
  num_layers: int,
  num_heads: int,
  num_kv_heads: int,
  head_dim: int,
  mlp_dim: int,
  query_scalar: float,
) -> model_config.ModelConfig:
  return _v3(
    name=name,
    dim=dim,
    num_layers=num_layers,
    num_heads=num_heads,
    num_kv_heads=num_kv_heads,
    head_dim=head_dim,
    mlp_dim=mlp_dim,
    query_scalar=query_scalar,
    window=1024,
    vocab_size=262_208,
    max_seq_len=131_072,
    scaling=model_config.LinearScaling(factor=8.0),
  )
