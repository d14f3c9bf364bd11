"""Splash attention of some of a sequence's queries to all of its keys.

The kernel (attention_splash.py) is made once for all shards of the mesh axis
`context`: its tables of blocks to visit, and the places of the queries, are
arrays that lie on that axis as the queries do.

Dims: B batch, T query length, S key length, N query heads, K key/value heads,
H head dim of queries and keys, V head dim of values.
"""

from typing import Any

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
import numpy as np

from model import sharding
from model.kernels import attention_blockwise
from model.kernels import attention_splash

LANES = attention_splash.LANES


def fits(length: int, num_shards: int) -> bool:
  """Whether shards of a sequence are whole blocks."""
  return length % (LANES * num_shards) == 0


def make_kernel(
  places: np.ndarray,
  *,
  num_heads: int,
  num_shards: int,
  window: int | None,
  softcap: float | None,
  interpret: bool,
) -> Any:
  """The kernel of all shards, an operand of shard_map with `specs`.

  Args:
    places: Of each query in the sequence, as they lie on the axis.
    num_heads: Of one device.
    num_shards: Of the sequence.
    window: Keys that a query sees, itself included.
    softcap: Bound of the scores.
    interpret: Without a TPU.
  """
  length = len(places)
  # Of a shard's two chunks, if they are that long: a block of both is full.
  chunk = length // (2 * num_shards)
  unit = chunk if chunk % LANES == 0 else 2 * chunk
  block = max(b for b in (LANES, 2 * LANES, 4 * LANES) if unit % b == 0)
  mask = attention_splash.make_mask(length, window)
  mask.q_sequence = places
  return splash_attention_kernel.make_splash_mha(
    splash_attention_mask.MultiHeadMask([mask] * num_heads),
    block_sizes=attention_splash.block_sizes(length, block),
    attn_logits_soft_cap=softcap,
    head_shards=1,
    q_seq_shards=num_shards,
    residual_checkpoint_name=attention_blockwise.RESIDUALS,
    interpret=interpret,
  )


def specs(kernel: Any) -> Any:
  """Where the arrays of a kernel lie."""
  mesh = jax.sharding.get_abstract_mesh()
  spec = jax.sharding.NamedSharding(mesh, P(None, sharding.CONTEXT))
  return kernel.manual_sharding_spec(spec)


def attend(
  kernel: Any,
  q_BTNH: Float[Array, "B T N H"],
  k_BSKH: Float[Array, "B S K H"],
  v_BSKV: Float[Array, "B S K V"],
  *,
  q_segment_ids: Int[Array, "B T"],
  k_segment_ids: Int[Array, "B S"],
  sinks_N: Float[Array, "N"] | None,
) -> Float[Array, "B T N V"]:
  """A device's rows, queries and heads; `q_BTNH` is scaled."""

  def one_row(q, k, v, q_ids, k_ids):
    segments = splash_attention_kernel.SegmentIds(q_ids, k_ids)
    return kernel(q, k, v, segments, sinks_N)

  q, k, v = (jnp.transpose(x, (0, 2, 1, 3)) for x in (q_BTNH, k_BSKH, v_BSKV))
  out = jax.vmap(one_row)(
    q, k, v, q_segment_ids.astype(jnp.int32), k_segment_ids.astype(jnp.int32)
  )
  return jnp.transpose(out, (0, 2, 1, 3))
