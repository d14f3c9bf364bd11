"""Rows times the matrix of their group, the heart of a mixture of experts.

`reference` is the definition; the others equal it in value and gradient
(grouped_matmul_test.py):

  blocks   A loop over blocks of rows of one group, as many as there are: the
           work of a dense matmul and half a block more per group. What `auto`
           means on CPUs, where XLA's ragged dot multiplies every row with the
           matrix of every group.
  ragged   jax.lax.ragged_dot. What `auto` means elsewhere.
  batched  One batched matmul; all groups must be of M / E rows.

Weights in 8 bits (linear.Int8, a scale per group and output) are multiplied in
`blocks` as linear.project does, which on CPUs rounds the rows to 8 bits too;
elsewhere their values become those of the rows' dtype, and rows of the product
are scaled. There is no gradient.

Dims: M rows sorted by group, E groups (experts), D in, F out.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from model import linear
from model import target

# Narrower blocks starve the matrix units, wider ones waste work on the rows
# that the last block of a group lacks. With but a few rows per group, as when
# decoding, the matrices take longer to read than to multiply, and a block need
# not be wider than a group; but two rows, as a product of a single one is slow.
_MIN_BLOCK = 16
_MIN_BLOCK_OF_FEW = 2
_MAX_BLOCK = 256


def grouped_matmul(
  x_MD: Float[Array, "M D"],
  weight_EDF: Float[Array, "E D F"] | linear.Int8,
  group_sizes_E: Int[Array, "E"],
  *,
  implementation: str = "auto",
) -> Float[Array, "M F"]:
  """x[m] @ weight[group of row m].

  Args:
    x_MD: Rows, those of group 0 first; their dtype is the product's.
    weight_EDF: A matrix per group, in any float dtype, or in 8 bits.
    group_sizes_E: Rows per group, together at most M; the result is 0 for the
      rows after them.
    implementation: `auto`, `reference`, `blocks`, `ragged` or `batched`.
  """
  name = resolve(implementation)
  function = {
    "reference": reference,
    "blocks": blocks,
    "ragged": ragged,
    "batched": batched,
  }[name]
  if not isinstance(weight_EDF, linear.Int8):
    return function(x_MD, weight_EDF, group_sizes_E)
  if name == "blocks":
    return _blocks_int8(x_MD, weight_EDF, group_sizes_E)
  values_EDF = jnp.swapaxes(weight_EDF.values, 1, 2).astype(x_MD.dtype)
  product_MF = function(x_MD, values_EDF, group_sizes_E)
  groups = row_groups(group_sizes_E, x_MD.shape[0])
  scale_MF = weight_EDF.scale.at[groups].get(mode="clip")
  return (product_MF * scale_MF).astype(x_MD.dtype)


def resolve(implementation: str) -> str:
  """What `auto` means on this platform; other names stand for themselves."""
  if implementation != "auto":
    return implementation
  return "blocks" if target.platform() == "cpu" else "ragged"


def row_groups(
  group_sizes_E: Int[Array, "E"], num_rows: int
) -> Int[Array, "M"]:
  """The group of each row; E for those after the last group."""
  ends = jnp.cumsum(group_sizes_E)
  return jnp.searchsorted(ends, jnp.arange(num_rows), side="right")


def reference(x_MD, weight_EDF, group_sizes_E):
  """The definition: every group's product with all rows, masked."""
  groups = row_groups(group_sizes_E, x_MD.shape[0])

  def add(out, group):
    weight_DF, index = group
    product = x_MD @ weight_DF.astype(x_MD.dtype)
    return jnp.where((groups == index)[:, None], product, out), None

  num_groups, _, dim_out = weight_EDF.shape
  out = jnp.zeros((x_MD.shape[0], dim_out), x_MD.dtype)
  return jax.lax.scan(add, out, (weight_EDF, jnp.arange(num_groups)))[0]


