"""CPU time and memory of each implementation of attention.

  bazel run //model/kernels:attention_benchmark

One JSON line per implementation and shape: CPU-milliseconds of the forward
pass alone and of forward and backward pass together, the least of a few calls,
and the memory that the latter needs besides its arguments and results.

Dims: B batch, T length, N query heads, K key/value heads, H head dim.
"""

import argparse
import functools
import json
import time
from typing import Any

import jax
import jax.numpy as jnp

from model.kernels import attention

_N, _K, _H = 8, 4, 64
# (B, T, window)
_SHAPES = (
  (8, 512, None),
  (2, 2048, None),
  (2, 2048, 256),
  (1, 8192, None),
  (1, 8192, 256),
)
_CALLS = 3


def milliseconds(compiled, *args: jax.Array) -> float:
  """The least CPU time of a few calls."""
  jax.block_until_ready(compiled(*args))
  best = float("inf")
  for _ in range(_CALLS):
    start = time.process_time()
    jax.block_until_ready(compiled(*args))
    best = min(best, time.process_time() - start)
  return round(1e3 * best, 1)


def measure(
  implementation: str, batch: int, length: int, window: int | None, dtype: str
) -> dict[str, Any]:
  """One line of the output."""
  key = jax.random.key(0)
  q, cotangent = jax.random.normal(key, (2, batch, length, _N, _H), dtype)
  k, v = jax.random.normal(key, (2, batch, length, _K, _H), dtype)
  attend = functools.partial(
    attention.attend,
    q_segment_ids=jnp.ones((batch, length), jnp.int32),
    window=window,
    implementation=implementation,
  )

  def with_gradients(q, k, v, cotangent):
    out, pull_back = jax.vjp(attend, q, k, v)
    return out, pull_back(cotangent)

  forward = jax.jit(attend).lower(q, k, v).compile()
  both = jax.jit(with_gradients).lower(q, k, v, cotangent).compile()
  memory = both.memory_analysis()
  assert memory is not None
  return {
    "implementation": implementation,
    "B": batch,
    "T": length,
    "window": window,
    "dtype": dtype,
    "forward_cpu_ms": milliseconds(forward, q, k, v),
    "both_cpu_ms": milliseconds(both, q, k, v, cotangent),
    "temp_mib": round(memory.temp_size_in_bytes / 2**20, 1),
  }


def main() -> None:
  """Measures every implementation at every shape."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument(
    "--implementations",
    nargs="+",
    default=["reference", "blockwise", "dot_product"],
  )
  parser.add_argument(
    "--dtype", default="float32", choices=["float32", "bfloat16"]
  )
  parser.add_argument("--max_length", type=int, default=8192)
  args = parser.parse_args()
  for batch, length, window in _SHAPES:
    if length > args.max_length:
      continue
    for implementation in args.implementations:
      line = measure(implementation, batch, length, window, args.dtype)
      print(json.dumps(line), flush=True)


if __name__ == "__main__":
  main()
