"""Self-attention by JAX's Pallas kernel for TPU ("splash attention").

The kernel is for one row of the batch on one device: here it is mapped over
rows, and over the mesh, where each device has its own rows and heads. It skips
the blocks above the diagonal and left of the window.

Off TPU it runs interpreted: for tests.

Dims: B batch, T length, N query heads, K key/value heads, H head dim of queries
and keys, V head dim of values.
"""

import functools

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask,
)
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from model.kernels import attention_layout

# Queries and keys per block; the kernel takes multiples of 128 lanes.
LANES = 128
_BLOCK = 512
# The fused backward kernel writes a gradient of q for every block of keys: as
# many copies of q as this are a fair price for computing the scores once less.
_MAX_COPIES = 4


def attend(
  q_BTNH: Float[Array, "B T N H"],
  k_BTKH: Float[Array, "B T K H"],
  v_BTKV: Float[Array, "B T K V"],
  *,
  segment_ids: Int[Array, "B T"],
  scale: float,
  window: int | None,
  softcap: float | None,
  sinks_N: Float[Array, "N"] | None,
  interpret: bool,
) -> Float[Array, "B T N V"]:
  """As attention.attend, where keys and queries are the same tokens."""
  local = functools.partial(
    _attend_local,
    scale=scale,
    window=window,
    softcap=softcap,
    interpret=interpret,
  )
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return local(q_BTNH, k_BTKH, v_BTKV, segment_ids, sinks_N)
  k_BTKH, v_BTKV, layout = attention_layout.split(q_BTNH, k_BTKH, v_BTKV)
  rows, heads, kv_heads = layout.rows, layout.heads, layout.kv_heads
  return jax.shard_map(
    local,
    in_specs=(
      P(rows, None, heads),
      P(rows, None, kv_heads),
      P(rows, None, kv_heads),
      P(rows),
      P(heads),
    ),
    out_specs=P(rows, None, heads),
    # A Pallas call does not say over which axes its result varies.
    check_vma=False,
  )(q_BTNH, k_BTKH, v_BTKV, segment_ids, sinks_N)


def _attend_local(
  q_BTNH,
  k_BTKH,
  v_BTKV,
  segment_ids,
  sinks_N,
  *,
  scale,
  window,
  softcap,
  interpret,
):
  """One device's rows and heads."""
  length, num_heads = q_BTNH.shape[1:3]
  block = min(_BLOCK, length + -length % LANES)
  padded = length + -length % block
  # Padding comes last, so no token sees it, whichever its segment.
  q, k, v = (
    jnp.pad(
      jnp.transpose(x, (0, 2, 1, 3)),
      ((0, 0), (0, 0), (0, padded - length), (0, 0)),
    )
    for x in ((q_BTNH * scale).astype(q_BTNH.dtype), k_BTKH, v_BTKV)
  )
  ids = jnp.pad(segment_ids, ((0, 0), (0, padded - length))).astype(jnp.int32)
  kernel = _kernel(padded, num_heads, block, window, softcap, interpret)

  def one_row(q, k, v, ids):
    segments = splash_attention_kernel.SegmentIds(ids, ids)
    out = kernel(q, k, v, segments, sinks_N)
    assert not isinstance(out, tuple)  # It is with save_residuals=True.
    return out

  out = jax.vmap(one_row)(q, k, v, ids)
  return jnp.transpose(out, (0, 2, 1, 3))[:, :length]


def _kernel(
  length: int,
  num_heads: int,
  block: int,
  window: int | None,
  softcap: float | None,
  interpret: bool,
):
  """The kernel, with its tables of which blocks to visit."""
  return splash_attention_kernel.make_splash_mha_single_device(
    splash_attention_mask.MultiHeadMask(
      [make_mask(length, window)] * num_heads
    ),
    block_sizes=block_sizes(length, block),
    attn_logits_soft_cap=softcap,
    interpret=interpret,
  )


def make_mask(
  length: int, window: int | None
) -> splash_attention_mask.CausalMask | splash_attention_mask.LocalMask:
  """Which of so many keys each query sees."""
  shape = (length, length)
  if window is None:
    return splash_attention_mask.CausalMask(shape)
  return splash_attention_mask.LocalMask(shape, (window - 1, 0), 0)


def block_sizes(length: int, block: int) -> splash_attention_kernel.BlockSizes:
  """Those for so many keys, in multiples of `block`."""
  fused = max(b for b in (1, 2, 4) if length % (b * block) == 0) * block
  is_fused = length // fused <= _MAX_COPIES
  return splash_attention_kernel.BlockSizes(
    block_q=block,
    block_kv=block,
    block_kv_compute=block,
    block_q_dkv=block,
    block_kv_dkv=fused if is_fused else block,
    block_kv_dkv_compute=block,
    block_q_dq=None if is_fused else block,
    block_kv_dq=None if is_fused else block,
    use_fused_bwd_kernel=is_fused,
  )
