"""What a model remembers of a text: the cache of its mixers' states.

A cache has room for S tokens of each of B rows. A row's tokens lie in its first
`lengths` slots without gaps, so rows may be of different lengths; what lies
behind them is free. Tokens are given in a block of T per row, right-padded with
segment id 0: padding is written too, but counts as free.

Each mixer says what it keeps (`state`): attention its keys and values, latent
attention the latent and the rotated key, linear attention a matrix.

Dims: B rows, T new tokens, S slots, L layers.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["layers", "segment_ids", "lengths"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache:
  """All that is kept between calls of a model.

  Attributes:
    layers: By group and block, the mixers' states, stacked over L.
    segment_ids: What each slot holds; 0 where it is free [B, S].
    lengths: Tokens in each row [B].
  """

  layers: dict[str, dict[str, Any]]
  segment_ids: Int[Array, "B S"]
  lengths: Int[Array, "B"]


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["positions", "segment_ids", "start", "key_segment_ids"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
  """Where the tokens of one call stand.

  Attributes:
    positions: Of each token in its document, for RoPE [B, T].
    segment_ids: Tokens see only tokens of equal id; 0 is padding [B, T].
    start: The slot of each row's first token [B]; 0 without a cache.
    key_segment_ids: Of all slots, the new tokens' among them [B, S]; without a
      cache `segment_ids`.
  """

  positions: Int[Array, "B T"]
  segment_ids: Int[Array, "B T"]
  start: Int[Array, "B"] | int
  key_segment_ids: Int[Array, "B S"]


def write(slots: Array, new: Array, start: Int[Array, "B"] | int) -> Array:
  """`slots` [B, S, ...] with `new` [B, T, ...] at each row's start.

  What would lie beyond the last slot is dropped; it can only be padding.
  """
  rows, length = new.shape[:2]
  row = jnp.arange(rows)[:, None]
  slot = jnp.broadcast_to(start, (rows,))[:, None] + jnp.arange(length)
  return slots.at[row, slot].set(new.astype(slots.dtype), mode="drop")


def span(
  cache: Cache | None,
  *,
  positions: Int[Array, "B T"] | None,
  segment_ids: Int[Array, "B T"] | None,
  shape: tuple[int, int],
) -> Span:
  """The span of a block of tokens of `shape` [B, T] behind `cache`.

  Without `segment_ids` all tokens are of one segment; without `positions` they
  follow each other from the row's length on.
  """
  if segment_ids is None:
    segment_ids = jnp.ones(shape, jnp.int32)
  start = 0 if cache is None else cache.lengths
  if positions is None:
    first = jnp.broadcast_to(start, (shape[0],))[:, None]
    positions = first + jnp.arange(shape[1])
  key_segment_ids = segment_ids
  if cache is not None:
    key_segment_ids = write(cache.segment_ids, segment_ids, start)
  return Span(
    positions=positions,
    segment_ids=segment_ids,
    start=start,
    key_segment_ids=key_segment_ids,
  )


def advance(
  cache: Cache, span: Span, layers: dict[str, dict[str, Any]]
) -> Cache:
  """The cache after a call: new states, and lengths without the padding."""
  num_new = jnp.sum(span.segment_ids > 0, axis=1, dtype=jnp.int32)
  return Cache(
    layers=layers,
    segment_ids=span.key_segment_ids,
    lengths=cache.lengths + num_new,
  )
