"""The order in which a sequence lies on the mesh axis `context`.

Causal attention gives later tokens more to do: of a sequence cut into C equal
shards in its own order, the last has 2 C - 1 times the work of the first. Cut
into 2 C chunks, of which shard i has the i-th and the i-th last, all have the
same (Llama 3, arXiv:2407.21783, 3.3.2).

  C = 4   shard     0      1      2      3
          chunks   0 7    1 6    2 5    3 4

`apply` is for tokens, before they are embedded; `undo` for activations, after
the last block. All between them is the same for any order, but attention, which
is told (kernels/attention_context.py).

Dims: B batch, T length, C shards of the sequence.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from model import sharding

# `natural`: shard i has the i-th piece.
Order = Literal["natural", "zigzag"]


def chunks(num_shards: int) -> list[int]:
  """The chunks as they lie, those of shard 0 first."""
  last = 2 * num_shards - 1
  return [c for i in range(num_shards) for c in (i, last - i)]


def places(length: int, num_shards: int) -> np.ndarray:
  """Of each token as they lie, its place in the sequence [T]."""
  return (
    np.arange(length, dtype=np.int32)
    .reshape(2 * num_shards, -1)[chunks(num_shards)]
    .reshape(-1)
  )


def order_of(length: int, num_shards: int, order: Order) -> np.ndarray:
  """`places`, of any order."""
  if order == "natural":
    return np.arange(length, dtype=np.int32)
  return places(length, num_shards)


def divides(length: int, num_shards: int) -> bool:
  """Whether a sequence of this length can be so cut."""
  return length % (2 * num_shards) == 0


def apply(x: jax.Array, num_shards: int) -> jax.Array:
  """[B, T, ...] from its own order to zigzag."""
  return jnp.take(x, places(x.shape[1], num_shards), axis=1)


def undo(x: jax.Array) -> jax.Array:
  """Activations [B, T, ...] from zigzag to their own order, sharded alike.

  Each shard has one chunk of even and one of odd number and gets one of each:
  two permutations of chunks, each at the same time on all shards.
  """
  num_shards = sharding.num_context_shards()
  if num_shards == 1:
    return x
  spec = P(sharding.axes_of("B", x.shape[0]), sharding.axes_of("T", x.shape[1]))
  lies = chunks(num_shards)
  moves = [
    [(lies.index(c) // 2, c // 2) for c in range(parity, 2 * num_shards, 2)]
    for parity in (0, 1)
  ]

  def on_device(x):
    first, second = jnp.split(x, 2, axis=1)
    is_even = jax.lax.axis_index(sharding.CONTEXT) % 2 == 0
    pieces = (
      jnp.where(is_even, first, second),
      jnp.where(is_even, second, first),
    )
    return jnp.concatenate(
      [
        jax.lax.ppermute(piece, sharding.CONTEXT, move)
        for piece, move in zip(pieces, moves, strict=True)
      ],
      axis=1,
    )

  return jax.shard_map(
    on_device, in_specs=spec, out_specs=spec, check_vma=False
  )(x)
