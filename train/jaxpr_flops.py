"""FLOPs of matrix products that a traced program does, recomputation included.

XLA's own count takes the body of a loop once, however often it runs, and knows
nothing of Pallas kernels. Here a scan's body counts as often as it runs, and a
shard_map's once per device.

All devices together; what each of several devices computes alike (work that is
replicated over an axis) counts once. Of branches, the costliest counts. A loop
whose length is not known before it runs counts once.
"""

from collections.abc import Iterator
import math
from typing import Any

from jax.extend import core


def count(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> float:
  """FLOPs of the products in `jaxpr`, a multiply-add being two."""
  if isinstance(jaxpr, core.ClosedJaxpr):
    jaxpr = jaxpr.jaxpr
  return sum((_equation(equation) for equation in jaxpr.eqns), 0.0)


def _equation(equation: core.JaxprEqn) -> float:
  params = equation.params
  match equation.primitive.name:
    case "dot_general":
      (contracting, _), _ = params["dimension_numbers"]
      lhs, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
      return 2.0 * math.prod(out) * math.prod(lhs[dim] for dim in contracting)
    case "ragged_dot" | "ragged_dot_general":
      return _ragged_dot(equation)
    case "pallas_call":
      return _pallas_call(equation)
    case "scan":
      return params["length"] * count(params["jaxpr"])
    case "cond":
      return max(count(branch) for branch in params["branches"])
    case "shard_map":
      shape = params["mesh"].shape
      num = math.prod(shape[axis] for axis in params["newly_manual_axes"])
      return num * count(params["jaxpr"])
  return sum(map(count, _inner(params)), 0.0)


def _shape(var: Any) -> tuple[int, ...]:
  return var.aval.shape


def _inner(params: dict[str, Any]) -> Iterator[Any]:
  """The jaxprs among an equation's parameters."""
  for value in params.values():
    for item in value if isinstance(value, list | tuple) else (value,):
      if isinstance(item, core.Jaxpr | core.ClosedJaxpr):
        yield item


def _ragged_dot(equation: core.JaxprEqn) -> float:
  """Each row of lhs meets one group's matrix, or none."""
  lhs, rhs = (_shape(var) for var in equation.invars[:2])
  numbers = equation.params["ragged_dot_dimension_numbers"]
  (_, contracting), (_, batch) = numbers.dot_dimension_numbers
  used = {*contracting, *batch, *numbers.rhs_group_dimensions}
  free = math.prod(size for dim, size in enumerate(rhs) if dim not in used)
  return 2.0 * math.prod(lhs) * free


def _pallas_call(equation: core.JaxprEqn) -> float:
  """A kernel that says what it costs is believed; else its grid counts."""
  estimate = equation.params["cost_estimate"]
  if estimate is not None:
    return float(estimate.flops)
  mapping = equation.params["grid_mapping"]
  body = count(equation.params["jaxpr"])
  return body * math.prod(mapping.grid) * _visited(equation)


def _visited(equation: core.JaxprEqn) -> float:
  """The share of a splash attention kernel's grid that it computes.

  Its grid has all blocks of scores, of which causal attention skips those above
  the diagonal. With a window the forward pass's grid is only as wide as that,
  and all of it counts; what the backward pass skips for it is not seen here.
  """
  if not str(equation.params["name"]).startswith("splash_"):
    return 1.0
  mapping = equation.params["grid_mapping"]
  queries, keys = mapping.block_mappings[:2]
  num_q, num_kv = _num_blocks(queries), _num_blocks(keys)
  num_rows = math.prod(queries.array_aval.shape[:-2])
  if math.prod(mapping.grid) < num_rows * num_q * num_kv:
    return 1.0
  visited = sum(
    (q + 1) * num_kv > kv * num_q for q in range(num_q) for kv in range(num_kv)
  )
  return visited / (num_q * num_kv)


def _num_blocks(block: Any) -> int:
  """Along the length of [..., T, H]."""
  return block.array_aval.shape[-2] // block.block_shape[-2].block_size
