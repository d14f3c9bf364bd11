"""What chunks save: a line of JSON for each implementation and length.

  bazel run -c opt //model/kernels:gated_delta_rule_benchmark

Forward and backward of one layer's gated delta rule in float32.

Dims: B batch, T length, K key heads, N value heads, H head dim of keys, V of
values.
"""

from collections.abc import Callable
import json
import time

import jax
import jax.numpy as jnp

from model.kernels import gated_delta_rule

_B, _K, _N, _H, _V = 1, 4, 8, 64, 64
_LENGTHS = (512, 2048)
_MIN_SECONDS = 2.0


def main() -> None:
  """Measures each case."""
  for length in _LENGTHS:
    for implementation in ("reference", "chunked"):
      gradient, args = _case(length, implementation)
      compiled = jax.jit(gradient).lower(args).compile()
      cpu, wall, calls = _measure(compiled, args)
      memory = compiled.memory_analysis()
      assert memory is not None
      result = {
        "length": length,
        "implementation": implementation,
        "cpu_ms": round(1e3 * cpu, 1),
        "wall_ms": round(1e3 * wall, 1),
        "temporary_mib": round(memory.temp_size_in_bytes / 2**20, 1),
        "calls": calls,
        "device": jax.devices()[0].device_kind,
      }
      print(json.dumps(result), flush=True)


def _case(
  length: int, implementation: gated_delta_rule.Implementation
) -> tuple[Callable, tuple]:
  """All gradients of the sum of the answers, and what to call them with."""
  keys = iter(jax.random.split(jax.random.key(0), 5))

  def normal(*shape):
    return jax.random.normal(next(keys), shape)

  def loss(args):
    q, k, v, log_decay, beta = args
    out, _ = gated_delta_rule.mix(
      q,
      k,
      v,
      log_decay_BTN=log_decay,
      beta_BTN=beta,
      segment_ids=jnp.ones((_B, length), jnp.int32),
      implementation=implementation,
    )
    return jnp.sum(out)

  return jax.grad(loss), (
    normal(_B, length, _K, _H),
    normal(_B, length, _K, _H),
    normal(_B, length, _N, _V),
    -0.1 * jax.nn.softplus(normal(_B, length, _N)),
    jax.nn.sigmoid(normal(_B, length, _N)),
  )


def _measure(function: Callable, args: tuple) -> tuple[float, float, int]:
  """CPU seconds and wall seconds of a call, and how many were timed."""
  jax.block_until_ready(function(args))
  calls = 0
  cpu, wall = time.process_time(), time.perf_counter()
  while calls < 2 or time.perf_counter() - wall < _MIN_SECONDS:
    jax.block_until_ready(function(args))
    calls += 1
  return (
    (time.process_time() - cpu) / calls,
    (time.perf_counter() - wall) / calls,
    calls,
  )


if __name__ == "__main__":
  main()
