"""Alibaba's Qwen2, Qwen2.5, Qwen3 and Qwen3-Next.

Qwen2 and 2.5 have biases on queries, keys and values; Qwen3 instead norms each
head's queries and keys; Qwen3-Next mixes gated delta nets with gated attention.

Sources: arXiv:2407.10671 (Qwen2), arXiv:2412.15115 (Qwen2.5), arXiv:2505.09388
(Qwen3), and the published config.json of each. Parameter counts are those of
the published checkpoints, with tied embeddings counted once and without
Qwen3-Next's multi-token prediction (presets_test.py).
"""

from model import config as model_config

_VOCAB_SIZE = 151_936
_LARGE_VOCAB_SIZE = 152_064
_ROPE = model_config.RopeConfig(theta=1_000_000.0)


def v2_0_5b() -> model_config.ModelConfig:
  """Qwen2 0.5B."""
  return _v2(
    name="qwen2-0.5b",
    dim=896,
    num_layers=24,
    num_heads=14,
    num_kv_heads=2,
    head_dim=64,
    mlp_dim=4864,
    tie_embeddings=True,
  )


def v2_1_5b() -> model_config.ModelConfig:
  """Qwen2 1.5B."""
  return _v2(
    name="qwen2-1.5b",
    dim=1536,
    num_layers=28,
    num_heads=12,
    num_kv_heads=2,
    mlp_dim=8960,
    tie_embeddings=True,
  )


def v2_7b() -> model_config.ModelConfig:
  """Qwen2 7B."""
  return _7b(name="qwen2-7b")


def v2_72b() -> model_config.ModelConfig:
  """Qwen2 72B."""
  return _v2(
    name="qwen2-72b",
    vocab_size=_LARGE_VOCAB_SIZE,
    dim=8192,
    num_layers=80,
    num_heads=64,
    num_kv_heads=8,
    mlp_dim=29_568,
    norm_eps=1e-5,
  )


def v2_5_7b() -> model_config.ModelConfig:
  """Qwen2.5 7B: the shape of Qwen2's."""
  return _7b(name="qwen2.5-7b")


def v2_5_14b() -> model_config.ModelConfig:
  """Qwen2.5 14B."""
  return _v2(
    name="qwen2.5-14b",
    vocab_size=_LARGE_VOCAB_SIZE,
    dim=5120,
    num_layers=48,
    num_heads=40,
    num_kv_heads=8,
    mlp_dim=13_824,
    norm_eps=1e-5,
  )


def v2_5_32b() -> model_config.ModelConfig:
  """Qwen2.5 32B."""
  return _v2(
    name="qwen2.5-32b",
    vocab_size=_LARGE_VOCAB_SIZE,
    dim=5120,
    num_layers=64,
    num_heads=40,
    num_kv_heads=8,
    mlp_dim=27_648,
    norm_eps=1e-5,
  )


def v3_0_6b() -> model_config.ModelConfig:
  """Qwen3 0.6B: heads (16 x 128) twice as wide as D."""
  return _v3(
    name="qwen3-0.6b",
    dim=1024,
    num_layers=28,
    num_heads=16,
    mlp_dim=3072,
    tie_embeddings=True,
  )


def v3_1_7b() -> model_config.ModelConfig:
  """Qwen3 1.7B."""
  return _v3(
    name="qwen3-1.7b",
    dim=2048,
    num_layers=28,
    num_heads=16,
    mlp_dim=6144,
    tie_embeddings=True,
  )


def v3_4b() -> model_config.ModelConfig:
  """Qwen3 4B."""
  return _v3(
    name="qwen3-4b",
    dim=2560,
    num_layers=36,
    num_heads=32,
    mlp_dim=9728,
    tie_embeddings=True,
  )


def v3_8b() -> model_config.ModelConfig:
  """Qwen3 8B."""
  return _v3(
    name="qwen3-8b", dim=4096, num_layers=36, num_heads=32, mlp_dim=12_288
  )


def v3_14b() -> model_config.ModelConfig:
  """Qwen3 14B."""
  return _v3(
    name="qwen3-14b", dim=5120, num_layers=40, num_heads=40, mlp_dim=17_408
  )


def v3_32b() -> model_config.ModelConfig:
  """Qwen3 32B."""
  return _v3(
    name="qwen3-32b", dim=5120, num_layers=64, num_heads=64, mlp_dim=25_600
  )


def v3_30b_a3b() -> model_config.ModelConfig:
  """Qwen3-30B-A3B: 30.5B parameters, 3.3B of them active."""
  return _v3_moe(
    name="qwen3-30b-a3b", dim=2048, num_layers=48, num_heads=32, expert_dim=768
  )


