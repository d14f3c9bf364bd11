"""The gated delta rule (arXiv:2412.06464): linear attention that can forget.

Each head keeps a matrix S that maps keys to values. A token first lets it fade,
then corrects what it answers to the token's key, then asks it:

  S_t = exp(g_t) S_{t-1}                        g_t <= 0, the log decay
  S_t = S_t + k_t (beta_t (v_t - S_t^T k_t))^T  0 <= beta_t <= 1
  o_t = S_t^T q_t

Queries and keys are brought to unit length first, queries then scaled by
H ** -0.5. The first token of a segment finds S = 0; padding (segment id 0)
leaves S as it is, and what it is answered means nothing. A segment's tokens
stand together. Everything is computed in float32, on
accelerators by matmuls of the default precision, but for the inverse of a
chunk's system.

  reference  The definition, token by token. Keeps every S for the backward
             pass.
  chunked    Chunks of tokens at a time. Within a chunk, token t's correction
             u_t = beta_t (v_t - S_t^T k_t) is linear in those before it:

               (I + A) u = beta (v - exp(c) k S),  c the running sum of g,
               A_ts = beta_t (k_t . k_s) exp(c_t - c_s) for s < t, else 0;

             its solution gives outputs and the next S by matrix products (the
             UT transform of arXiv:2406.06484). The backward pass recomputes
             each chunk from the S that entered it, and keeps only those.
  auto       One token: reference. More: chunked.

Dims: B batch, T length (or of a chunk: its tokens as queries, S as keys),
K key heads, N value heads, G = N/K, H head dim of keys, V of values.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Implementation = Literal["auto", "reference", "chunked"]

_CHUNK = 64
_EPS = 1e-6


def mix(
  q_BTKH: Float[Array, "B T K H"],
  k_BTKH: Float[Array, "B T K H"],
  v_BTNV: Float[Array, "B T N V"],
  *,
  log_decay_BTN: Float[Array, "B T N"],
  beta_BTN: Float[Array, "B T N"],
  segment_ids: Int[Array, "B T"],
  state_BNHV: Float[Array, "B N H V"] | None = None,
  state_segment_ids: Int[Array, "B"] | None = None,
  implementation: Implementation = "auto",
) -> tuple[Float[Array, "B T N V"], Float[Array, "B N H V"]]:
  """What each token is answered, and S after the last.

  Args:
    q_BTKH: Queries, of any length.
    k_BTKH: Keys, of any length.
    v_BTNV: Values; heads n G to (n + 1) G - 1 share query and key head n.
    log_decay_BTN: g.
    beta_BTN: How far S is corrected.
    segment_ids: 0 is padding.
    state_BNHV: S before the first token; unset: 0.
    state_segment_ids: The segment it is of, with a state; a token of another
      finds 0.
    implementation: See above.

  Returns:
    The answers, in the values' dtype; S, float32.
  """
  rows, length, key_heads, key_dim = q_BTKH.shape
  heads, value_dim = v_BTNV.shape[2:]
  grouped = (key_heads, heads // key_heads)
  assert (state_BNHV is None) == (state_segment_ids is None)
  if state_BNHV is None or state_segment_ids is None:
    state_segment_ids = jnp.zeros((rows,), jnp.int32)
    state_BNHV = jnp.zeros((rows, heads, key_dim, value_dim), jnp.float32)
  state = state_BNHV.astype(jnp.float32)
  state = state.reshape(rows, *grouped, key_dim, value_dim)

  valid = segment_ids > 0
  starts = _starts(segment_ids, state_segment_ids)
  # Padding neither fades S nor corrects it.
  log_decay_BTN = jnp.where(valid[..., None], log_decay_BTN, 0.0)
  beta_BTN = jnp.where(valid[..., None], beta_BTN, 0.0)
  inputs = (
    q_BTKH,
    k_BTKH,
    v_BTNV.reshape(rows, length, *grouped, value_dim),
    log_decay_BTN.astype(jnp.float32).reshape(rows, length, *grouped),
    beta_BTN.astype(jnp.float32).reshape(rows, length, *grouped),
    starts,
  )
  if implementation == "auto":
    implementation = "reference" if length == 1 else "chunked"
  match implementation:
    case "reference":
      out, state = _by_token(state, inputs)
    case "chunked":
      out, state = _by_chunk(state, inputs)
    case _:
      raise ValueError(
        f"implementation={implementation!r} is not one of auto, reference, "
        "chunked."
      )
  return (
    out.reshape(v_BTNV.shape).astype(v_BTNV.dtype),
    state.reshape(state_BNHV.shape),
  )


def _starts(
  segment_ids: Int[Array, "B T"], before: Int[Array, "B"]
) -> Bool[Array, "B T"]:
  """Whether a token is of another segment than the last before it.

  Padding starts nothing, and is not what a token is compared with.
  """
  ids = jnp.concatenate([before[:, None], segment_ids], axis=1)
  # Of each place the last up to it that holds a token; 0, if none does.
  place = 1 + jnp.arange(segment_ids.shape[1])
  place = jnp.where(segment_ids > 0, place, 0)
  last = jnp.pad(jax.lax.cummax(place, axis=1), ((0, 0), (1, 0)))
  ids = jnp.take_along_axis(ids, last, axis=1)
  return ids[:, 1:] != ids[:, :-1]


def _by_token(state, inputs):
  """Scans over tokens; the state is [B, K, G, H, V]."""

  def step(state, token):
    q, k, v, log_decay, beta, starts = token
    q, k = _unit(q) * q.shape[-1] ** -0.5, _unit(k)
    keep = jnp.where(starts[:, None, None], 0.0, jnp.exp(log_decay))
    state = state * keep[..., None, None]
    answer = jnp.einsum("BKGHV,BKH->BKGV", state, k)
    correction = beta[..., None] * (v.astype(jnp.float32) - answer)
    state = state + jnp.einsum("BKH,BKGV->BKGHV", k, correction)
    return state, jnp.einsum("BKGHV,BKH->BKGV", state, q)

  state, out = jax.lax.scan(
    step, state, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), inputs)
  )
  return jnp.moveaxis(out, 0, 1), state


def _by_chunk(state, inputs):
  """Scans over chunks; the state is [B, K, G, H, V]."""
  length = inputs[0].shape[1]
  # The least power of 2 that holds a text shorter than a chunk.
  size = min(_CHUNK, 1 << (length - 1).bit_length())
  num_chunks = -(-length // size)

  def split(x):
    # Zeros are padding: they neither fade S nor correct it.
    behind = [(0, 0)] * x.ndim
    behind[1] = (0, num_chunks * size - length)
    x = jnp.pad(x, behind)
    x = x.reshape(x.shape[0], num_chunks, size, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)

  chunk = jax.checkpoint(_chunk, prevent_cse=False)
  state, out = jax.lax.scan(chunk, state, jax.tree.map(split, inputs))
  out = jnp.moveaxis(out, 0, 1)
  out = out.reshape(out.shape[0], num_chunks * size, *out.shape[3:])
  return out[:, :length], state


def _chunk(state_BKGHV, inputs):
  """One chunk: the S that leaves it, and its answers [B, T, K, G, V]."""
  q, k, v, log_decay, beta, starts = inputs
  q, k = _unit(q) * q.shape[-1] ** -0.5, _unit(k)
  v, log_decay, beta = (
    jnp.moveaxis(x.astype(jnp.float32), 1, 3) for x in (v, log_decay, beta)
  )
  # Of the chunk's segments, which a token is of: 0 is that of S.
  segment = jnp.cumsum(starts, axis=1)
  total = jnp.cumsum(log_decay, axis=-1)
  causal = jnp.tril(jnp.ones((starts.shape[1],) * 2, bool))
  seen_BTS = causal & (segment[:, :, None] == segment[:, None, :])

  def decay(log, seen):
    seen = jnp.expand_dims(seen, (1, 2))
    return jnp.exp(jnp.where(seen, log, -jnp.inf))

  pairwise = decay(total[..., :, None] - total[..., None, :], seen_BTS)
  from_state = decay(total, segment == 0)[..., None]
  to_end = decay(total[..., -1:] - total, segment == segment[:, -1:])[..., None]

  beta = beta[..., None]
  kk = jnp.einsum("BTKH,BSKH->BKTS", k, k)[:, :, None]
  solve = _unit_lower_inverse(jnp.tril(beta * kk * pairwise, -1))
  answer = jnp.einsum("BTKH,BKGHV->BKGTV", k, state_BKGHV)
  correction = solve @ (beta * (v - from_state * answer))

  qk = jnp.einsum("BTKH,BSKH->BKTS", q, k)[:, :, None]
  out = from_state * jnp.einsum("BTKH,BKGHV->BKGTV", q, state_BKGHV)
  out += (qk * pairwise) @ correction
  state = from_state[..., -1:, :] * state_BKGHV + jnp.einsum(
    "BTKH,BKGTV->BKGHV", k, to_end * correction
  )
  return state, jnp.moveaxis(out, 3, 1)


def _unit(x: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
  """x / |x|, in float32."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + _EPS)


