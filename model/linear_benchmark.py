"""What `linear.project` saves: a line of JSON for each case.

  bazel run -c opt //model:linear_benchmark

`weight`: the gradient of one weight alone; `mlp`: all gradients of a gated MLP;
`row`: one row times a large weight, as in decoding.
`einsum` is automatic differentiation, `project` is model/linear.py.

Dims: B batch, T length, D model, F feed-forward.
"""

from collections.abc import Callable
import json
import time

import jax
import jax.numpy as jnp

from model import linear

_B, _T, _D, _F = 16, 256, 320, 864
_MIN_SECONDS = 2.0


def main() -> None:
  """Measures each case."""
  for dtype in ("bfloat16", "float32"):
    for case in (_weight, _mlp, _row):
      for product in (_einsum, linear.project):
        gradient, args = case(product, dtype)
        cpu, wall, calls = _measure(jax.jit(gradient), args)
        result = {
          "case": case.__name__.strip("_"),
          "dtype": dtype,
          "product": product.__name__.strip("_"),
          "cpu_seconds": round(cpu, 5),
          "wall_seconds": round(wall, 5),
          "calls": calls,
        }
        print(json.dumps(result), flush=True)


def _einsum(spec, x, weight):
  return jnp.einsum(spec, x, weight.astype(x.dtype))


def _normal(seed: int, *shape: int, dtype: str = "float32") -> jax.Array:
  return jax.random.normal(jax.random.key(seed), shape, dtype)


def _weight(product: Callable, dtype: str) -> tuple[Callable, tuple]:
  """The gradient of one weight; the product itself is not computed."""
  x = _normal(0, _B, _T, _D, dtype=dtype)
  cotangent = _normal(1, _B, _T, _F, dtype=dtype)
  weight = _normal(2, _D, _F)

  def loss(weight, x, cotangent):
    return jnp.sum(product("BTD,DF->BTF", x, weight) * cotangent)

  return jax.grad(loss), (weight, x, cotangent)


def _mlp(product: Callable, dtype: str) -> tuple[Callable, tuple]:
  """The gradients of a gated MLP's input and of its three weights."""
  x = _normal(0, _B, _T, _D, dtype=dtype)
  cotangent = _normal(1, _B, _T, _D, dtype=dtype)
  weights = _normal(2, _D, _F), _normal(3, _D, _F), _normal(4, _F, _D)

  def loss(x, weights, cotangent):
    gate, up, down = weights
    hidden = jax.nn.silu(product("BTD,DF->BTF", x, gate))
    hidden *= product("BTD,DF->BTF", x, up)
    return jnp.sum(product("BTF,FD->BTD", hidden, down) * cotangent)

  return jax.grad(loss, argnums=(0, 1)), (x, weights, cotangent)


def _row(product: Callable, dtype: str) -> tuple[Callable, tuple]:
  """A single row, no gradient."""
  x = _normal(0, 1, 1, 2048, dtype=dtype)
  weight = _normal(1, 2048, 8192, dtype=dtype)
  return lambda x, weight: product("BTD,DF->BTF", x, weight), (x, weight)


def _measure(function: Callable, args: tuple) -> tuple[float, float, int]:
  """CPU seconds and wall seconds of a call, and how many were timed."""
  jax.block_until_ready(function(*args))
  calls = 0
  wall, cpu = time.perf_counter(), time.process_time()
  while time.perf_counter() - wall < _MIN_SECONDS or calls < 5:
    jax.block_until_ready(function(*args))
    calls += 1
  cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
  return cpu / calls, wall / calls, calls


if __name__ == "__main__":
  main()
