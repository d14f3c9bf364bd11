"""What a model remembers of a text: the cache of its mixers' states.

A `Cache` has room for S tokens of each of B rows. A row's tokens lie in its
first `lengths` slots without gaps, so rows may be of different lengths; what
lies behind them is free. Tokens are given in a block of T per row, right-padded
with segment id 0: padding is written too, but counts as free.

Each mixer says what it keeps (`state`): attention its keys and values, latent
attention the latent and the rotated key, linear attention a matrix.

A `PagedCache` is a server's: memory is cut into pages of S tokens that texts
take as they grow (arXiv:2309.06180), and a table says which page holds which
part of a text. A call is for any B of the texts. What grows with a text lies in
pages (`pages` of a mixer), what does not in rows: both in dicts whose keys end
in the letters of the arrays' dims, as parameters' names do (`k_PKSH`). Donate
the layers to jit, and they are updated in place; not so on CPUs if a dim but
the first is 1, as XLA mixes up their layouts: there is no K of one head.

Dims: B rows, T new tokens, S slots (of a page: tokens), P pages, L layers,
K key/value heads, N value heads, H head dim.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any, overload

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from model import zigzag

# The page that padding is written to, and that stands for what is forgotten.
NULL_PAGE = 0
# The key in `PagedCache.tables` of attention that has no window.
NO_WINDOW = 0
# The mesh axis of each dim of what is kept; of the others none.
_PAGE_RULES = {"K": "tensor", "N": "tensor"}


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
  data_fields=["layers", "tables", "start", "rows", "length"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class PagedCache:
  """All that is kept of many texts, and where B of them have it.

  A row is one text; all its tokens are of one segment.

  Attributes:
    layers: By group and block, the mixers' pages and rows, stacked over L.
    tables: By window (`NO_WINDOW`: none), the page of each piece of a text, by
      the piece's place in it [B, P]. Pieces that a window has left behind, and
      those that are not reached, may be `NULL_PAGE`.
    start: Tokens of each text that are in the pages [B].
    rows: Where a text's recurrent states lie [B]; 0 is the row of padding.
    length: Tokens of the whole text so far, of which LongRoPE's factors depend
      [B]: more than `start` where a text is computed piece by piece.
  """

  layers: dict[str, dict[str, Any]]
  tables: dict[int, Int[Array, "B P"]]
  start: Int[Array, "B"]
  rows: Int[Array, "B"]
  length: Int[Array, "B"]


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["tables", "rows", "length"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
  """Where a call's rows have their pages and rows: as in `PagedCache`."""

  tables: dict[int, Int[Array, "B P"]]
  rows: Int[Array, "B"]
  length: Int[Array, "B"]

  def table(self, window: int | None) -> Int[Array, "B P"]:
    """Of attention with this window."""
    return self.tables[NO_WINDOW if window is None else window]


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=[
    "positions",
    "segment_ids",
    "start",
    "key_segment_ids",
    "places",
  ],
  meta_fields=["order", "measures_logits"],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
  """Where the tokens of one call stand.

  Attributes:
    positions: Of each token in its document, for RoPE [B, T].
    segment_ids: Tokens see only tokens of equal id; 0 is padding [B, T].
    start: The slot of each row's first token [B]; 0 without a cache.
    key_segment_ids: Of all slots, the new tokens' among them [B, S]; without a
      cache, and with pages, `segment_ids`.
    places: Of a paged cache; else unset.
    order: How tokens without a cache lie on the mesh axis `context`.
    measures_logits: Without a cache, attention's state after the call is the
      largest logit of each head, "max_logit_N".
  """

  positions: Int[Array, "B T"]
  segment_ids: Int[Array, "B T"]
  start: Int[Array, "B"] | int
  key_segment_ids: Int[Array, "B S"]
  places: Places | None = None
  order: zigzag.Order = "natural"
  measures_logits: bool = False

  @property
  def length(self) -> Int[Array, "B"] | None:
    """Of each whole text, where it is known: with pages."""
    return None if self.places is None else self.places.length


def write(slots: Array, new: Array, start: Int[Array, "B"] | int) -> Array:
  """`slots` [B, S, ...] with `new` [B, T, ...] at each row's start.

  What would lie beyond the last slot is dropped; it can only be padding.
  """
  rows, length = new.shape[:2]
  row = jnp.arange(rows)[:, None]
  slot = jnp.broadcast_to(start, (rows,))[:, None] + jnp.arange(length)
  return slots.at[row, slot].set(new.astype(slots.dtype), mode="drop")


def write_pages(
  pages: Mapping[str, Array],
  new: Mapping[str, Array],
  *,
  span: Span,
  window: int | None = None,
) -> dict[str, Array]:
  """`pages` with the span's new tokens in them, padding on the null page.

  Args:
    pages: By name; a name's letters begin with P, and S is one of them.
    new: For each of them [B, T, ...], what remains of the dims in their order.
    span: Where the tokens stand.
    window: Of the attention whose pages they are.
  """
  assert span.places is not None
  table = span.places.table(window)
  place = jnp.reshape(span.start, (-1, 1)) + jnp.arange(
    span.segment_ids.shape[1]
  )
  written = {}
  for name, array in pages.items():
    dims = _dims(name)
    size = array.shape[dims.index("S")]
    piece = place // size
    page = jnp.take_along_axis(table, piece, axis=1, mode="clip")
    is_new = (span.segment_ids > 0) & (piece < table.shape[1])
    page = jnp.where(is_new, page, NULL_PAGE)
    index = {"P": page.reshape(-1), "S": (place % size).reshape(-1)}
    x = new[name].reshape(page.size, *new[name].shape[2:])
    written[name] = constrain(_set(array, dims, index, x), name)
  return written


