"""What a mixture of experts costs beside a dense MLP: a line of JSON per case.

  bazel run -c opt //model:moe_benchmark

Value and all gradients of one layer, router and sums included, on random tokens
(so the load is nearly even); the least time of several calls. `dense` is an MLP
of the FLOPs of the experts that a token goes to, `reference` every expert on
every token.

Dims: B batch, T length, D model, E experts, K experts of a token, F
feed-forward of one expert.
"""

import json
import time
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from model import config
from model import mlp
from model import moe
from model import router

_DTYPES = ("float32", "bfloat16")
_SECONDS = 3.0
_B, _T, _D = 8, 512, 512
# (E, K, F): 1024 hidden units for each token.
_SHAPES = (8, 2, 512), (64, 8, 128)


def main() -> None:
  """Measures each case."""
  for dtype in _DTYPES:
    _report(_dense(), case="dense", dtype=dtype)
    for num_experts, num_chosen, width in _SHAPES:
      shape = {
        "num_experts": num_experts,
        "experts_per_token": num_chosen,
        "dim": width,
      }
      _report(_moe(**shape), case="dropless", dtype=dtype, **shape)
      _report(
        _moe(capacity_factor=1.25, **shape),
        case="capacity 1.25",
        dtype=dtype,
        **shape,
      )
    num_experts, num_chosen, width = _SHAPES[0]
    every_expert = _moe(
      implementation="reference",
      num_experts=num_experts,
      experts_per_token=num_chosen,
      dim=width,
    )
    _report(every_expert, case="reference", dtype=dtype)


def _dense() -> mlp.Mlp:
  num_experts, num_chosen, width = _SHAPES[0]
  del num_experts
  return mlp.Mlp(config.MlpConfig(dim=num_chosen * width), **_init())


def _moe(*, implementation: str = "auto", **settings: Any) -> moe.Moe:
  return moe.Moe(
    config.MoeConfig(**settings), implementation=implementation, **_init()
  )


def _init() -> dict[str, Any]:
  return {
    "dim": _D,
    "init_std": 0.02,
    "out_std": 0.02,
    "param_dtype": "float32",
    "rngs": nnx.Rngs(0),
  }


def _report(module: nnx.Module, *, dtype: str, **labels: Any) -> None:
  graphdef, params = nnx.split(module)
  x = jax.random.normal(jax.random.key(0), (_B, _T, _D), dtype)
  cotangent = jax.random.normal(jax.random.key(1), x.shape, dtype)

  @jax.jit
  def gradients(params, x):
    def loss(params, x):
      module = nnx.merge(graphdef, params)
      if isinstance(module, mlp.Mlp):
        out, loss = module(x, norm=_norm), 0.0
      else:
        out, stats = module(x, norm=_norm)
        loss = router.load_balance_loss(stats) + router.z_loss(stats)
      return loss + jnp.sum((out * cotangent).astype(jnp.float32))

    return jax.value_and_grad(loss, argnums=(0, 1))(params, x)

  jax.block_until_ready(gradients(params, x))
  calls, start = 0, time.perf_counter()
  least_cpu = least_wall = float("inf")
  while time.perf_counter() - start < _SECONDS or calls < 3:
    cpu, wall = time.process_time(), time.perf_counter()
    jax.block_until_ready(gradients(params, x))
    least_cpu = min(least_cpu, time.process_time() - cpu)
    least_wall = min(least_wall, time.perf_counter() - wall)
    calls += 1
  result = labels | {
    "dtype": dtype,
    "cpu_milliseconds": round(1000 * least_cpu, 1),
    "wall_milliseconds": round(1000 * least_wall, 1),
    "calls": calls,
  }
  print(json.dumps(result), flush=True)


def _norm(x: jax.Array) -> jax.Array:
  return x


if __name__ == "__main__":
  main()
