"""RMSNorm (arXiv:1910.07467) and LayerNorm (arXiv:1607.06450), in float32.

Dims: B batch, T length, D model.
"""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from model import config as model_config


def rms_norm(
  x: Float[Array, "*B D"],
  scale: Float[Array, "D"],
  eps: float,
  offset: float = 0.0,
) -> Float[Array, "*B D"]:
  """x / sqrt(mean(x^2) + eps) * (offset + scale), computed in float32."""
  return _rms_norm(x, scale, eps, offset)


# The backward pass recomputes the norm from its input: elementwise work is
# cheaper than keeping a float32 copy of every activation.
@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=(2, 3))
def _rms_norm(x, scale, eps, offset):
  x32 = x.astype(jnp.float32)
  mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
  normed = x32 * jax.lax.rsqrt(mean_square + eps)
  return (normed * (offset + scale.astype(jnp.float32))).astype(x.dtype)


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=3)
def layer_norm(
  x: Float[Array, "*B D"],
  scale: Float[Array, "D"],
  bias: Float[Array, "D"],
  eps: float,
) -> Float[Array, "*B D"]:
  """(x - mean) / sqrt(var + eps) * scale + bias, computed in float32."""
  x32 = x.astype(jnp.float32)
  centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
  variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
  normed = centred * jax.lax.rsqrt(variance + eps)
  out = normed * scale.astype(jnp.float32) + bias.astype(jnp.float32)
  return out.astype(x.dtype)


class RmsNorm(nnx.Module):
  """A learned scale over `rms_norm`; with `offset` 1 it begins at 0."""

  def __init__(
    self, dim: int, *, eps: float, param_dtype: str, offset: float = 0.0
  ):
    self.scale_D = nnx.Param(jnp.full((dim,), 1.0 - offset, param_dtype))
    self.eps = eps
    self.offset = offset

  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    return rms_norm(x, self.scale_D[...], self.eps, self.offset)


class LayerNorm(nnx.Module):
  """A learned scale and bias over `layer_norm`."""

  def __init__(self, dim: int, *, eps: float, param_dtype: str):
    self.scale_D = nnx.Param(jnp.ones((dim,), param_dtype))
    self.bias_D = nnx.Param(jnp.zeros((dim,), param_dtype))
    self.eps = eps

  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    return layer_norm(x, self.scale_D[...], self.bias_D[...], self.eps)


def make(
  config: model_config.ModelConfig, *, param_dtype: str
) -> RmsNorm | LayerNorm:
  """A norm over D of the kind that `config` asks for."""
  if config.norm == "layer":
    return LayerNorm(config.dim, eps=config.norm_eps, param_dtype=param_dtype)
  return RmsNorm(
    config.dim,
    eps=config.norm_eps,
    param_dtype=param_dtype,
    offset=offset(config),
  )


def offset(config: model_config.ModelConfig) -> float:
  """What a model's RMSNorms add to their scales."""
  return 1.0 if config.norm == "rms_offset" else 0.0
