"""Matrix products with weights, and a weight gradient in the right shape.

Automatic differentiation forms the gradient of a weight as (g^T x)^T. XLA for
CPUs folds that transpose into a dot whose two operands are both transposed,
for which it has no fast kernel: in bfloat16 it takes 21 times, in float32 twice
the time of x^T g, which is the same numbers (linear_benchmark.py, a Zen 5 CPU).
`project` says x^T g.
"""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def project(spec: str, x: jax.Array, weight: jax.Array) -> jax.Array:
  """einsum of activations with a weight, such as "BTD,DNH->BTNH".

  Args:
    spec: einsum of two operands; each letter must appear in two of the three
      places, so that both gradients are einsums again.
    x: Activations; their dtype is the product's.
    weight: The weight, in any float dtype.
  """
  return jnp.einsum(spec, x, weight.astype(x.dtype))


def _forward(spec, x, weight):
  return project(spec, x, weight), (x, weight)


def _backward(spec, residuals, grad):
  x, weight = residuals
  operands, out = spec.split("->")
  x_dims, weight_dims = operands.split(",")
  d_x = jnp.einsum(
    f"{out},{weight_dims}->{x_dims}", grad, weight.astype(x.dtype)
  )
  d_weight = jnp.einsum(f"{x_dims},{out}->{weight_dims}", x, grad)
  return d_x, d_weight.astype(weight.dtype)


project.defvjp(_forward, _backward)
