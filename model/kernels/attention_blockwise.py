"""Causal attention whose memory grows with T + S, not with T * S.

A scan over blocks of queries, inside it a loop over those blocks of keys that
the queries may see, with a running softmax (FlashAttention-2,
arXiv:2307.08691): nothing is computed above the diagonal's blocks or left of
the window's, and the program does not grow with the length. The backward pass
computes the scores once again, from the saved log of each softmax's sum.

A few queries, as in decoding, take the reference: their scores are no larger
than a few keys.

Dims: B batch, T query length, S key length, N query heads, K key/value heads,
G = N/K, H head dim of queries and keys, V head dim of values; t queries and
s keys of one block, I blocks of queries.
"""

import dataclasses
import functools

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from model.kernels import attention_reference

# What the backward pass needs beside the operands, under this name for
# jax.checkpoint's policies.
RESIDUALS = "attention_residuals"
# As many queries as this, or keys as this, are not worth a loop.
_FEW_QUERIES = 16
_FEW_KEYS = 64
# A core's cache holds the scores of one pair of blocks of all rows and heads:
# on a CPU, blocks of 128 unless their float32 scores are above 2 MiB.
_CPU_BLOCKS = (128, 64)
_CPU_BLOCK_BYTES = 2**21
# Elsewhere a kernel is started for each pair, so there are few of them.
_BLOCK = 512


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
  platform: str = "cpu",
  block: int | None = None,
) -> Float[Array, "B T N V"]:
  """As attention.attend.

  Args:
    q_BTNH: Queries; so are the others as there.
    k_BSKH: Keys.
    v_BSKV: Values.
    q_segment_ids: Segments of the queries.
    k_segment_ids: Segments of the keys.
    q_start: Index of the first query of each row.
    scale: Factor of the scores.
    window: Keys that a query sees, itself included.
    softcap: Bound of the scores.
    sinks_N: One more score per head.
    platform: Chooses the block size.
    block: Queries and keys per block, if not the platform's choice.
  """
  batch, num_queries, num_heads, _ = q_BTNH.shape
  num_keys = k_BSKH.shape[1]
  if block is None:
    if num_queries <= _FEW_QUERIES or num_keys <= _FEW_KEYS:
      # Without its scores kept for a backward pass.
      @functools.partial(jax.checkpoint, prevent_cse=False)
      def all_scores(q, k, v, q_ids, k_ids, q_start, sinks):
        return attention_reference.attend(
          q,
          k,
          v,
          q_segment_ids=q_ids,
          k_segment_ids=k_ids,
          q_start=q_start,
          scale=scale,
          window=window,
          softcap=softcap,
          sinks_N=sinks,
        )

      return all_scores(
        q_BTNH,
        k_BSKH,
        v_BSKV,
        q_segment_ids,
        k_segment_ids,
        q_start,
        sinks_N,
      )
    block = _block_size(platform, batch * num_heads)
  options = _Options(
    scale=scale,
    window=window,
    softcap=softcap,
    q_block=min(block, num_queries),
    k_block=min(block, num_keys),
    num_keys=num_keys,
  )
  out = _loop(
    options,
    _pad(q_BTNH, options.q_block),
    _pad(k_BSKH, options.k_block),
    _pad(v_BSKV, options.k_block),
    _pad(q_segment_ids, options.q_block),
    _pad(k_segment_ids, options.k_block),
    jnp.broadcast_to(jnp.asarray(q_start, jnp.int32), (batch,)),
    sinks_N,
  )
  return out[:, :num_queries]


