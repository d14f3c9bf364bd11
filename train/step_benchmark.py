"""CPU-seconds of each part of the step, at the shape of bench_dense.

  bazel run //train:step_benchmark

One JSON line per part: its forward and backward pass alone, jitted, float32,
times as often as the model has it. The sum is not quite the step: alone, the
compiler merges what the backward pass recomputes with the forward pass.

Dims: B batch, T length, D model, N query heads, K key/value heads, H head dim,
F feed-forward, V vocabulary.
"""

from collections.abc import Callable
import json
import time
from typing import Any

from absl import app
import jax
import jax.numpy as jnp
import optax

from model import linear
from model import mlp
from model import norm
from model.kernels import attention
from train import loss
from train import optimizer

_B, _T, _D, _N, _K, _H, _F, _V = 8, 512, 512, 8, 4, 64, 1408, 32_000
_LAYERS = 8


def measure(name: str, count: int, function: Callable[..., Any], *args) -> None:
  """Prints the least CPU time of a few calls, times `count`."""
  compiled = jax.jit(function).lower(*args).compile()
  jax.block_until_ready(compiled(*args))
  best = float("inf")
  for _ in range(5):
    start = time.process_time()
    jax.block_until_ready(compiled(*args))
    best = min(best, time.process_time() - start)
  result = {"part": name, "count": count, "cpu_seconds": round(best * count, 2)}
  print(json.dumps(result), flush=True)


def with_gradients(function: Callable[..., jax.Array]) -> Callable[..., Any]:
  """(cotangent, *args) -> gradients of all args."""

  def gradients(cotangent, *args):
    _, pull_back = jax.vjp(function, *args)
    return pull_back(cotangent)

  return gradients


def main(argv: list[str]) -> None:
  """Measures all parts."""
  del argv
  key = jax.random.key(0)

  def normal(*shape: int) -> jax.Array:
    return jax.random.normal(key, shape)

  x, grad = normal(_B, _T, _D), normal(_B, _T, _D)
  q, grad_q = normal(_B, _T, _N, _H), normal(_B, _T, _N, _H)
  k = v = normal(_B, _T, _K, _H)
  segments = jnp.ones((_B, _T), jnp.int32)
  for name in ("reference", "blockwise"):

    def attend(q, k, v, name=name):
      return attention.attend(
        q, k, v, q_segment_ids=segments, implementation=name
      )

    measure(
      f"attention {name}", _LAYERS, with_gradients(attend), grad_q, q, k, v
    )

  def feed_forward(x, gate, up, down):
    gate = linear.project("BTD,DF->BTF", x, gate)
    return mlp.gated_down(gate, linear.project("BTD,DF->BTF", x, up), down)

  weights = (normal(_D, _F), normal(_D, _F), normal(_F, _D))
  measure("mlp", _LAYERS, with_gradients(feed_forward), grad, x, *weights)

  def projections(x, q, k, v, o):
    out = linear.project("BTD,DNH->BTNH", x, q)
    for weight in (k, v):
      out += jnp.mean(linear.project("BTD,DKH->BTKH", x, weight))
    return linear.project("BTNH,NHD->BTD", out, o)

  weights = (normal(_D, _N, _H), normal(_D, _K, _H), normal(_D, _K, _H))
  measure(
    "attention projections",
    _LAYERS,
    with_gradients(projections),
    grad,
    x,
    *weights,
    normal(_N, _H, _D),
  )
  measure(
    "norm",
    2 * _LAYERS + 1,
    with_gradients(lambda x, scale: norm.rms_norm(x, scale, 1e-5)),
    grad,
    x,
    jnp.ones(_D),
  )

  targets = jax.random.randint(key, (_B, _T), 0, _V)
  ones, head = jnp.ones((_B, _T)), normal(_D, _V)

  def reference(x, head):
    return loss.reference(x, head, targets, ones).loss

  measure("head and loss, reference", 1, jax.grad(reference, (0, 1)), x, head)
  for num_chunks in (1, 4, 8):

    def fused(x, head, num_chunks=num_chunks):
      return loss.cross_entropy(
        x, head, targets, ones, num_chunks=num_chunks
      ).loss

    measure(
      f"head and loss, {num_chunks} chunks", 1, jax.grad(fused, (0, 1)), x, head
    )

  params = {
    "head_DV": normal(_D, _V),
    "embed_VD": normal(_V, _D),
    "layers_LDF": normal(_LAYERS, _D, 5760),
  }
  adam = optimizer.make(
    optimizer.OptimizerConfig(), optax.constant_schedule(1e-3)
  )

  def update(params, state, grads):
    updates, state = adam.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  measure("optimizer", 1, update, params, adam.init(params), params)


if __name__ == "__main__":
  app.run(main)
