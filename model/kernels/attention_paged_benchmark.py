"""CPU time of attention over pages, for decoding and for pieces of prompts.

  bazel run -c opt //model/kernels:attention_paged_benchmark

One JSON line per shape and dtype: milliseconds of a stack of layers, wall-clock
and of the CPU, the least of a few calls; `pages_gb_per_s`, what reading each
key and value once in that wall-clock time would take; and `temp_mib`, memory
besides arguments and results.

Dims: B batch, T query length, S slots of a page, N query heads, K key/value
heads, H head dim, L layers.
"""

import argparse
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model.kernels import attention_paged

_L, _N, _K, _H = 12, 12, 4, 64
_PAGE = 16
_WIDTH = 64
# (B, T, tokens of each text)
_SHAPES = (
  (1, 1, 256),
  (8, 1, 256),
  (32, 1, 128),
  (32, 1, 256),
  (32, 1, 512),
  (1, 256, 256),
  (1, 256, 1024),
)
_CALLS = 10


def measure(
  batch: int, queries: int, length: int, dtype: str
) -> dict[str, Any]:
  """One line of the output."""
  rng = np.random.default_rng(0)
  pieces = -(-length // _PAGE)
  num_pages = 1 + batch * pieces
  table = np.zeros((batch, _WIDTH), np.int32)
  order = 1 + rng.permutation(batch * pieces)
  table[:, :pieces] = order.reshape(batch, pieces)
  shape = (num_pages, _K, _PAGE, _H)

  def make_pages() -> dict[str, Any]:
    pages = {}
    for name in ("k", "v"):
      x = rng.normal(size=shape)
      if dtype == "int8":
        pages[f"{name}_pages"] = jnp.asarray(40 * x, jnp.int8)
        pages[f"{name}_scales"] = jnp.full(shape[:3], 1 / 40)
      else:
        pages[f"{name}_pages"] = jnp.asarray(x, dtype)
    return pages

  layers = [make_pages() for _ in range(_L)]
  num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(layers))
  q = jnp.asarray(rng.normal(size=(batch, queries, _N, _H)), jnp.float32)

  @jax.jit
  def run(layers, q, table, start, segment_ids):
    for pages in layers:
      q = attention_paged.attend(
        q,
        **pages,
        table_BP=table,
        start_B=start,
        q_segment_ids=segment_ids,
        scale=_H**-0.5,
      )
    return q

  args = (
    layers,
    q,
    jnp.asarray(table),
    jnp.full((batch,), length - queries),
    jnp.ones((batch, queries), jnp.int32),
  )
  compiled = run.lower(*args).compile()
  memory = compiled.memory_analysis()
  assert memory is not None
  jax.block_until_ready(compiled(*args))
  wall = cpu = float("inf")
  for _ in range(_CALLS):
    wall_start, cpu_start = time.perf_counter(), time.process_time()
    jax.block_until_ready(compiled(*args))
    wall = min(wall, time.perf_counter() - wall_start)
    cpu = min(cpu, time.process_time() - cpu_start)
  return {
    "B": batch,
    "T": queries,
    "length": length,
    "dtype": dtype,
    "wall_ms": round(1e3 * wall, 2),
    "cpu_ms": round(1e3 * cpu, 2),
    "pages_gb_per_s": round(num_bytes / wall / 1e9, 1),
    "temp_mib": round(memory.temp_size_in_bytes / 2**20, 1),
  }


def main() -> None:
  """Measures every shape in every dtype."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument(
    "--dtypes", nargs="+", default=["float32", "bfloat16", "int8"]
  )
  args = parser.parse_args()
  for batch, queries, length in _SHAPES:
    for dtype in args.dtypes:
      line = measure(batch, queries, length, dtype)
      print(json.dumps(line), flush=True)


if __name__ == "__main__":
  main()