def batched(x_MD, weight_EDF, group_sizes_E):
  """Groups of M / E rows each; `group_sizes_E` is taken to say so."""
  del group_sizes_E
  num_groups, dim_in, dim_out = weight_EDF.shape
  x_ECD = x_MD.reshape(num_groups, -1, dim_in)
  out = linear.project("ECD,EDF->ECF", x_ECD, weight_EDF)
  return out.reshape(-1, dim_out)


@jax.custom_vjp
def ragged(x_MD, weight_EDF, group_sizes_E):
  """jax.lax.ragged_dot; which rows it leaves undefined is masked."""
  out = jax.lax.ragged_dot(x_MD, weight_EDF.astype(x_MD.dtype), group_sizes_E)
  return _mask(out, group_sizes_E)


def _mask(x_MD, group_sizes_E):
  is_row = jnp.arange(x_MD.shape[0]) < jnp.sum(group_sizes_E)
  return jnp.where(is_row[:, None], x_MD, 0)


def _ragged_forward(x_MD, weight_EDF, group_sizes_E):
  out = ragged(x_MD, weight_EDF, group_sizes_E)
  return out, (x_MD, weight_EDF, group_sizes_E)


def _ragged_backward(residuals, grad_MF):
  x_MD, weight_EDF, group_sizes_E = residuals
  weight_EFD = jnp.swapaxes(weight_EDF, 1, 2)
  d_x = ragged(grad_MF, weight_EFD, group_sizes_E)
  # x^T g within each group: the ragged dim is the one that is summed over.
  d_weight = jax.lax.ragged_dot_general(
    _mask(x_MD, group_sizes_E),
    _mask(grad_MF, group_sizes_E),
    group_sizes_E,
    jax.lax.RaggedDotDimensionNumbers(
      dot_dimension_numbers=(((0,), (0,)), ((), ())),
      lhs_ragged_dimensions=[0],
      rhs_group_dimensions=[],
    ),
    preferred_element_type=jnp.float32,
  )
  return d_x, d_weight.astype(weight_EDF.dtype), None


ragged.defvjp(_ragged_forward, _ragged_backward)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
  """Blocks of rows, each of one group; in the order of the rows.

  The arrays are as long as the most blocks that there can be.

  Attributes:
    rows: Rows of a block. The last of a group may reach beyond the group's end,
      and beyond the last row: arrays of rows need so many rows of padding.
    count: How many there are.
    group_of: Whose rows they are.
    start_of: Their first row.
    end_of: The end of their group; rows from there on are not the block's.
  """

  rows: int
  count: Int[Array, ""]
  group_of: Int[Array, "I"]
  start_of: Int[Array, "I"]
  end_of: Int[Array, "I"]

  def mask(self, i: Int[Array, ""]) -> Array:
    """Which rows of block `i` are its own [rows, 1]."""
    row = self.start_of[i] + jnp.arange(self.rows)
    return (row < self.end_of[i])[:, None]


