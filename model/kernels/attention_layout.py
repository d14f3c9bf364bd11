"""Where queries, keys and values lie on a mesh, for kernels under shard_map.

Dims: B batch, T length, N query heads, K key/value heads, H head dim of queries
and keys, V head dim of values.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from model import sharding

Axes = tuple[str, ...] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """Mesh axes of the dims that kernels are mapped over; None: replicated.

  Attributes:
    rows: Of B.
    heads: Of N.
    kv_heads: Of K.
    num_local_heads: Query heads of a device.
  """

  rows: Axes
  heads: Axes
  kv_heads: Axes
  num_local_heads: int


def split(
  q_BTNH: Float[Array, "B T N H"],
  k_BSKH: Float[Array, "B S K H"],
  v_BSKV: Float[Array, "B S K V"],
) -> tuple[jax.Array, jax.Array, Layout]:
  """Keys and values, of as many heads as can be split, and where all lies."""
  num_heads, num_kv_heads = q_BTNH.shape[2], k_BSKH.shape[2]
  heads = sharding.axes_of("N", num_heads)
  kv_heads = sharding.axes_of("K", num_kv_heads)
  if kv_heads != heads and num_kv_heads > 1:
    # A device's query heads would not start at a multiple of N/K.
    repeats = num_heads // num_kv_heads
    k_BSKH = jnp.repeat(k_BSKH, repeats, axis=2)
    v_BSKV = jnp.repeat(v_BSKV, repeats, axis=2)
    kv_heads = heads
  mesh = jax.sharding.get_abstract_mesh()
  layout = Layout(
    rows=sharding.axes_of("B", q_BTNH.shape[0]),
    heads=heads,
    kv_heads=kv_heads,
    num_local_heads=num_heads
    // math.prod(mesh.shape[axis] for axis in heads or ()),
  )
  return k_BSKH, v_BSKV, layout
