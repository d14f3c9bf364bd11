"""The experts of a mixture: each token through its few MLPs, and their sum.

A (token, choice) pair is a row; rows are sorted by expert (`make_rows`). Two
ways, equal in value and gradient (grouped_mlp_test.py):

  blocks  One loop over blocks of rows of one expert: gather the block's tokens,
          multiply, scatter the weighted result to the tokens. No array of
          [M, D] exists. What `auto` means on CPUs.
  others  Gather all rows, three grouped matmuls of that implementation
          (grouped_matmul.py), gather the results back to the tokens.

A row's weight multiplies its hidden units, not its output: so the gradient of
the weight needs no output of an expert.

Matrices may be in 8 bits, multiplied as grouped_matmul.py says; without
gradients then.

Dims: N tokens, K choices of a token, M rows, D model, E experts,
F feed-forward of one expert.
"""

from collections.abc import Callable
import dataclasses
import functools

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from model import linear
from model.kernels import grouped_matmul

# Hidden units before the nonlinearity, under this name for jax.checkpoint's
# policies; all else that the backward pass of an MLP needs is its input.
HIDDEN = "grouped_mlp_hidden"
# The order of the rows.
ORDER = "grouped_mlp_order"

# (gate, up) -> hidden units, elementwise.
Activation = Callable[[jax.Array, jax.Array], jax.Array]


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["gate", "up", "down", "gate_bias", "up_bias", "down_bias"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Experts:
  """Parameters: down(activation(gate(x), up(x))); all biases or none.

  All matrices in 8 bits or none.
  """

  gate: Float[Array, "E D F"] | linear.Int8
  up: Float[Array, "E D F"] | linear.Int8
  down: Float[Array, "E F D"] | linear.Int8
  gate_bias: Float[Array, "E F"] | None = None
  up_bias: Float[Array, "E F"] | None = None
  down_bias: Float[Array, "E D"] | None = None


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["token", "weight", "row", "group_sizes"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
  """Which token each row is, sorted by expert.

  Attributes:
    token: The token of each row.
    weight: The row's share in its token's output, float32.
    row: The row of each choice of each token; M or more: it has none.
    group_sizes: Rows per expert; rows after them count for nothing.
  """

  token: Int[Array, "M"]
  weight: Float[Array, "M"]
  row: Int[Array, "N K"]
  group_sizes: Int[Array, "E"]


def make_rows(
  expert_NK: Int[Array, "N K"],
  weight_NK: Float[Array, "N K"],
  *,
  num_experts: int,
  num_rows: int | None = None,
) -> Rows:
  """Sorts choices by expert; those of one expert stay in the tokens' order.

  Args:
    expert_NK: Chosen experts; `num_experts` or more is none.
    weight_NK: Their weights.
    num_experts: E.
    num_rows: M, at least the number of choices that are of an expert; N K if
      not given.
  """
  num_choices = expert_NK.shape[1]
  expert = jnp.minimum(expert_NK.reshape(-1), num_experts)
  order = jnp.argsort(expert, stable=True)
  row = (
    jnp.zeros_like(order)
    .at[order]
    .set(jnp.arange(order.size), unique_indices=True)
  )
  sizes = jnp.bincount(expert, length=num_experts + 1)[:num_experts]
  order, row, sizes = (
    checkpoint_name(x, ORDER) for x in (order[:num_rows], row, sizes)
  )
  return Rows(
    token=order // num_choices,
    weight=weight_NK.reshape(-1)[order],
    row=row.reshape(expert_NK.shape),
    group_sizes=sizes,
  )


def grouped_mlp(
  x_ND: Float[Array, "N D"],
  experts: Experts,
  rows: Rows,
  *,
  activation: Activation,
  implementation: str = "auto",
) -> Float[Array, "N D"]:
  """For each token the weighted sum of its experts' outputs.

  Args:
    x_ND: Tokens; their dtype is that of the products and of the result. A
      token's results are added in float32.
    experts: In any float dtype, or in 8 bits.
    rows: As `make_rows` gives them.
    activation: Elementwise; one object for one function, as jit asks for.
    implementation: As grouped_matmul's.
  """
  if grouped_matmul.resolve(implementation) == "blocks":
    if isinstance(experts.gate, linear.Int8):
      return _blocks_int8(x_ND, experts, rows, activation)
    return _blocks(x_ND, experts, rows.weight, rows, activation)
  hidden_rows = dispatch(x_ND, rows)
  out_MD = mlp_of_rows(
    hidden_rows,
    experts,
    rows.weight,
    rows.group_sizes,
    activation=activation,
    implementation=implementation,
  )
  return combine(out_MD, rows)


def mlp_of_rows(
  x_MD: Float[Array, "M D"],
  experts: Experts,
  weight_M: Float[Array, "M"],
  group_sizes_E: Int[Array, "E"],
  *,
  activation: Activation,
  implementation: str,
) -> Float[Array, "M D"]:
  """Each row through its expert, times its weight; 0 after the last group."""
  multiply = functools.partial(
    grouped_matmul.grouped_matmul,
    group_sizes_E=group_sizes_E,
    implementation=implementation,
  )
  groups = grouped_matmul.row_groups(group_sizes_E, x_MD.shape[0])

  def bias(bias):
    return bias.at[groups].get(mode="clip").astype(x_MD.dtype)

  is_row = groups < group_sizes_E.shape[0]
  weight_M1 = jnp.where(is_row, weight_M, 0)[:, None].astype(x_MD.dtype)
  gate, up = multiply(x_MD, experts.gate), multiply(x_MD, experts.up)
  if experts.gate_bias is not None:
    gate, up = gate + bias(experts.gate_bias), up + bias(experts.up_bias)
  gate, up = checkpoint_name(gate, HIDDEN), checkpoint_name(up, HIDDEN)
  out = multiply(activation(gate, up) * weight_M1, experts.down)
  if experts.down_bias is not None:
    out += weight_M1 * bias(experts.down_bias)
  return out


@jax.custom_vjp
def dispatch(x_ND: Float[Array, "N D"], rows: Rows) -> Float[Array, "M D"]:
  """The token of each row; its gradient is a gather too."""
  return x_ND.at[rows.token].get(mode="promise_in_bounds")


def _dispatch_forward(x_ND, rows):
  return dispatch(x_ND, rows), rows


def _dispatch_backward(rows, grad_MD):
  is_row = jnp.arange(grad_MD.shape[0]) < jnp.sum(rows.group_sizes)
  return combine(jnp.where(is_row[:, None], grad_MD, 0), rows), None


@jax.custom_vjp
def combine(y_MD: Float[Array, "M D"], rows: Rows) -> Float[Array, "N D"]:
  """The sum of each token's rows, in float32; its gradient is a gather too."""
  # One gather per choice: they and the sum fuse, [N, K, D] never exists.
  out = sum(
    y_MD.at[row_N].get(mode="fill", fill_value=0).astype(jnp.float32)
    for row_N in rows.row.T
  )
  return jnp.asarray(out, y_MD.dtype)


def _combine_forward(y_MD, rows):
  return combine(y_MD, rows), rows


def _combine_backward(rows, grad_ND):
  is_row = jnp.arange(rows.token.shape[0]) < jnp.sum(rows.group_sizes)
  return jnp.where(is_row[:, None], dispatch(grad_ND, rows), 0), None


dispatch.defvjp(_dispatch_forward, _dispatch_backward)
combine.defvjp(_combine_forward, _combine_backward)


# The weights stand apart from the rows' indices, which have no gradient.
@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _blocks(x_ND, experts, weight_M, rows, activation):
  return _blocks_forward(x_ND, experts, weight_M, rows, activation)[0]


def _make_block(x_ND, experts, weight_M, rows, plan):
  """i -> the first row, tokens, weights and parameters of block i."""
  token = grouped_matmul.pad_rows(rows.token, plan)
  weight = grouped_matmul.pad_rows(weight_M, plan)
  experts = jax.tree.map(
    lambda a: linear.cast(a, x_ND.dtype),
    experts,
    is_leaf=lambda a: isinstance(a, linear.Int8),
  )

  def block(i):
    start = plan.start_of[i]
    token_b = jax.lax.dynamic_slice_in_dim(token, start, plan.rows)
    weight_b = jax.lax.dynamic_slice_in_dim(weight, start, plan.rows)[:, None]
    # Rows of the next group weigh nothing here.
    weight_b = jnp.where(plan.mask(i), weight_b, 0).astype(x_ND.dtype)
    expert = grouped_matmul.take(experts, plan.group_of[i])
    return start, token_b, weight_b, expert

  return block


def _take(x_ND, token):
  return x_ND.at[token].get(mode="promise_in_bounds")


def _add(out_ND, token, x):
  return out_ND.at[token].add(x.astype(out_ND.dtype), mode="promise_in_bounds")


def _mlp(x, expert, weight, activation):
  """Hidden units before the nonlinearity, and the result, of a block."""
  multiply = functools.partial(grouped_matmul.multiply_one, "MD,DF->MF")
  gate, up = multiply(x, expert.gate), multiply(x, expert.up)
  if expert.gate_bias is not None:
    gate, up = gate + expert.gate_bias, up + expert.up_bias
  hidden = activation(gate, up) * weight
  y = grouped_matmul.multiply_one("MF,FD->MD", hidden, expert.down)
  if expert.down_bias is not None:
    y += weight * expert.down_bias
  return gate, up, y


def _blocks_int8(x_ND, experts, rows, activation):
  """As `_blocks`, without what a backward pass would need."""
  plan = grouped_matmul.make_blocks(rows.group_sizes, rows.token.shape[0])
  block = _make_block(x_ND, experts, rows.weight, rows, plan)

  def step(i, out):
    _, token, weight, expert = block(i)
    *_, y = _mlp(_take(x_ND, token), expert, weight, activation)
    return _add(out, token, y)

  out = jnp.zeros(x_ND.shape, jnp.float32)
  out = jax.lax.fori_loop(0, plan.count, step, out)
  return out.astype(x_ND.dtype)


def _blocks_forward(x_ND, experts, weight_M, rows, activation):
  num_rows = rows.token.shape[0]
  plan = grouped_matmul.make_blocks(rows.group_sizes, num_rows)
  block = _make_block(x_ND, experts, weight_M, rows, plan)

  def step(i, carry):
    gates, ups, out = carry
    start, token, weight, expert = block(i)
    gate, up, y = _mlp(_take(x_ND, token), expert, weight, activation)
    gates = jax.lax.dynamic_update_slice_in_dim(gates, gate, start, 0)
    ups = jax.lax.dynamic_update_slice_in_dim(ups, up, start, 0)
    return gates, ups, _add(out, token, y)

  hidden = jnp.zeros((num_rows + plan.rows, experts.up.shape[2]), x_ND.dtype)
  out = jnp.zeros(x_ND.shape, jnp.float32)
  gates, ups, out = jax.lax.fori_loop(
    0, plan.count, step, (hidden, hidden, out)
  )
  gates, ups = checkpoint_name(gates, HIDDEN), checkpoint_name(ups, HIDDEN)
  return out.astype(x_ND.dtype), (x_ND, experts, weight_M, rows, gates, ups)


def _blocks_backward(activation, residuals, grad_ND):
  x_ND, experts, weight_M, rows, gates, ups = residuals
  num_rows = rows.token.shape[0]
  plan = grouped_matmul.make_blocks(rows.group_sizes, num_rows)
  block = _make_block(x_ND, experts, weight_M, rows, plan)

  def add_product(total, group, left, right):
    product = jnp.einsum(
      "MA,MB->AB", left, right, preferred_element_type=jnp.float32
    )
    return total.at[group].add(product)

  def add_rows(total, group, x):
    return total.at[group].add(jnp.sum(x.astype(jnp.float32), axis=0))

  def step(i, carry):
    d_x, d_weights, d_experts = carry
    start, token, weight, expert = block(i)
    group = plan.group_of[i]
    x, grad = _take(x_ND, token), _take(grad_ND, token)
    gate = jax.lax.dynamic_slice_in_dim(gates, start, plan.rows)
    up = jax.lax.dynamic_slice_in_dim(ups, start, plan.rows)
    hidden, activation_vjp = jax.vjp(activation, gate, up)
    # Of the weighted hidden units.
    d_hidden = jnp.einsum("MD,FD->MF", grad, expert.down)
    d_gate, d_up = activation_vjp(d_hidden * weight)
    d_block = jnp.einsum("MF,DF->MD", d_gate, expert.gate)
    d_block += jnp.einsum("MF,DF->MD", d_up, expert.up)
    d_weight = jnp.sum((hidden * d_hidden).astype(jnp.float32), axis=1)
    d_gate_bias, d_up_bias, d_down_bias = (
      d_experts.gate_bias,
      d_experts.up_bias,
      d_experts.down_bias,
    )
    if expert.gate_bias is not None:
      d_weight += jnp.einsum("MD,D->M", grad, expert.down_bias)
      d_gate_bias = add_rows(d_gate_bias, group, d_gate)
      d_up_bias = add_rows(d_up_bias, group, d_up)
      d_down_bias = add_rows(d_down_bias, group, grad * weight)
    d_experts = Experts(
      gate=add_product(d_experts.gate, group, x, d_gate),
      up=add_product(d_experts.up, group, x, d_up),
      down=add_product(d_experts.down, group, hidden * weight, grad),
      gate_bias=d_gate_bias,
      up_bias=d_up_bias,
      down_bias=d_down_bias,
    )
    d_weights = jax.lax.dynamic_update_slice_in_dim(
      d_weights, jnp.where(plan.mask(i)[:, 0], d_weight, 0), start, 0
    )
    return _add(d_x, token, d_block), d_weights, d_experts

  zeros = functools.partial(jnp.zeros, dtype=jnp.float32)
  d_x, d_weights, d_experts = jax.lax.fori_loop(
    0,
    plan.count,
    step,
    (
      zeros(x_ND.shape),
      zeros((num_rows + plan.rows,)),
      jax.tree.map(lambda a: zeros(a.shape), experts),
    ),
  )
  d_experts = jax.tree.map(lambda d, a: d.astype(a.dtype), d_experts, experts)
  d_weight_M = d_weights[:num_rows].astype(weight_M.dtype)
  return d_x.astype(x_ND.dtype), d_experts, d_weight_M, None


_blocks.defvjp(_blocks_forward, _blocks_backward)
