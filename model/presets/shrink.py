"""A model's structure at a size for tests: few layers, each kind of them.

What is computed stays: kinds of blocks and their order, options, norms, scaling
of RoPE. What is only a size becomes small, and divides by 2 on every axis.
"""

import dataclasses
import itertools
import math
from typing import Any

from model import config as model_config

_DIM = 32
_HEADS = 4
_HEAD_DIM = 8
_EXPERTS = 8
_ORIGINAL_CONTEXT = 16


def shrink(config: model_config.ModelConfig) -> model_config.ModelConfig:
  """`config` with at most two repeats of each group, and D 32.

  Runs of equal blocks inside a pattern become one block. Initial weights are
  about 1 / sqrt(D), so that it learns in a few steps.
  """
  groups = tuple(
    model_config.LayerGroup(
      pattern=tuple(_block(b) for b, _ in itertools.groupby(group.pattern)),
      repeats=min(group.repeats, 2),
    )
    for group in config.groups
  )
  changed: dict[str, Any] = {
    "name": f"{config.name}-shrunk",
    "vocab_size": 64,
    "dim": _DIM,
    "groups": groups,
    "max_seq_len": 64,
    "init_std": 0.15,
  }
  if config.embed_scale != 1.0:
    changed["embed_scale"] = math.sqrt(_DIM)
  if config.mtp is not None:
    changed["mtp"] = dataclasses.replace(
      config.mtp, block=_block(config.mtp.block)
    )
  return dataclasses.replace(config, **changed)


def _block(block: model_config.BlockConfig) -> model_config.BlockConfig:
  return dataclasses.replace(
    block,
    mixer=_mixer(block.mixer),
    feed_forward=_feed_forward(block.feed_forward),
  )


def _mixer(mixer: model_config.Mixer) -> model_config.Mixer:
  match mixer:
    case model_config.AttentionConfig():
      # As many key/value heads as queries have, half of them, or one.
      shared = min(mixer.num_heads // mixer.num_kv_heads, 2)
      kv_heads = 1 if mixer.num_kv_heads == 1 else _HEADS // shared
      return dataclasses.replace(
        mixer,
        num_heads=_HEADS,
        num_kv_heads=kv_heads,
        head_dim=_HEAD_DIM,
        rope=None if mixer.rope is None else _rope(mixer.rope, _HEAD_DIM),
        window=None if mixer.window is None else 5,
        scale=None if mixer.scale is None else 0.3,
      )
    case model_config.MlaConfig():
      return dataclasses.replace(
        mixer,
        num_heads=_HEADS,
        kv_rank=16,
        q_rank=None if mixer.q_rank is None else 16,
        nope_head_dim=8,
        rope_head_dim=4,
        value_head_dim=6,
        rope=_rope(mixer.rope, 4),
      )
    case model_config.GatedDeltaNetConfig():
      return dataclasses.replace(
        mixer,
        num_key_heads=2,
        num_value_heads=4,
        key_head_dim=8,
        value_head_dim=6,
      )


def _rope(
  rope: model_config.RopeConfig, head_dim: int
) -> model_config.RopeConfig:
  scaling = rope.scaling
  match scaling:
    case model_config.Llama3Scaling() | model_config.YarnScaling():
      scaling = dataclasses.replace(
        scaling, original_max_seq_len=_ORIGINAL_CONTEXT
      )
    case model_config.LongRopeScaling():
      pairs = int(head_dim * rope.fraction) // 2
      scaling = dataclasses.replace(
        scaling,
        original_max_seq_len=_ORIGINAL_CONTEXT,
        short_factor=scaling.short_factor[:pairs],
        long_factor=scaling.long_factor[:pairs],
      )
  return dataclasses.replace(rope, theta=100.0, scaling=scaling)


def _feed_forward(
  feed_forward: model_config.FeedForward,
) -> model_config.FeedForward:
  match feed_forward:
    case model_config.MlpConfig():
      return dataclasses.replace(feed_forward, dim=48)
    case model_config.MoeConfig():
      router = feed_forward.router
      if router.num_groups > 1:
        router = dataclasses.replace(router, num_groups=4, groups_per_token=2)
      return dataclasses.replace(
        feed_forward,
        num_experts=_EXPERTS,
        experts_per_token=2,
        dim=16,
        shared_dim=24 if feed_forward.shared_dim else 0,
        router=router,
      )