@jax.custom_vjp
def _unit_lower_inverse(
  lower: Float[Array, "*B T T"],
) -> Float[Array, "*B T T"]:
  """(I + lower)^-1 of a strictly lower triangle; T is a power of 2.

  By halves: [[A, 0], [C, D]]^-1 = [[A^-1, 0], [-D^-1 C A^-1, D^-1]]. As stable
  as substitution, but of matrix products: it runs, and is sharded, as they are.
  """
  size = lower.shape[-1]
  if size == 1:
    return jnp.ones_like(lower)
  half = size // 2
  first, last = slice(None, half), slice(half, None)
  a, d = _unit_lower_inverse(
    jnp.stack([lower[..., first, first], lower[..., last, last]])
  )
  c = -_product(_product(d, lower[..., last, first]), a)
  top = jnp.concatenate([a, jnp.zeros_like(c)], axis=-1)
  return jnp.concatenate([top, jnp.concatenate([c, d], axis=-1)], axis=-2)


def _inverse_forward(lower):
  inverse = _unit_lower_inverse(lower)
  return inverse, inverse


def _inverse_backward(inverse, grad):
  transposed = jnp.swapaxes(inverse, -1, -2)
  return (-_product(_product(transposed, grad), transposed),)


_unit_lower_inverse.defvjp(_inverse_forward, _inverse_backward)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
  """Their matrix product with all of float32: errors would multiply."""
  return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
