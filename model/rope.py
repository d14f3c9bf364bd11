"""Rotary position embeddings (arXiv:2104.09864) and their longer contexts.

Scalings: linear (arXiv:2306.15595), Llama 3's, YaRN (arXiv:2309.00071),
LongRoPE (arXiv:2402.13753).

Dims: B batch, T length, N heads, H features of a head, of which R rotate.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from model import config as model_config


def frequencies(
  rope: model_config.RopeConfig, head_dim: int, *, longest: bool = False
) -> Float[np.ndarray, "R/2"]:
  """Radians per position of each rotated pair, float32.

  Args:
    rope: The embedding.
    head_dim: H.
    longest: For LongRoPE, those of a sequence beyond the original context.
  """
  rotated = rope.num_rotated(head_dim)
  exponent = np.arange(0, rotated, 2, dtype=np.float32) / rotated
  freq = 1.0 / np.power(np.float32(rope.theta), exponent)
  scaling = rope.scaling
  match scaling:
    case None:
      return freq
    case model_config.LinearScaling():
      return freq / np.float32(scaling.factor)
    case model_config.Llama3Scaling():
      keep = _llama3_keep(scaling, freq)
    case model_config.YarnScaling():
      keep = _yarn_keep(scaling, rope.theta, rotated)
    case model_config.LongRopeScaling():
      factor = scaling.long_factor if longest else scaling.short_factor
      return freq / np.array(factor, np.float32)
  return (freq * keep + freq / scaling.factor * (1 - keep)).astype(np.float32)


def _llama3_keep(scaling: model_config.Llama3Scaling, freq):
  """1 at and above the high-frequency edge, 0 at and below the low one."""
  wavelength = 2 * math.pi / freq
  keep = (
    scaling.original_max_seq_len / wavelength - scaling.low_freq_factor
  ) / (scaling.high_freq_factor - scaling.low_freq_factor)
  return np.clip(keep, 0.0, 1.0)


def _yarn_keep(scaling: model_config.YarnScaling, theta: float, rotated: int):
  """1 for the pairs before the ramp, 0 for those after it."""

  def pair_with(rotations: float) -> float:
    """Index of the pair that turns so often over the original context."""
    wavelength = scaling.original_max_seq_len / (rotations * 2 * math.pi)
    return rotated * math.log(wavelength) / (2 * math.log(theta))

  low, high = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
  if scaling.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, rotated - 1)
  if low == high:
    high += 0.001
  ramp = (np.arange(rotated // 2, dtype=np.float32) - low) / (high - low)
  return 1 - np.clip(ramp, 0.0, 1.0)


def angles(
  rope: model_config.RopeConfig,
  positions: Int[Array, "B T"],
  head_dim: int,
  *,
  valid: Bool[Array, "B T"] | None = None,
  length: Int[Array, "B"] | None = None,
) -> tuple[Float[Array, "B T 1 R/2"], Float[Array, "B T 1 R/2"]]:
  """Scaled cosine and sine of position * frequency, float32.

  Args:
    rope: The embedding.
    positions: Of each token in its document.
    head_dim: H.
    valid: False for padding. LongRoPE takes its long factors for the whole
      batch as soon as one valid token lies beyond the original context.
    length: Of each row's whole text: where it is given, LongRoPE takes its long
      factors for those rows whose text is longer than the original context.
  """
  freq = frequencies(rope, head_dim)
  scale = 1.0
  if isinstance(rope.scaling, model_config.LongRopeScaling):
    if length is not None:
      last = length[:, None, None, None] - 1
    elif valid is not None:
      last = jnp.max(jnp.where(valid, positions, 0))
    else:
      last = jnp.max(positions)
    freq = jnp.where(
      last >= rope.scaling.original_max_seq_len,
      frequencies(rope, head_dim, longest=True),
      freq,
    )
    scale = rope.scaling.rotation_scale
  if isinstance(rope.scaling, model_config.YarnScaling):
    scale = rope.scaling.rotation_scale
  theta = positions[..., None, None].astype(jnp.float32) * freq
  return jnp.cos(theta) * scale, jnp.sin(theta) * scale


def rotate(
  x: Float[Array, "B T N H"],
  cos: Float[Array, "B T 1 R/2"],
  sin: Float[Array, "B T 1 R/2"],
  pairing: str = "halves",
) -> Float[Array, "B T N H"]:
  """Rotates each pair of the first R features of `x` by its angle.

  In float32. With `interleaved` pairs the rotated features come out in the
  order of `halves`: scores do not change when queries and keys are permuted
  alike, and the strided write is saved.
  """
  return _rotate(x, cos, sin, pairing)


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=3)
def _rotate(x, cos, sin, pairing):
  num_rotated = 2 * cos.shape[-1]
  x32, rest = x[..., :num_rotated].astype(jnp.float32), x[..., num_rotated:]
  if pairing == "interleaved":
    first, second = x32[..., 0::2], x32[..., 1::2]
  else:
    first, second = jnp.split(x32, 2, axis=-1)
  rotated = jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
  return jnp.concatenate([rotated.astype(x.dtype), rest], axis=-1)
