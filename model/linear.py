"""Matrix products with weights, and a weight gradient in the right shape.

Automatic differentiation forms the gradient of a weight as (g^T x)^T. XLA for
CPUs folds that transpose into a dot whose two operands are both transposed,
for which it has no fast kernel: in bfloat16 it takes 21 times, in float32 twice
the time of x^T g, which is the same numbers (linear_benchmark.py, a Zen 5 CPU).
`project` says x^T g.

For serving, a weight may be `Int8` in place of an array (8 bits for each number
and a scale for each output) or `Split` in pieces. A parameter may hold any, and
nothing but this module and kernels/grouped_matmul.py looks inside.
"""

import dataclasses
import functools
import math
import types
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from model import target


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["values", "scale"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Int8:
  """A weight in 8 bits; there is no gradient.

  Attributes:
    values: The weight over its scale. Dims of the output come first, then those
      that are summed over, each in the weight's order: q_DNH is [N, H, D].
    scale: Of each output, float32.
  """

  values: Int[Array, "..."]
  scale: Float[Array, "..."]

  def __getitem__(self, index: types.EllipsisType) -> "Int8":
    """As a parameter's `[...]`."""
    assert index is ...
    return self


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=["parts"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
  """A weight in pieces of its last dim, which is one of the output's.

  XLA for CPUs multiplies a single row on one core, but independent products at
  the same time.

  Attributes:
    parts: One beside the other.
  """

  parts: tuple[jax.Array, ...]

  def __getitem__(self, index: types.EllipsisType) -> "Split":
    """As a parameter's `[...]`."""
    assert index is ...
    return self


Weight = jax.Array | Int8 | Split


def split(weight: jax.Array, num_parts: int) -> Split:
  """`weight` in `num_parts` equal pieces."""
  return Split(parts=tuple(jnp.split(weight, num_parts, axis=-1)))


def quantize(
  weight: jax.Array, *, summed: tuple[int, ...], stacked: int = 0
) -> Int8:
  """The nearest `Int8`: the largest weight of an output becomes 127.

  Args:
    weight: In any float dtype.
    summed: Its dims that products sum over.
    stacked: Leading dims that stay in front: of layers, of experts.
  """
  kept = [d for d in range(stacked, weight.ndim) if d not in summed]
  largest = jnp.max(jnp.abs(weight), axis=summed, keepdims=True)
  scale = largest.astype(jnp.float32) / 127
  values = jnp.round(
    weight.astype(jnp.float32) / jnp.where(scale == 0, 1, scale)
  )
  return Int8(
    # Transposed last, in 8 bits: no copy of the weight in float32 exists.
    values=jnp.transpose(
      values.astype(jnp.int8), (*range(stacked), *kept, *sorted(summed))
    ),
    scale=jnp.squeeze(scale, axis=summed),
  )


def cast(
  weight: jax.Array | Int8, dtype: jax.typing.DTypeLike
) -> jax.Array | Int8:
  """`weight` in that dtype; what is in 8 bits stays so."""
  return weight if isinstance(weight, Int8) else weight.astype(dtype)


def specs(weight: jax.Array | Int8, spec: P, *, summed: tuple[int, ...]) -> Any:
  """For each array of `weight` the spec that puts it where an array's does.

  Args:
    weight: An array, or `quantize` of one.
    spec: The array's, as long as it has dims.
    summed: Its dims that products sum over.
  """
  if not isinstance(weight, Int8):
    return spec
  kept = [d for d in range(len(spec)) if d not in summed]
  parts: dict[str, Any] = {
    "values": P(*(spec[d] for d in (*kept, *sorted(summed)))),
    "scale": P(*(spec[d] for d in kept)),
  }
  return dataclasses.replace(weight, **parts)


def project(spec: str, x: jax.Array, weight: Weight) -> jax.Array:
  """einsum of activations with a weight, such as "BTD,DNH->BTNH".

  Args:
    spec: einsum of two operands; each letter must appear in two of the three
      places, so that both gradients are einsums again.
    x: Activations; their dtype is the product's.
    weight: The weight, in any float dtype, or in 8 bits.
  """
  if isinstance(weight, Split):
    parts = [project(spec, x, part) for part in weight.parts]
    return jnp.concatenate(parts, axis=-1)
  if isinstance(weight, Int8):
    return _project_int8(spec, x, weight).astype(x.dtype)
  return _of_rows(spec, x, functools.partial(_project, spec), weight)


def project_float32(spec: str, x: jax.Array, weight: Weight) -> jax.Array:
  """`project`, not rounded to the dtype of the activations: for logits."""
  if isinstance(weight, Int8):
    return _project_int8(spec, x, weight)
  if isinstance(weight, Split):
    parts = [project_float32(spec, x, part) for part in weight.parts]
    return jnp.concatenate(parts, axis=-1)

  def product(x, weight):
    return jnp.einsum(
      spec, x, weight.astype(x.dtype), preferred_element_type=jnp.float32
    )

  return _of_rows(spec, x, product, weight)


def take(
  table: jax.Array | Int8, index: jax.Array, dtype: jax.typing.DTypeLike
) -> jax.Array:
  """Rows of an embedding table [V, D]."""
  if isinstance(table, Int8):
    rows = table.values[index].astype(jnp.float32)
    return (rows * table.scale[index][..., None]).astype(dtype)
  return table.astype(dtype)[index]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _project(spec: str, x: jax.Array, weight: jax.Array) -> jax.Array:
  return jnp.einsum(_in_order(spec), x, weight.astype(x.dtype))


def _in_order(spec: str) -> str:
  """`spec` with summed letters renamed to ascend as the weight has them.

  einsum sums over letters in alphabetical order, and where that is not how they
  lie in the weight (o_NHD), XLA for CPUs copies the weight first.
  """
  _, weight_dims, out_dims = _dims(spec)
  summed = "".join(d for d in weight_dims if d not in out_dims)
  return spec.translate(str.maketrans(summed, "".join(sorted(summed))))


def _forward(spec, x, weight):
  return _project(spec, x, weight), (x, weight)


def _backward(spec, residuals, grad):
  x, weight = residuals
  x_dims, weight_dims, out_dims = _dims(spec)
  d_x = jnp.einsum(
    f"{out_dims},{weight_dims}->{x_dims}", grad, weight.astype(x.dtype)
  )
  d_weight = jnp.einsum(f"{x_dims},{out_dims}->{weight_dims}", x, grad)
  return d_x, d_weight.astype(weight.dtype)


_project.defvjp(_forward, _backward)


def _dims(spec: str) -> tuple[str, str, str]:
  """The letters of activations, weight and output."""
  operands, out = spec.split("->")
  x, weight = operands.split(",")
  return x, weight, out


def _of_rows(spec, x, product, weight):
  """product(x, weight), of a single row as of two on CPUs.

  XLA for CPUs multiplies a vector with a matrix that is not float32 by a naive
  loop, a dozen times slower than two rows (linear_benchmark.py).
  """
  num_rows = math.prod(
    size
    for size, dim in zip(x.shape, _dims(spec)[0], strict=True)
    if dim not in _dims(spec)[1]
  )
  if num_rows > 1 or x.dtype == jnp.float32 or not _is_on_cpu():
    return product(x, weight)
  return _first(product(_twice(x), weight))


# Barriers, lest XLA finds out that only one row is wanted.
def _twice(x: Float[Array, "1 ..."]) -> Float[Array, "2 ..."]:
  return jax.lax.optimization_barrier(jnp.concatenate([x, x]))


def _first(x: jax.Array) -> jax.Array:
  return jax.lax.optimization_barrier(x)[:1]


def _project_int8(spec: str, x: jax.Array, weight: Int8) -> jax.Array:
  """The product in float32.

  On CPUs activations are rounded to 8 bits as well, with a scale of each row,
  and summed up as integers: their matrix instructions take both or none, and
  making floats of the weights takes ten times as long as to multiply them.
  """
  x_dims, weight_dims, out_dims = _dims(spec)
  if set(x_dims) & set(weight_dims) & set(out_dims):
    return _project_int8_by_head(spec, x, weight)
  kept = [d for d in weight_dims if d in out_dims]
  summed = [d for d in weight_dims if d not in out_dims]
  # The rows' dims first, then what is summed over; the output likewise.
  rows = x_dims[: len(x_dims) - len(summed)]
  assert x_dims == rows + "".join(summed), spec
  assert out_dims == rows + "".join(kept), spec
  shape = x.shape[: len(rows)]
  outputs = weight.scale.shape
  x = x.reshape(math.prod(shape), -1)
  values = weight.values.reshape(math.prod(outputs), -1)
  if _is_on_cpu():
    product = _multiply_int8(x.astype(jnp.float32), values)
  else:
    product = jnp.einsum(
      "MI,OI->MO",
      x,
      values.astype(x.dtype),
      preferred_element_type=jnp.float32,
    )
  product *= weight.scale.reshape(-1)
  return product.reshape(*shape, *outputs)


def _project_int8_by_head(spec: str, x: jax.Array, weight: Int8) -> jax.Array:
  """Each head's rows times its own matrix: k_up_CNH or v_up_CNH, absorbed.

  Both are quantized for sums over their first dim, so [N, H, C] with a scale
  for N and H. Where H is summed over instead, the rows are scaled beforehand.
  """
  x_dims, weight_dims, out_dims = _dims(spec)
  stored = weight_dims[1:] + weight_dims[0]
  assert len(stored) == 3 and x_dims[:-1] == out_dims[:-1], spec
  scales_rows = x_dims[-1] != stored[-1]
  dtype = x.dtype
  if scales_rows:
    x = x.astype(jnp.float32) * weight.scale
  product = functools.partial(jnp.einsum, f"{x_dims},{stored}->{out_dims}")
  if _is_on_cpu():
    is_single = math.prod(x.shape[:-2]) == 1
    if is_single:  # As in `_of_rows`.
      x = _twice(x)
    rounded, scale = _round_rows(x.astype(jnp.float32))
    out = product(rounded, weight.values, preferred_element_type=jnp.int32)
    out = out.astype(jnp.float32) * scale
    out = _first(out) if is_single else out
  else:
    out = product(
      x.astype(dtype),
      weight.values.astype(dtype),
      preferred_element_type=jnp.float32,
    )
  return out if scales_rows else out * weight.scale


def _round_rows(x: Float[Array, "... I"]) -> tuple[jax.Array, jax.Array]:
  """x in 8 bits, and the scale of each row [..., 1]."""
  scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 127
  rounded = jnp.round(x / jnp.where(scale == 0, 1, scale))
  return rounded.astype(jnp.int8), scale


def _multiply_int8(
  x: Float[Array, "M I"], values: Int[Array, "O I"]
) -> Float[Array, "M O"]:
  """x^T values, x in 8 bits too."""
  is_single = x.shape[0] == 1
  if is_single:  # As in `_of_rows`.
    x = _twice(x)
  rounded, scale = _round_rows(x)
  product = jnp.einsum(
    "MI,OI->MO", rounded, values, preferred_element_type=jnp.int32
  )
  product = product.astype(jnp.float32) * scale
  return _first(product) if is_single else product


def _is_on_cpu() -> bool:
  return target.platform() == "cpu"
