"""How large the logits of attention become, by head.

What MuonClip's clipping goes by (Kimi K2, arXiv:2507.20534): the kernels of
attention keep no maximum of a head, so the logits are made once more, a block
of keys at a time, without a gradient. That is one of the two products of
attention's forward pass, over all pairs rather than the half that is seen.

Dims: B batch, T length, S keys of a block, N query heads, K key/value heads,
G = N/K, H head dim.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from model import sharding
from model import zigzag

# Keys of a block.
_BLOCK = 128


def largest(
  q_BTNH: Float[Array, "B T N H"],
  k_BTKH: Float[Array, "B T K H"],
  *,
  segment_ids: Int[Array, "B T"],
  order: zigzag.Order = "natural",
  scale: float,
  window: int | None = None,
) -> Float[Array, "N"]:
  """The largest logit of each head, over the pairs that attention sees.

  Before a soft cap, and without sinks; of tokens that are no padding. No less
  than 0.

  Args:
    q_BTNH: Queries, rotated.
    k_BTKH: Keys, rotated.
    segment_ids: Tokens attend only within equal ids; 0 is padding.
    order: How the tokens lie on the mesh axis `context`.
    scale: Factor of the scores.
    window: How many keys a query sees, itself included; None: all.
  """
  q, k = jax.lax.stop_gradient((q_BTNH, k_BTKH))
  length, num_heads = q.shape[1:3]
  num_kv_heads = k.shape[2]
  q = q.reshape(*q.shape[:2], num_kv_heads, -1, q.shape[-1])
  places = jnp.asarray(
    zigzag.order_of(length, sharding.num_context_shards(), order)
  )
  block = math.gcd(length, _BLOCK)

  def one(most, start):
    def of_block(x, axis):
      return jax.lax.dynamic_slice_in_dim(x, start, block, axis)

    logits = jnp.einsum(
      "BTKGH,BSKH->BKGTS",
      q,
      of_block(k, 1),
      preferred_element_type=jnp.float32,
    )
    ids = of_block(segment_ids, 1)
    distance = places[:, None] - of_block(places, 0)[None, :]
    seen = distance >= 0
    if window is not None:
      seen &= distance < window
    seen = seen & (segment_ids[:, :, None] == ids[:, None, :])
    seen &= ids[:, None, :] > 0
    logits = jnp.where(seen[:, None, None], scale * logits, 0.0)
    return jnp.maximum(most, jnp.max(logits, axis=(0, 3, 4))), None

  zeros = jnp.zeros((num_kv_heads, num_heads // num_kv_heads), jnp.float32)
  most, _ = jax.lax.scan(one, zeros, jnp.arange(0, length, block))
  return most.reshape(num_heads)
