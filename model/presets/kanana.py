"""Kakao's Kanana models: dense, upcycled to experts, and Kanana-2.

Sources: the Kanana technical report (arXiv:2502.18934) for the dense family,
whose 9.8B is the 8B depth-upscaled from 32 to 40 layers, and the published
config.json of Kanana-1.5-2.1B and -8B for the shapes. Kakao gives Kanana-MoE
13.4B parameters with 2.3B active, upcycled from the 2.1B to 64 experts of which
8 see a token; and Kanana-2 30B with 3B active, latent attention, and 128
experts of which 6 and 2 shared see a token.

The shapes reproduce the published sizes (presets_test.py). What a size cannot
tell is derived or assumed, as each function says, and not checked against a
checkpoint; tools that import one take it from the checkpoint's own config.
"""

import dataclasses

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


def moe_13b() -> model_config.ModelConfig:
  """Kanana-MoE: the 2.1B with its MLPs made into 64 experts, 8 per token.

  Derived: experts of width 1152 = 8064 / 7 in all 32 layers are what gives
  13.4B parameters with 2.3B active. The router is assumed to be Mixtral's.
  """
  dense = v1_5_2b()
  (block,) = dense.groups[0].pattern
  sparse = dataclasses.replace(
    block,
    feed_forward=model_config.MoeConfig(
      num_experts=64, experts_per_token=8, dim=1152
    ),
  )
  return dataclasses.replace(
    dense,
    name="kanana-moe-13.4b-a2.3b",
    groups=model_config.group_layers([sparse] * dense.num_layers),
  )


def v2_30b_a3b() -> model_config.ModelConfig:
  """Kanana-2-30B-A3B: latent attention without a latent of the queries.

  Derived from its size: D 2048, 48 layers, experts of width 768. Assumed, as
  size says nothing or little of it: 32 heads of DeepSeek-V3's widths, a dense
  first layer of 8 experts' width, V3's sigmoid router without groups and its
  weights' scale, vocabulary, context and RoPE's theta.
  """
  mixer = model_config.MlaConfig(
    num_heads=32,
    kv_rank=512,
    nope_head_dim=128,
    rope_head_dim=64,
    value_head_dim=128,
    rope=model_config.RopeConfig(theta=1_000_000.0, pairing="interleaved"),
  )
  dense = model_config.BlockConfig(
    mixer=mixer, feed_forward=model_config.MlpConfig(dim=6144)
  )
  sparse = model_config.BlockConfig(
    mixer=mixer,
    feed_forward=model_config.MoeConfig(
      num_experts=128,
      experts_per_token=6,
      dim=768,
      shared_dim=2 * 768,
      router=model_config.RouterConfig(
        score="sigmoid", scale=2.5, selection_bias=True
      ),
    ),
  )
  return model_config.ModelConfig(
    name="kanana-2-30b-a3b",
    vocab_size=128_256,
    dim=2048,
    groups=model_config.group_layers([dense] + [sparse] * 47),
    tie_embeddings=False,
    max_seq_len=_MAX_SEQ_LEN,
  )


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
