"""Rotary position embeddings (arXiv:2104.09864), with Llama 3's scaling.

Features are rotated in pairs (i, i + H/2), as Hugging Face stores Llama
weights, not in neighbouring pairs as the paper draws them.

Dims: B batch, T length, N heads, H head dim.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from model import config as model_config


def frequencies(
  rope: model_config.RopeConfig, head_dim: int
) -> Float[np.ndarray, "H/2"]:
  """Radians per position of each rotated pair, float32."""
  exponent = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
  freq = 1.0 / np.power(np.float32(rope.theta), exponent)
  if rope.scaling is None:
    return freq
  scaling = rope.scaling
  wavelength = 2 * math.pi / freq
  # 1 at and above the high-frequency edge, 0 at and below the low one.
  keep = (
    scaling.original_max_seq_len / wavelength - scaling.low_freq_factor
  ) / (scaling.high_freq_factor - scaling.low_freq_factor)
  keep = np.clip(keep, 0.0, 1.0)
  return (freq * keep + freq / scaling.factor * (1 - keep)).astype(np.float32)


def angles(
  positions: Int[Array, "B T"], freq: Float[np.ndarray, "H/2"]
) -> tuple[Float[Array, "B T 1 H/2"], Float[Array, "B T 1 H/2"]]:
  """Cosine and sine of position * frequency, float32, broadcast over heads."""
  theta = positions[..., None, None].astype(jnp.float32) * freq
  return jnp.cos(theta), jnp.sin(theta)


@functools.partial(jax.checkpoint, prevent_cse=False)
def rotate(
  x: Float[Array, "B T N H"],
  cos: Float[Array, "B T 1 H/2"],
  sin: Float[Array, "B T 1 H/2"],
) -> Float[Array, "B T N H"]:
  """Rotates each pair of features of `x` by its angle, in float32."""
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
  return rotated.astype(x.dtype)
