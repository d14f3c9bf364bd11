"""The definition of attention: all T x S scores at once.

Slow, obvious, and what every other implementation equals.

Dims: B batch, T query length, S key length, N query heads, K key/value heads,
G = N/K, H head dim of queries and keys, V head dim of values.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# The score of what may not be seen: the least float32.
HIDDEN = float(jnp.finfo(jnp.float32).min)


def visible(
  q_segment_ids: Int[Array, "B T"],
  k_segment_ids: Int[Array, "B S"],
  *,
  q_start: Int[Array, "B"] | int = 0,
  k_start: Int[Array, ""] | int = 0,
  window: int | None = None,
) -> Bool[Array, "B T S"]:
  """Which query sees which key: not a later one, and of its own segment.

  Args:
    q_segment_ids: Segment of each query.
    k_segment_ids: Segment of each key.
    q_start: Index of the first query of each row.
    k_start: Index of the first key, where `k_segment_ids` is a piece.
    window: How many keys a query sees, itself included; None: all.
  """
  row = jnp.reshape(q_start, (-1, 1)) + jnp.arange(q_segment_ids.shape[1])
  row = row[:, :, None]
  column = k_start + jnp.arange(k_segment_ids.shape[1])
  seen = q_segment_ids[:, :, None] == k_segment_ids[:, None, :]
  seen &= column <= row
  if window is not None:
    seen &= column > row - window
  return seen


def attend(
  q_BTNH: Float[Array, "B T N H"],
  k_BSKH: Float[Array, "B S K H"],
  v_BSKV: Float[Array, "B S K V"],
  *,
  q_segment_ids: Int[Array, "B T"],
  k_segment_ids: Int[Array, "B S"],
  q_start: Int[Array, "B"] | int,
  scale: float,
  window: int | None,
  softcap: float | None,
  sinks_N: Float[Array, "N"] | None,
) -> Float[Array, "B T N V"]:
  """As attention.attend."""
  batch, num_queries, num_heads, head_dim = q_BTNH.shape
  num_keys, num_kv_heads = k_BSKH.shape[1:3]
  group = num_heads // num_kv_heads
  q_BTKGH = q_BTNH.reshape(batch, num_queries, num_kv_heads, group, head_dim)
  scores = scale * jnp.einsum(
    "BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32
  )
  if softcap is not None:
    scores = softcap * jnp.tanh(scores / softcap)
  seen = visible(q_segment_ids, k_segment_ids, q_start=q_start, window=window)
  scores = jnp.where(seen[:, None, None], scores, HIDDEN)
  if sinks_N is not None:
    sinks = sinks_N.astype(jnp.float32).reshape(num_kv_heads, group, 1, 1)
    sinks = jnp.broadcast_to(sinks, (*scores.shape[:-1], 1))
    scores = jnp.concatenate([scores, sinks], axis=-1)
  weights = jax.nn.softmax(scores, axis=-1)[..., :num_keys]
  out = jnp.einsum("BKGTS,BSKV->BTKGV", weights.astype(v_BSKV.dtype), v_BSKV)
  out = out.reshape(batch, num_queries, num_heads, -1).astype(q_BTNH.dtype)
  return zero_blind(out, seen)


def zero_blind(
  out_BTNV: Float[Array, "B T N V"], seen: Bool[Array, "B T S"]
) -> Float[Array, "B T N V"]:
  """0, and no gradient, where a query sees no key."""
  return jnp.where(jnp.any(seen, axis=-1)[:, :, None, None], out_BTNV, 0)