def make_blocks(group_sizes_E: Int[Array, "E"], num_rows: int) -> Blocks:
  """Cuts groups of together at most `num_rows` rows into blocks."""
  num_groups = group_sizes_E.shape[0]
  # Half of an even share, so that a group wastes at most as much on average.
  rows = _power_of_two(num_rows // (2 * num_groups))
  least = min(_power_of_two(2 * num_rows // num_groups), _MIN_BLOCK)
  rows = min(max(rows, least, _MIN_BLOCK_OF_FEW), _MAX_BLOCK)
  ends = jnp.cumsum(group_sizes_E)
  num_blocks = (group_sizes_E + rows - 1) // rows
  block_ends = jnp.cumsum(num_blocks)
  index = jnp.arange(num_rows // rows + num_groups)
  group = jnp.searchsorted(block_ends, index, side="right")
  group = jnp.minimum(group, num_groups - 1)
  within = index - (block_ends - num_blocks)[group]
  return Blocks(
    rows=rows,
    count=block_ends[-1],
    group_of=group,
    start_of=(ends - group_sizes_E)[group] + within * rows,
    end_of=ends[group],
  )


def _power_of_two(x: int) -> int:
  """The largest that is not larger; 1 of less than that."""
  return 1 << max(x, 1).bit_length() - 1


def pad_rows(x: jax.Array, blocks: Blocks) -> jax.Array:
  """`x` with so many more rows that every block lies within."""
  return jnp.pad(x, ((0, blocks.rows), *((0, 0),) * (x.ndim - 1)))


@jax.custom_vjp
def blocks(x_MD, weight_EDF, group_sizes_E):
  """A loop over blocks of rows of one group.

  A block's rows beyond its group's end are written as 0 and then overwritten by
  the next group's first block, which begins there.
  """
  return _multiply_blocks(
    x_MD,
    weight_EDF,
    make_blocks(group_sizes_E, x_MD.shape[0]),
    dims="MD,DF->MF",
    dim_out=weight_EDF.shape[2],
  )


def _blocks_int8(x_MD, weight_EDF, group_sizes_E):
  return _multiply_blocks(
    x_MD,
    weight_EDF,
    make_blocks(group_sizes_E, x_MD.shape[0]),
    dims="MD,DF->MF",
    dim_out=weight_EDF.scale.shape[1],
  )


def _multiply_blocks(x, weight, plan, *, dims, dim_out):
  num_rows = x.shape[0]
  padded, weight = pad_rows(x, plan), linear.cast(weight, x.dtype)

  def multiply(i, out):
    start = plan.start_of[i]
    block = jax.lax.dynamic_slice_in_dim(padded, start, plan.rows)
    product = multiply_one(dims, block, take(weight, plan.group_of[i]))
    product = jnp.where(plan.mask(i), product, 0)
    return jax.lax.dynamic_update_slice_in_dim(out, product, start, 0)

  out = jnp.zeros((num_rows + plan.rows, dim_out), x.dtype)
  return jax.lax.fori_loop(0, plan.count, multiply, out)[:num_rows]


def take(weight: jax.Array | linear.Int8, group: jax.Array) -> Any:
  """One group's matrix."""
  return jax.tree.map(lambda a: a[group], weight)


def multiply_one(
  dims: str, x: jax.Array, weight: jax.Array | linear.Int8
) -> jax.Array:
  """einsum of a block's rows with its group's matrix."""
  if isinstance(weight, linear.Int8):
    return linear.project(dims, x, weight)
  return jnp.einsum(dims, x, weight)


def _blocks_forward(x_MD, weight_EDF, group_sizes_E):
  out = blocks(x_MD, weight_EDF, group_sizes_E)
  return out, (x_MD, weight_EDF, group_sizes_E)


def _blocks_backward(residuals, grad_MF):
  x_MD, weight_EDF, group_sizes_E = residuals
  plan = make_blocks(group_sizes_E, x_MD.shape[0])
  d_x = _multiply_blocks(
    grad_MF, weight_EDF, plan, dims="MF,DF->MD", dim_out=x_MD.shape[1]
  )
  x_padded, grad_padded = pad_rows(x_MD, plan), pad_rows(grad_MF, plan)

  def add(i, d_weight):
    start = plan.start_of[i]
    x = jax.lax.dynamic_slice_in_dim(x_padded, start, plan.rows)
    grad = jax.lax.dynamic_slice_in_dim(grad_padded, start, plan.rows)
    # Both: what lies beyond may not be finite, and 0 * inf is not 0.
    x, grad = (jnp.where(plan.mask(i), a, 0) for a in (x, grad))
    product = jnp.einsum(
      "MD,MF->DF", x, grad, preferred_element_type=jnp.float32
    )
    return d_weight.at[plan.group_of[i]].add(product)

  zeros = jnp.zeros(weight_EDF.shape, jnp.float32)
  d_weight = jax.lax.fori_loop(0, plan.count, add, zeros)
  return d_x, d_weight.astype(weight_EDF.dtype), None


blocks.defvjp(_blocks_forward, _blocks_backward)