def write_rows(
  states: Mapping[str, Array], new: Mapping[str, Array], *, span: Span
) -> dict[str, Array]:
  """`states` with each row of the span replaced; names begin with B."""
  assert span.places is not None
  index = {"B": span.places.rows}
  return {
    name: constrain(_set(array, _dims(name), index, new[name]), name)
    for name, array in states.items()
  }


def _set(
  array: Array, dims: str, index: Mapping[str, Int[Array, "N"]], x: Array
) -> Array:
  """`array` with x[n] at the n-th index of the dims in `index`.

  Never fewer than two places: of a scatter to one XLA for CPUs makes another
  operation, for which it copies the whole array.
  """
  if x.shape[0] == 1:
    # The place of padding: page 0, row 0.
    index = {
      d: jnp.concatenate([i, jnp.zeros_like(i)]) for d, i in index.items()
    }
    x = jnp.concatenate([x, x])
  return array.at[tuple(index.get(d, slice(None)) for d in dims)].set(
    x.astype(array.dtype), mode="promise_in_bounds"
  )


def read_rows(states: Mapping[str, Array], *, span: Span) -> dict[str, Array]:
  """Of each state the span's rows [B, ...]."""
  assert span.places is not None
  num = span.places.rows.shape[0]
  # As of writing (`_set`): never fewer than two.
  rows = jnp.pad(span.places.rows, (0, max(0, 2 - num)))
  return {
    name: array.at[rows].get(mode="promise_in_bounds")[:num]
    for name, array in states.items()
  }


def quantize(
  x: Float[Array, "*B H"],
) -> tuple[Int[Array, "*B H"], Float[Array, "*B"]]:
  """x as int8 times a float32 scale: the largest of H becomes 127."""
  x = x.astype(jnp.float32)
  scale = jnp.max(jnp.abs(x), axis=-1) / 127
  inverse = jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1), 0)
  return jnp.round(x * inverse[..., None]).astype(jnp.int8), scale


def page_shardings(
  layers: Any, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh
) -> Any:
  """A NamedSharding for each array of `PagedCache.layers`.

  Heads lie on `tensor` where it divides them; everything else is replicated.
  """

  def one(path, leaf):
    spec = _page_spec(str(path[-1].key), leaf.shape, dict(mesh.shape))
    return jax.sharding.NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(one, layers)


def constrain(x: Array, name: str) -> Array:
  """Pins the layout of what is kept under `name`; a no-op without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  spec = _page_spec(name, x.shape, dict(mesh.shape))
  return jax.lax.with_sharding_constraint(x, spec)


def _page_spec(name: str, shape: tuple[int, ...], axes: dict[str, int]) -> P:
  dims = _dims(name)
  dims = "L" * (len(shape) - len(dims)) + dims
  spec = [
    axis if (axis := _PAGE_RULES.get(d)) and size % axes[axis] == 0 else None
    for d, size in zip(dims, shape, strict=True)
  ]
  # As XLA reports them: equal layouts are then equal.
  while spec and spec[-1] is None:
    spec.pop()
  return P(*spec)


def _dims(name: str) -> str:
  """The letters of the dims of what is kept under `name`."""
  return name.rpartition("_")[2]


def span(
  cache: Cache | PagedCache | None,
  *,
  positions: Int[Array, "B T"] | None,
  segment_ids: Int[Array, "B T"] | None,
  shape: tuple[int, int],
) -> Span:
  """The span of a block of tokens of `shape` [B, T] behind `cache`.

  Without `segment_ids` all tokens are of one segment, as they are in any case
  with pages; without `positions` they follow each other from the row's length
  on.
  """
  if segment_ids is None:
    segment_ids = jnp.ones(shape, jnp.int32)
  start, places = 0, None
  match cache:
    case Cache():
      start = cache.lengths
    case PagedCache():
      start = cache.start
      segment_ids = (segment_ids > 0).astype(jnp.int32)
      places = Places(tables=cache.tables, rows=cache.rows, length=cache.length)
  if positions is None:
    first = jnp.broadcast_to(start, (shape[0],))[:, None]
    positions = first + jnp.arange(shape[1])
  key_segment_ids = segment_ids
  if isinstance(cache, Cache):
    key_segment_ids = write(cache.segment_ids, segment_ids, start)
  return Span(
    positions=positions,
    segment_ids=segment_ids,
    start=start,
    key_segment_ids=key_segment_ids,
    places=places,
  )


@overload
def advance(
  cache: Cache, span: Span, layers: dict[str, dict[str, Any]]
) -> Cache: ...


@overload
def advance(
  cache: PagedCache, span: Span, layers: dict[str, dict[str, Any]]
) -> PagedCache: ...


def advance(cache, span, layers):
  """The cache after a call: new states, and lengths without the padding."""
  num_new = jnp.sum(span.segment_ids > 0, axis=1, dtype=jnp.int32)
  if isinstance(cache, PagedCache):
    start = cache.start + num_new
    return dataclasses.replace(
      cache,
      layers=layers,
      start=start,
      length=jnp.maximum(cache.length, start),
    )
  return Cache(
    layers=layers,
    segment_ids=span.key_segment_ids,
    lengths=cache.lengths + num_new,
  )