def _block_size(platform: str, num_rows_and_heads: int) -> int:
  if platform != "cpu":
    return _BLOCK
  for block in _CPU_BLOCKS:
    if 4 * num_rows_and_heads * block**2 <= _CPU_BLOCK_BYTES:
      return block
  return _CPU_BLOCKS[-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Options:
  """What of the loop is known when it is compiled."""

  scale: float
  window: int | None
  softcap: float | None
  q_block: int
  k_block: int
  num_keys: int


def _pad(x, block: int):
  """Zeros after `x` on its dim 1, up to a multiple of `block`."""
  after = -x.shape[1] % block
  return jnp.pad(x, ((0, 0), (0, after)) + ((0, 0),) * (x.ndim - 2))


def _key_blocks(options: _Options, i, q_start):
  """First and one past the last block of keys that query block `i` may see."""
  first = i * options.q_block + jnp.min(q_start)
  end = (i + 1) * options.q_block + jnp.max(q_start)
  end = jnp.minimum(end, options.num_keys)
  high = (end + options.k_block - 1) // options.k_block
  if options.window is None:
    return jnp.zeros_like(high), high
  return jnp.maximum(first - options.window + 1, 0) // options.k_block, high


def _slice(x, j, size: int, axis: int):
  return jax.lax.dynamic_slice_in_dim(x, j * size, size, axis)


def _add_slice(x, update, j, size: int, axis: int):
  old = _slice(x, j, size, axis)
  return jax.lax.dynamic_update_slice_in_dim(x, old + update, j * size, axis)


def _scores(options: _Options, i, j, q_BKGtH, k_BKsH, q_ids, k_ids, q_start):
  """Scores [B, K, G, t, s] of block (i, j) in float32, and the tanh in them."""
  scores = options.scale * jnp.einsum(
    "BKGtH,BKsH->BKGts", q_BKGtH, k_BKsH, preferred_element_type=jnp.float32
  )
  tanh = None
  if options.softcap is not None:
    tanh = jnp.tanh(scores / options.softcap)
    scores = options.softcap * tanh
  seen = attention_reference.visible(
    q_ids,
    k_ids,
    q_start=q_start + i * options.q_block,
    k_start=j * options.k_block,
    window=options.window,
  )
  if options.num_keys % options.k_block:
    column = j * options.k_block + jnp.arange(options.k_block)
    seen &= column < options.num_keys
  hidden = attention_reference.HIDDEN
  return jnp.where(seen[:, None, None], scores, hidden), tanh


def _heads_first(x_BSKH):
  return jnp.transpose(x_BSKH, (0, 2, 1, 3))


def _to_blocks(x_BTNH, num_kv_heads: int, block: int):
  """[B, T, N, ...] -> [I, B, K, G, t, ...]."""
  batch, length, num_heads, *rest = x_BTNH.shape
  x = x_BTNH.reshape(
    batch,
    length // block,
    block,
    num_kv_heads,
    num_heads // num_kv_heads,
    *rest,
  )
  return jnp.moveaxis(jnp.moveaxis(x, 2, 4), 1, 0)


def _from_blocks(x):
  """[I, B, K, G, t, ...] -> [B, T, N, ...]."""
  num, batch, num_kv_heads, group, block, *rest = x.shape
  x = jnp.moveaxis(jnp.moveaxis(x, 0, 1), 4, 2)
  return x.reshape(batch, num * block, num_kv_heads * group, *rest)


def _segment_blocks(ids, block: int):
  return jnp.moveaxis(ids.reshape(ids.shape[0], -1, block), 1, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loop(options, q_BTNH, k_BSKH, v_BSKV, q_ids, k_ids, q_start, sinks_N):
  out, _ = _loop_forward(
    options, q_BTNH, k_BSKH, v_BSKV, q_ids, k_ids, q_start, sinks_N
  )
  return out


def _loop_forward(
  options, q_BTNH, k_BSKH, v_BSKV, q_ids, k_ids, q_start, sinks_N
):
  """The output, and what the backward pass needs."""
  batch, _, num_heads, _ = q_BTNH.shape
  num_kv_heads, value_dim = v_BSKV.shape[2:]
  group = num_heads // num_kv_heads
  q_block, k_block = options.q_block, options.k_block
  k_BKSH, v_BKSV = _heads_first(k_BSKH), _heads_first(v_BSKV)
  shape = (batch, num_kv_heads, group, q_block)
  if sinks_N is None:
    # Above HIDDEN: what is hidden weighs exp(HIDDEN - HIDDEN / 2) = 0 even
    # where nothing is seen.
    maximum = jnp.full(shape, attention_reference.HIDDEN / 2, jnp.float32)
    total = jnp.zeros(shape, jnp.float32)
  else:
    maximum = sinks_N.astype(jnp.float32).reshape(num_kv_heads, group, 1)
    maximum = jnp.broadcast_to(maximum, shape)
    total = jnp.ones(shape, jnp.float32)
  start = (maximum, total, jnp.zeros((*shape, value_dim), jnp.float32))

  def query_block(_, inputs):
    i, q, ids = inputs

    def key_block(j, carry):
      maximum, total, out = carry
      scores, _ = _scores(
        options,
        i,
        j,
        q,
        _slice(k_BKSH, j, k_block, 2),
        ids,
        _slice(k_ids, j, k_block, 1),
        q_start,
      )
      new_maximum = jnp.maximum(maximum, jnp.max(scores, axis=-1))
      weights = jnp.exp(scores - new_maximum[..., None])
      decay = jnp.exp(maximum - new_maximum)
      update = jnp.einsum(
        "BKGts,BKsV->BKGtV",
        weights.astype(v_BKSV.dtype),
        _slice(v_BKSV, j, k_block, 2),
        preferred_element_type=jnp.float32,
      )
      return (
        new_maximum,
        total * decay + jnp.sum(weights, axis=-1),
        out * decay[..., None] + update,
      )

    low, high = _key_blocks(options, i, q_start)
    maximum, total, out = jax.lax.fori_loop(low, high, key_block, start)
    # Where nothing is seen, total = 0: output 0, and exp(HIDDEN - 0) = 0.
    blind = total == 0
    total = jnp.where(blind, 1, total)
    log_total = jnp.where(blind, 0, maximum + jnp.log(total))
    return None, ((out / total[..., None]).astype(q.dtype), log_total)

  blocks = _to_blocks(q_BTNH, num_kv_heads, q_block)
  inputs = (jnp.arange(len(blocks)), blocks, _segment_blocks(q_ids, q_block))
  _, (out, log_total) = jax.lax.scan(query_block, None, inputs)
  out = checkpoint_name(_from_blocks(out), RESIDUALS)
  log_total = checkpoint_name(log_total, RESIDUALS)
  saved = (
    q_BTNH,
    k_BSKH,
    v_BSKV,
    q_ids,
    k_ids,
    q_start,
    sinks_N,
    out,
    log_total,
  )
  return out, saved


def _loop_backward(options, saved, grad_BTNV):
  """The gradients of q, k, v and sinks, in one pass over the blocks."""
  q_BTNH, k_BSKH, v_BSKV, q_ids, k_ids, q_start, sinks_N, out, log_total = saved
  num_kv_heads = k_BSKH.shape[2]
  q_block, k_block = options.q_block, options.k_block
  k_BKSH, v_BKSV = _heads_first(k_BSKH), _heads_first(v_BSKV)
  # sum over keys of weight * gradient of that weight.
  mean_BTN = jnp.einsum(
    "BTNV,BTNV->BTN", out, grad_BTNV, preferred_element_type=jnp.float32
  )

  def query_block(carry, inputs):
    i, q, ids, grad, log_total, mean = inputs

    def key_block(j, carry):
      dq, dk, dv = carry
      k, v = _slice(k_BKSH, j, k_block, 2), _slice(v_BKSV, j, k_block, 2)
      scores, tanh = _scores(
        options, i, j, q, k, ids, _slice(k_ids, j, k_block, 1), q_start
      )
      weights = jnp.exp(scores - log_total[..., None])
      dv_block = jnp.einsum(
        "BKGts,BKGtV->BKsV",
        weights.astype(grad.dtype),
        grad,
        preferred_element_type=jnp.float32,
      )
      d_weights = jnp.einsum(
        "BKGtV,BKsV->BKGts", grad, v, preferred_element_type=jnp.float32
      )
      d_scores = weights * (d_weights - mean[..., None]) * options.scale
      if tanh is not None:
        d_scores *= 1 - jnp.square(tanh)
      d_scores = d_scores.astype(q.dtype)
      dq += jnp.einsum(
        "BKGts,BKsH->BKGtH", d_scores, k, preferred_element_type=jnp.float32
      )
      dk_block = jnp.einsum(
        "BKGts,BKGtH->BKsH", d_scores, q, preferred_element_type=jnp.float32
      )
      return (
        dq,
        _add_slice(dk, dk_block, j, k_block, 2),
        _add_slice(dv, dv_block, j, k_block, 2),
      )

    low, high = _key_blocks(options, i, q_start)
    dq = jnp.zeros(q.shape, jnp.float32)
    dq, dk, dv = jax.lax.fori_loop(low, high, key_block, (dq, *carry))
    return (dk, dv), dq.astype(q.dtype)

  grads = _to_blocks(grad_BTNV, num_kv_heads, q_block)
  means = _to_blocks(mean_BTN, num_kv_heads, q_block)
  inputs = (
    jnp.arange(len(grads)),
    _to_blocks(q_BTNH, num_kv_heads, q_block),
    _segment_blocks(q_ids, q_block),
    grads,
    log_total,
    means,
  )
  zeros = (
    jnp.zeros(k_BKSH.shape, jnp.float32),
    jnp.zeros(v_BKSV.shape, jnp.float32),
  )
  (dk, dv), dq = jax.lax.scan(query_block, zeros, inputs)
  d_sinks = None
  if sinks_N is not None:
    sinks = sinks_N.astype(jnp.float32).reshape(num_kv_heads, -1, 1)
    d_sinks = -jnp.exp(sinks - log_total) * means
    d_sinks = jnp.sum(d_sinks, axis=(0, 1, 4)).reshape(-1)
    d_sinks = d_sinks.astype(sinks_N.dtype)
  return (
    _from_blocks(dq),
    _heads_first(dk).astype(k_BSKH.dtype),
    _heads_first(dv).astype(v_BSKV.dtype),
    None,
    None,
    None,
    d_sinks,
  )


_loop.defvjp(_loop_forward, _loop_backward)
