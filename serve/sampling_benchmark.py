"""How long choosing a token takes, by settings, vocabulary and rows.

  bazel run //serve:sampling_benchmark

One JSON line per vocabulary and number of rows: wall milliseconds of one call
of `sampling.choose` by settings, and of `logprobs.compute`, the least of a few
calls. Logits are of a spread at which some hundred tokens make up 90 %.

glibc gives large blocks back to the system after each call, and takes them
again page by page: with MALLOC_MMAP_THRESHOLD_=1000000000 and
MALLOC_TRIM_THRESHOLD_=10000000000 in the environment it does not.
"""

import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from serve import logprobs
from serve import request as request_lib
from serve import sampling

_VOCAB_SIZES = (32_000, 152_000)
_ROWS = (1, 8, 32)
_SETTINGS: dict[str, dict[str, Any]] = {
  "greedy": {"temperature": 0.0},
  "temperature": {"temperature": 0.8},
  "top_k 50": {"top_k": 50},
  "top_k 500": {"top_k": 500},
  "top_p 0.9": {"top_p": 0.9},
  "top_k 50, top_p 0.9, min_p 0.05": {"top_k": 50, "top_p": 0.9, "min_p": 0.05},
  "greedy, penalties, mask": {"temperature": 0.0, "repetition_penalty": 1.1},
  "penalties, mask": {"repetition_penalty": 1.1, "logit_bias": ((5, 1.0),)},
}
_CALLS = 10

_admit = jax.jit(sampling.admit, donate_argnums=0)
_choose = jax.jit(
  sampling.choose, static_argnames="variant", donate_argnames="state"
)
_logprobs = jax.jit(logprobs.compute, static_argnames="num_top")


def milliseconds(rows: int, vocab_size: int, **settings) -> float:
  """Of one call of `choose`."""
  request = request_lib.Request(
    id="",
    prompt=(1, 2, 3),
    max_tokens=1,
    sampling=request_lib.Sampling(**settings),
  )
  state = sampling.make(num_slots=rows + 1, vocab_size=vocab_size)
  for slot in range(1, rows + 1):
    state = _admit(
      state, slot, sampling.settings_of(request, vocab_size=vocab_size)
    )
  variant = sampling.variant_of(request)
  masks = None
  if variant is sampling.Variant.FULL:
    masks = jnp.full((rows, 1, -(-vocab_size // 32)), 0xFFFFFFFF, jnp.uint32)
  best = float("inf")
  logits = _logits(rows, vocab_size)
  for call in range(_CALLS):
    start = time.perf_counter()
    state, choice = _choose(
      state,
      logits,
      slots=np.arange(1, rows + 1, dtype=np.int32),
      positions=np.full(rows, call, np.int32),
      drafts=np.zeros((rows, 0), np.int32),
      num_drafts=np.zeros(rows, np.int32),
      active=np.ones(rows, bool),
      masks=masks,
      variant=variant,
    )
    jax.block_until_ready((state, choice))
    best = min(best, time.perf_counter() - start)
  return round(1e3 * best, 2)


def milliseconds_of_logprobs(
  rows: int, vocab_size: int, *, num_top: int
) -> float:
  """Of one call of `logprobs.compute`."""
  logits = _logits(rows, vocab_size)
  best = float("inf")
  for _ in range(_CALLS):
    start = time.perf_counter()
    tokens = np.zeros((rows, 1), np.int32)
    jax.block_until_ready(_logprobs(logits, tokens, num_top=num_top))
    best = min(best, time.perf_counter() - start)
  return round(1e3 * best, 2)


def _logits(rows: int, vocab_size: int) -> jax.Array:
  return jax.random.normal(jax.random.key(0), (rows, 1, vocab_size)) * 4


def main() -> None:
  """Measures all."""
  for vocab_size in _VOCAB_SIZES:
    for rows in _ROWS:
      line: dict[str, Any] = {"vocab_size": vocab_size, "rows": rows}
      for name, settings in _SETTINGS.items():
        line[name] = milliseconds(rows, vocab_size, **settings)
      for num_top in logprobs.NUM_TOP:
        line[f"logprobs {num_top}"] = milliseconds_of_logprobs(
          rows, vocab_size, num_top=num_top
        )
      print(json.dumps(line), flush=True)


if __name__ == "__main__":
  main()
