"""Attention to keys and values that lie in pages (arXiv:2309.06180).

A table names the pages of each row's text. Nothing is gathered as a whole: a
loop takes a few pages of every row at a time and keeps a running softmax, as
attention_blockwise.py does. It ends with the longest row's last page, and
begins with each row's first that a window reaches: time grows with the tokens
that are there, not with the width of the table.

The definition (`reference`) gathers all pages and attends to them as if they
were one cache. There is no gradient: pages are for serving.

Dims: B batch, T query length, P pages (of the table: pieces of a text), S slots
of a page, N query heads, K key/value heads, G = N/K, H head dim of queries and
keys, V head dim of values.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from model.kernels import attention_reference

# Keys of a row that one step of the loop takes: on CPUs 32 are slower, and 256
# for many rows (README.md).
_BLOCK = 128


def attend(
  q_BTNH: Float[Array, "B T N H"],
  k_pages: Num[Array, "P *K S H"],
  v_pages: Num[Array, "P *K S V"] | None,
  *,
  table_BP: Int[Array, "B P"],
  start_B: Int[Array, "B"],
  q_segment_ids: Int[Array, "B T"],
  scale: float,
  window: int | None = None,
  softcap: float | None = None,
  sinks_N: Float[Array, "N"] | None = None,
  k_scales: Float[Array, "P ..."] | None = None,
  v_scales: Float[Array, "P *K S"] | None = None,
  value_dim: int | None = None,
  implementation: str = "auto",
  block_size: int = _BLOCK,
) -> Float[Array, "B T N V"]:
  """softmax(q k^T * scale) v over the keys of each row's text.

  Query t of row b stands at place start[b] + t of its text and sees the keys up
  to there, which are in the pages: all, or the last `window` of them. A query
  that is padding gets 0.

  Args:
    q_BTNH: Queries, rotated.
    k_pages: Keys, rotated; of int8 with a scale. Without K: there is one head.
    v_pages: Values; None: they are the first `value_dim` features of the keys
      (multi-head latent attention).
    table_BP: The page of each piece of S tokens of a row's text.
    start_B: Tokens of each text before its first query.
    q_segment_ids: 0 is padding, behind a row's queries.
    scale: Factor of the scores.
    window: How many keys a query sees, itself included; None: all.
    softcap: Scores become softcap * tanh(score / softcap).
    sinks_N: One more score per head, of a key without a value.
    k_scales: Of int8 keys [P, *K, S]; where the values are features of the
      keys, two [P, S, 2]: of these features, and of the others.
    v_scales: Of int8 values.
    value_dim: V, if there are no values.
    implementation: `reference` gathers; any other does not.
    block_size: Keys of a row that one step of the loop takes, in whole pages.

  Returns:
    Attention output in the dtype of `q_BTNH`.
  """
  assert (v_pages is None) == (value_dim is not None)
  if implementation == "reference":
    k = gather(
      k_pages, table_BP, k_scales, value_dim=value_dim, dtype=q_BTNH.dtype
    )
    v = (
      k[..., :value_dim]
      if v_pages is None
      else gather(v_pages, table_BP, v_scales, dtype=q_BTNH.dtype)
    )
    end = start_B + jnp.sum(q_segment_ids > 0, axis=1)
    is_key = jnp.arange(k.shape[1]) < end[:, None]
    return attention_reference.attend(
      q_BTNH,
      k,
      v,
      q_segment_ids=q_segment_ids,
      k_segment_ids=jnp.where(is_key, 1, -1),
      q_start=start_B,
      scale=scale,
      window=window,
      softcap=softcap,
      sinks_N=sinks_N,
    )
  batch, num_queries, num_heads, head_dim = q_BTNH.shape
  num_kv_heads = k_pages.shape[1] if k_pages.ndim == 4 else 1
  page_size = k_pages.shape[-2]
  group = num_heads // num_kv_heads
  # The running softmax of all queries of a key/value head: G T together.
  dims = (batch, num_kv_heads, group, num_queries)
  rows = (batch, num_kv_heads, group * num_queries)
  q = q_BTNH.astype(jnp.float32) * scale
  q = q.reshape(batch, num_queries, num_kv_heads, group, head_dim)
  q = jnp.moveaxis(q, 1, 3).reshape(*rows, head_dim)
  num_pages = min(max(block_size // page_size, 1), table_BP.shape[1])
  block_size = num_pages * page_size

  num_new = jnp.sum(q_segment_ids > 0, axis=1)
  end = jnp.where(num_new > 0, start_B + num_new, 0)
  first = jnp.zeros_like(start_B)
  if window is not None:
    first = jnp.maximum(start_B - window + 1, 0) // page_size
  count = jnp.max(-(-(end - first * page_size) // block_size), initial=0)
  place = start_B[:, None] + jnp.arange(num_queries)

  def step(i, carry):
    high, total, out = carry
    piece = (first + i * num_pages)[:, None] + jnp.arange(num_pages)
    page = jnp.take_along_axis(table_BP, piece, axis=1, mode="clip")
    column = (first * page_size + i * block_size)[:, None]
    column += jnp.arange(block_size)
    k = _read(k_pages, page, k_scales, value_dim)
    if v_pages is None:
      v = k[..., :value_dim]
    else:
      v = _read(v_pages, page, v_scales, None)
    # What another text has left in a page may be anything.
    v = jnp.where((column < end[:, None])[:, None, :, None], v, 0)
    scores = jnp.einsum("BKTH,BKSH->BKTS", q, k)
    if softcap is not None:
      scores = softcap * jnp.tanh(scores / softcap)
    seen = column[:, None] <= place[:, :, None]
    if window is not None:
      seen &= column[:, None] > place[:, :, None] - window
    scores = jnp.where(
      seen[:, None, None], scores.reshape(*dims, block_size), -jnp.inf
    ).reshape(*rows, block_size)
    # Finite from the beginning, so that hidden keys weigh exp(-inf).
    new_high = jnp.maximum(high, jnp.max(scores, axis=-1))
    weights = jnp.exp(scores - new_high[..., None])
    fade = jnp.exp(high - new_high)
    total = total * fade + jnp.sum(weights, axis=-1)
    out = out * fade[..., None] + jnp.einsum("BKTS,BKSV->BKTV", weights, v)
    return new_high, total, out

  if sinks_N is None:
    high = jnp.full(rows, attention_reference.HIDDEN)
    total = jnp.zeros(rows)
  else:
    sinks = sinks_N.astype(jnp.float32).reshape(num_kv_heads, group, 1)
    high = jnp.broadcast_to(sinks, dims).reshape(rows)
    total = jnp.ones(rows)
  width = value_dim if v_pages is None else v_pages.shape[-1]
  assert width is not None
  _, total, out = jax.lax.fori_loop(
    0, count, step, (high, total, jnp.zeros((*rows, width)))
  )
  out = (out / total[..., None]).astype(q_BTNH.dtype).reshape(*dims, width)
  out = jnp.moveaxis(out, 3, 1)
  out = out.reshape(batch, num_queries, num_heads, width)
  # Of padding it may be 0 / 0.
  return jnp.where((q_segment_ids > 0)[..., None, None], out, 0)


def gather(
  pages: Num[Array, "P *K S H"],
  table_BP: Int[Array, "B P"],
  scales: Float[Array, "P ..."] | None = None,
  *,
  value_dim: int | None = None,
  dtype: jax.typing.DTypeLike,
) -> Float[Array, "B S K H"]:
  """All that the table names, as one cache.

  Args:
    pages: Keys or values.
    table_BP: Of each row.
    scales: Of int8 ones; as `attend`'s k_scales.
    value_dim: As `attend`'s.
    dtype: Of the result.
  """
  read = _read(pages, table_BP, scales, value_dim)
  return jnp.swapaxes(read, 1, 2).astype(dtype)


def _read(pages, page, scale, value_dim) -> Float[Array, "B K S H"]:
  """The pages [B, P] of each row one behind the other, float32."""
  has_heads = pages.ndim == 4

  def take(array):
    taken = array.at[page].get(mode="promise_in_bounds")
    if has_heads:
      taken = jnp.moveaxis(taken, 1, 2)
      return taken.reshape(*taken.shape[:2], -1, *array.shape[3:])
    return taken.reshape(page.shape[0], 1, -1, *array.shape[2:])

  x = take(pages).astype(jnp.float32)
  if scale is None:
    return x
  scale = take(scale)
  if value_dim is None:
    return x * scale[..., None]
  return x * jnp.concatenate(
    [
      jnp.broadcast_to(scale[..., :1], (*x.shape[:-1], value_dim)),
      jnp.broadcast_to(
        scale[..., 1:], (*x.shape[:-1], x.shape[-1] - value_dim)
      ),
    ],
    axis=-1,
  )
