"""Attention by jax.nn.dot_product_attention: cuDNN's kernel, or XLA's fusion.

The one call takes neither sinks nor values of another width than keys, so both
are put into its operands: widths are padded with zeros, and a sink is the
score of one more key.

Dims: B batch, T query length, S key length, N query heads, K key/value heads,
H head dim of queries and keys, V head dim of values.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from model.kernels import attention_reference

# cuDNN's kernel wants head dims of a multiple of this.
_HEAD_DIM_MULTIPLE = 8


def has_cudnn(
  q_BTNH: Float[Array, "B T N H"],
  v_BSKV: Float[Array, "B S K V"],
  *,
  sinks: bool,
  platform: str,
) -> bool:
  """Whether cuDNN's kernel takes operands like these on this machine."""
  if platform != "gpu" or q_BTNH.dtype not in (jnp.bfloat16, jnp.float16):
    return False
  capability = getattr(jax.local_devices()[0], "compute_capability", "0")
  try:
    capability = float(capability)
  except ValueError:  # ROCm: gfx90a.
    return False
  largest = 256 if capability >= 9 else 128
  return capability >= 8 and _width(q_BTNH, v_BSKV, sinks=sinks) <= largest


def _width(q_BTNH, v_BSKV, *, sinks: bool) -> int:
  """The head dim that queries, keys and values are padded to."""
  width = max(q_BTNH.shape[-1] + sinks, v_BSKV.shape[-1])
  return width + -width % _HEAD_DIM_MULTIPLE


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
  sinks_N: Float[Array, "N"] | None,
  backend: Literal["cudnn", "xla"],
) -> Float[Array, "B T N V"]:
  """As attention.attend; a sink is rounded to the dtype of `q_BTNH`."""
  num_queries, head_dim = q_BTNH.shape[1], q_BTNH.shape[3]
  num_keys, value_dim = k_BSKH.shape[1], v_BSKV.shape[3]
  seen = attention_reference.visible(
    q_segment_ids, k_segment_ids, q_start=q_start, window=window
  )
  mask = seen
  q, k, v = q_BTNH, k_BSKH, v_BSKV
  if sinks_N is not None:
    # One more feature, 1 in the one more key and the sink in every query.
    sinks = sinks_N.astype(jnp.float32)[:, None] / scale
    sinks = jnp.broadcast_to(sinks, (*q.shape[:-1], 1)).astype(q.dtype)
    q = jnp.concatenate([q, sinks], axis=-1)
    k = _pad(_pad(k, 3, head_dim + 1), 1, num_keys + 1)
    k = k.at[:, num_keys, :, head_dim].set(1)
    v = _pad(v, 1, num_keys + 1)
    mask = jnp.pad(mask, ((0, 0), (0, 0), (0, 1)), constant_values=True)
  if backend == "cudnn":
    # Its backward pass wants even lengths where there is a mask.
    q, k, v = (_pad(x, 1, x.shape[1] + x.shape[1] % 2) for x in (q, k, v))
    mask = _pad(_pad(mask, 1, q.shape[1]), 2, k.shape[1])
  width = _width(q_BTNH, v_BSKV, sinks=sinks_N is not None)
  out = jax.nn.dot_product_attention(
    _pad(q, 3, width),
    _pad(k, 3, width),
    _pad(v, 3, width),
    mask=mask[:, None],
    scale=scale,
    # Said twice where it can be: cuDNN skips what lies above the diagonal.
    is_causal=isinstance(q_start, int)
    and q_start == 0
    and sinks_N is None
    and num_queries == num_keys,
    implementation=backend,
  )
  out = out[:, :num_queries, :, :value_dim]
  return attention_reference.zero_blind(out, seen)


def _pad(x, axis: int, size: int):
  """Zeros after `x` up to `size` on `axis`."""
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, size - x.shape[axis])
  return jnp.pad(x, widths)
