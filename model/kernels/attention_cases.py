"""What the tests of attention try: options, and operands for them.

Dims: B batch, T query length, S key length, N query heads, K key/value heads,
H head dim of queries and keys, V head dim of values.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

BATCH = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """Shapes and options of a call.

  Attributes:
    num_heads: N.
    num_kv_heads: K.
    head_dim: H.
    value_dim: V.
    segments: Three segments per row, not one.
    cache: Queries at the end of twice as many slots, some of them empty; the
      last query of the last row sees nothing.
    scale: As attend's, so are the next two.
    window: Of keys.
    softcap: Of scores.
    sinks: Whether there are any.
  """

  num_heads: int = 4
  num_kv_heads: int = 2
  head_dim: int = 8
  value_dim: int = 8
  segments: bool = False
  cache: bool = False
  scale: float | None = None
  window: int | None = None
  softcap: float | None = None
  sinks: bool = False

  @property
  def options(self) -> dict[str, Any]:
    """Arguments of attend that are no arrays."""
    return {
      "scale": self.head_dim**-0.5 if self.scale is None else self.scale,
      "window": self.window,
      "softcap": self.softcap,
    }


_ALL = Case(
  num_heads=6,
  value_dim=4,
  segments=True,
  scale=0.3,
  window=19,
  softcap=1.5,
  sinks=True,
)
SELF = {
  "causal": Case(),
  "segments_multi_head": Case(num_kv_heads=4, segments=True),
  "window_multi_query": Case(num_heads=3, num_kv_heads=1, window=7),
  "softcap": Case(softcap=1.0),
  "sinks": Case(sinks=True),
  "wide_values": Case(head_dim=4, scale=1.0, segments=True),
  "all": _ALL,
}
CACHE = {
  "cache": Case(cache=True),
  "cache_all": dataclasses.replace(_ALL, cache=True),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operands:
  """The arrays of a call; `arrays` are q, k, v, sinks (or None)."""

  arrays: tuple[Any, ...]
  cotangent: jax.Array
  q_segment_ids: jax.Array
  k_segment_ids: jax.Array
  q_start: Any


def operands(case: Case, length: int, dtype: str = "float32") -> Operands:
  """Random arrays of T = `length`; in a cache, S = 2 T."""
  rng = np.random.default_rng(length)

  def normal(*shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape), dtype)

  num_keys = 2 * length if case.cache else length
  arrays = (
    normal(BATCH, length, case.num_heads, case.head_dim),
    normal(BATCH, num_keys, case.num_kv_heads, case.head_dim),
    normal(BATCH, num_keys, case.num_kv_heads, case.value_dim),
    normal(case.num_heads).astype(jnp.float32) if case.sinks else None,
  )
  cotangent = normal(BATCH, length, case.num_heads, case.value_dim)
  ids = np.ones((BATCH, length), np.int32)
  if case.segments:
    ends = np.sort(rng.integers(0, length, size=(BATCH, 2, 1)), axis=1)
    ids += (np.arange(length) >= ends).sum(1)
  if not case.cache:
    ids = jnp.asarray(ids)
    return Operands(
      arrays=arrays,
      cotangent=cotangent,
      q_segment_ids=ids,
      k_segment_ids=ids,
      q_start=0,
    )
  start = np.array([length // 3, length], np.int32)
  slots = np.zeros((BATCH, num_keys), np.int32)
  for row, first in enumerate(start):
    # Slots before the queries belong to the first segment, those after none.
    slots[row, 2:first] = ids[row, 0]
    slots[row, first : first + length] = ids[row]
  ids[-1, -1] = 100
  return Operands(
    arrays=arrays,
    cotangent=cotangent,
    q_segment_ids=jnp.asarray(ids),
    k_segment_ids=jnp.asarray(slots),
    q_start=jnp.asarray(start),
  )


def value_and_gradients(
  function: Callable[..., jax.Array], given: Operands
) -> list[jax.Array]:
  """The output and the gradients of q, k, v and, if given, sinks.

  Args:
    function: (q, k, v, sinks_N=, q_segment_ids=, k_segment_ids=, q_start=) ->
      out.
    given: Its arguments.
  """

  @jax.jit
  def run(arrays, cotangent, q_segment_ids, k_segment_ids, q_start):
    if isinstance(given.q_start, int):
      q_start = given.q_start

    def attend(q, k, v, sinks):
      return function(
        q,
        k,
        v,
        sinks_N=sinks,
        q_segment_ids=q_segment_ids,
        k_segment_ids=k_segment_ids,
        q_start=q_start,
      )

    out, pull_back = jax.vjp(attend, *arrays)
    return out, pull_back(cotangent)

  return jax.tree.leaves(
    run(
      given.arrays,
      given.cotangent,
      given.q_segment_ids,
      given.k_segment_ids,
      given.q_start,
    )
  )
