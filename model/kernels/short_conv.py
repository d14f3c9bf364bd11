"""A causal convolution over a few tokens, each feature for itself, then SiLU.

What stands before linear attention (arXiv:2412.06464): a token is mixed with
the width - 1 tokens before it, as far as they are of its segment.

Dims: B batch, T length, K heads, H head dim, W width.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


# The backward pass recomputes it: cheaper than keeping W shifted copies.
@functools.partial(jax.checkpoint, prevent_cse=False)
def convolve(
  x: Float[Array, "B T K H"],
  weight_KHW: Float[Array, "K H W"],
  *,
  segment_ids: Int[Array, "B T"],
  before: Float[Array, "B W-1 K H"],
  before_segment_ids: Int[Array, "B W-1"],
) -> Float[Array, "B T K H"]:
  """silu(sum_i weight[i] x[t - (W - 1) + i]), computed in float32.

  Args:
    x: The tokens.
    weight_KHW: The last is the token's own.
    segment_ids: A token sees those of equal id.
    before: The tokens before the first, next to last.
    before_segment_ids: Theirs; one that no token has where there is none.
  """
  length, width = x.shape[1], weight_KHW.shape[-1]
  tokens = jnp.concatenate([before.astype(x.dtype), x], axis=1)
  ids = jnp.concatenate([before_segment_ids, segment_ids], axis=1)
  weight = weight_KHW.astype(jnp.float32)
  out = jnp.zeros(x.shape, jnp.float32)
  for i in range(width):
    seen = (ids[:, i : i + length] == segment_ids)[..., None, None]
    token = tokens[:, i : i + length].astype(jnp.float32)
    out += jnp.where(seen, token, 0.0) * weight[..., i]
  return jax.nn.silu(out).astype(x.dtype)


def carry(
  x: Float[Array, "B T K H"],
  before: Float[Array, "B W-1 K H"],
  *,
  num_new: Int[Array, "B"],
) -> Float[Array, "B W-1 K H"]:
  """The last W - 1 tokens of `before` and the first `num_new` of x."""
  tokens = jnp.concatenate([before, x.astype(before.dtype)], axis=1)
  place = num_new[:, None] + jnp.arange(before.shape[1])
  return jnp.take_along_axis(tokens, place[..., None, None], axis=1)
