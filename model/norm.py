"""RMSNorm (arXiv:1910.07467), in float32.

Dims: B batch, T length, D model.
"""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


# The backward pass recomputes the norm from its input: elementwise work is
# cheaper than keeping a float32 copy of every activation.
@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=2)
def rms_norm(
  x: Float[Array, "*B D"], scale: Float[Array, "D"], eps: float
) -> Float[Array, "*B D"]:
  """x / sqrt(mean(x^2) + eps) * scale, computed in float32."""
  x32 = x.astype(jnp.float32)
  mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
  normed = x32 * jax.lax.rsqrt(mean_square + eps)
  return (normed * scale.astype(jnp.float32)).astype(x.dtype)


class RmsNorm(nnx.Module):
  """A learned scale over `rms_norm`."""

  def __init__(self, dim: int, *, eps: float, param_dtype: str):
    self.scale_D = nnx.Param(jnp.ones((dim,), param_dtype))
    self.eps = eps

  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    return rms_norm(x, self.scale_D[...], self.eps)