def v3_235b_a22b() -> model_config.ModelConfig:
  """Qwen3-235B-A22B: 235B parameters, 22B of them active."""
  return _v3_moe(
    name="qwen3-235b-a22b",
    dim=4096,
    num_layers=94,
    num_heads=64,
    expert_dim=1536,
  )


def v3_next_80b_a3b() -> model_config.ModelConfig:
  """Qwen3-Next-80B-A3B: three gated delta nets, then one gated attention.

  512 experts of which 10, and one shared, see each token. Only a quarter of a
  head's features rotate. The published multi-token prediction is left out.
  """
  moe = model_config.MoeConfig(
    num_experts=512,
    experts_per_token=10,
    dim=512,
    shared_dim=512,
    shared_gate=True,
  )
  delta_net = model_config.BlockConfig(
    mixer=model_config.GatedDeltaNetConfig(
      num_key_heads=16,
      num_value_heads=32,
      key_head_dim=128,
      value_head_dim=128,
      conv_size=4,
    ),
    feed_forward=moe,
  )
  attention = model_config.BlockConfig(
    mixer=model_config.AttentionConfig(
      num_heads=16,
      num_kv_heads=2,
      head_dim=256,
      rope=model_config.RopeConfig(theta=10_000_000.0, fraction=0.25),
      qk_norm="head",
      output_gate=True,
    ),
    feed_forward=moe,
  )
  return model_config.ModelConfig(
    name="qwen3-next-80b-a3b",
    vocab_size=_VOCAB_SIZE,
    dim=2048,
    groups=model_config.group_layers(
      [delta_net, delta_net, delta_net, attention] * 12, period=4
    ),
    tie_embeddings=False,
    norm="rms_offset",
    norm_eps=1e-6,
    max_seq_len=262_144,
  )


def _7b(*, name: str) -> model_config.ModelConfig:
  return _v2(
    name=name,
    vocab_size=_LARGE_VOCAB_SIZE,
    dim=3584,
    num_layers=28,
    num_heads=28,
    num_kv_heads=4,
    mlp_dim=18_944,
  )


def _v2(
  *,
  name: str,
  dim: int,
  num_layers: int,
  num_heads: int,
  num_kv_heads: int,
  mlp_dim: int,
  vocab_size: int = _VOCAB_SIZE,
  head_dim: int = 128,
  tie_embeddings: bool = False,
  norm_eps: float = 1e-6,
) -> model_config.ModelConfig:
  block = model_config.BlockConfig(
    mixer=model_config.AttentionConfig(
      num_heads=num_heads,
      num_kv_heads=num_kv_heads,
      head_dim=head_dim,
      rope=_ROPE,
      qkv_bias=True,
    ),
    feed_forward=model_config.MlpConfig(dim=mlp_dim),
  )
  return model_config.ModelConfig(
    name=name,
    vocab_size=vocab_size,
    dim=dim,
    groups=model_config.group_layers([block] * num_layers),
    tie_embeddings=tie_embeddings,
    norm_eps=norm_eps,
    max_seq_len=131_072,
  )


def _v3(
  *,
  name: str,
  dim: int,
  num_layers: int,
  num_heads: int,
  mlp_dim: int,
  tie_embeddings: bool = False,
) -> model_config.ModelConfig:
  return _v3_of(
    model_config.MlpConfig(dim=mlp_dim),
    name=name,
    dim=dim,
    num_layers=num_layers,
    num_heads=num_heads,
    num_kv_heads=8,
    tie_embeddings=tie_embeddings,
  )


def _v3_moe(
  *, name: str, dim: int, num_layers: int, num_heads: int, expert_dim: int
) -> model_config.ModelConfig:
  return _v3_of(
    model_config.MoeConfig(
      num_experts=128, experts_per_token=8, dim=expert_dim
    ),
    name=name,
    dim=dim,
    num_layers=num_layers,
    num_heads=num_heads,
    num_kv_heads=4,
    tie_embeddings=False,
  )


def _v3_of(
  feed_forward: model_config.FeedForward,
  *,
  name: str,
  dim: int,
  num_layers: int,
  num_heads: int,
  num_kv_heads: int,
  tie_embeddings: bool,
) -> model_config.ModelConfig:
  block = model_config.BlockConfig(
    mixer=model_config.AttentionConfig(
      num_heads=num_heads,
      num_kv_heads=num_kv_heads,
      head_dim=128,
      rope=_ROPE,
      qk_norm="head",
    ),
    feed_forward=feed_forward,
  )
  return model_config.ModelConfig(
    name=name,
    vocab_size=_VOCAB_SIZE,
    dim=dim,
    groups=model_config.group_layers([block] * num_layers),
    tie_embeddings=tie_embeddings,
    norm_eps=1e-6,
    max_seq_len=40_960,
  )
