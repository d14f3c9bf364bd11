"""Causal attention inside segments: one interface, several implementations.

`reference` is the definition; the others equal it in value and gradient
(attention_test.py):

  blockwise    One block of queries at a time against only the keys it may see,
               so the upper triangle is never computed and scores take T/16 of
               the memory; the backward pass recomputes them. What `auto` means.
  dot_product  jax.nn.dot_product_attention: XLA's own fusion, all scores at
               once, kept for the backward pass.

Dims: B batch, T query length, S key length (= T here), N query heads,
K key/value heads, G = N/K, H head dim.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Few enough blocks to unroll, wide enough blocks to feed the matrix units.
_MAX_BLOCKS = 16
_MIN_BLOCK = 128


def attend(
  q_BTNH: Float[Array, "B T N H"],
  k_BSKH: Float[Array, "B S K H"],
  v_BSKH: Float[Array, "B S K H"],
  *,
  segment_ids: Int[Array, "B T"],
  implementation: str = "auto",
) -> Float[Array, "B T N H"]:
  """softmax(q k^T / sqrt(H)) v over earlier tokens of the same segment.

  Args:
    q_BTNH: Queries, rotated.
    k_BSKH: Keys, rotated.
    v_BSKH: Values.
    segment_ids: Tokens attend only within equal ids.
    implementation: `auto`, `reference`, `blockwise` or
      `dot_product`.

  Returns:
    Attention output in the dtype of `q_BTNH`; softmax is in float32.
  """
  function = {
    "auto": blockwise,
    "reference": reference,
    "blockwise": blockwise,
    "dot_product": dot_product,
  }[implementation]
  return function(q_BTNH, k_BSKH, v_BSKH, segment_ids=segment_ids)


def _attend_block(q_BTNH, k_BSKH, v_BSKH, q_segments, k_segments, first_row):
  """Queries `first_row`.. against keys 0..; masks what lies after each."""
  batch, num_queries, num_heads, head_dim = q_BTNH.shape
  num_keys, num_kv_heads = k_BSKH.shape[1:3]
  q_BTKGH = q_BTNH.reshape(
    batch, num_queries, num_kv_heads, num_heads // num_kv_heads, head_dim
  )
  scores = jnp.einsum(
    "BTKGH,BSKH->BKGTS",
    q_BTKGH,
    k_BSKH,
    preferred_element_type=jnp.float32,
  )
  scores *= head_dim**-0.5
  row = first_row + jnp.arange(num_queries)
  causal = jnp.arange(num_keys)[None, :] <= row[:, None]
  same_segment = q_segments[:, :, None] == k_segments[:, None, :]
  mask = (causal & same_segment)[:, None, None]
  scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(scores, axis=-1).astype(v_BSKH.dtype)
  out = jnp.einsum("BKGTS,BSKH->BTKGH", weights, v_BSKH)
  return out.reshape(q_BTNH.shape)


def reference(q_BTNH, k_BSKH, v_BSKH, *, segment_ids):
  """The definition, with all T x S scores at once."""
  return _attend_block(q_BTNH, k_BSKH, v_BSKH, segment_ids, segment_ids, 0)


# Both levels of checkpoint matter: the outer keeps q, k and v once (not every
# block's prefix of k and v), the inner keeps one block's scores at a time.
@functools.partial(jax.checkpoint, prevent_cse=False)
def blockwise(q_BTNH, k_BSKH, v_BSKH, *, segment_ids):
  """Queries in blocks, each against the keys up to its own end."""
  length = q_BTNH.shape[1]
  block = max(_MIN_BLOCK, -(-length // _MAX_BLOCKS))
  outs = []
  for start in range(0, length, block):
    end = min(start + block, length)
    attend_block = jax.checkpoint(
      functools.partial(_attend_block, first_row=start), prevent_cse=False
    )
    outs.append(
      attend_block(
        q_BTNH[:, start:end],
        k_BSKH[:, :end],
        v_BSKH[:, :end],
        segment_ids[:, start:end],
        segment_ids[:, :end],
      )
    )
  return jnp.concatenate(outs, axis=1)


def dot_product(q_BTNH, k_BSKH, v_BSKH, *, segment_ids):
  """jax.nn.dot_product_attention, masked by segment and causally."""
  mask = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
  return jax.nn.dot_product_attention(
    q_BTNH, k_BSKH, v_BSKH, mask=mask, is_causal=True
  )
