"""Statistics of each layer: norms, activations, the load of experts.

A program of its own, run on the batch and the parameters of a step before that
step is made. The step itself is the same with it and without it, to the bit;
what it costs is another gradient and one forward pass of an accumulation piece,
in the steps for which it is asked.

Dims: B batch, T length, D model, E experts, L layers.
"""

from collections.abc import Callable
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from model import router as router_lib
from model import sharding
from model import transformer
from train import balance as balance_lib
from train import config as config_lib
from train import metrics as metrics_lib
from train import step as step_lib


class Reporter:
  """Writes the statistics of a run's layers every `observe.layers_every`."""

  def __init__(
    self,
    config: config_lib.RunConfig,
    graphdef: nnx.GraphDef,
    writer: metrics_lib.Writer,
  ):
    """Nothing is compiled before it is needed."""
    self._every = config.observe.layers_every
    self._writer = writer
    self._stats = jax.jit(
      make(
        graphdef=graphdef,
        loss=config.loss,
        balance=config.balance,
        accumulation=config.run.accumulation,
      )
    )

  def is_due(self, step: int) -> bool:
    """Whether update number `step` is one to look at."""
    return self._every is not None and step % self._every == 0

  def write(self, step: int, params: Any, batch: step_lib.Batch) -> None:
    """Looks at what update number `step` is about to be made of."""
    stats = jax.device_get(self._stats(params, batch))
    values = {name: value.tolist() for name, value in stats.items()}
    self._writer.write(step, "layers", values)


def make(
  *,
  graphdef: nnx.GraphDef,
  loss: step_lib.LossConfig,
  balance: balance_lib.BalanceConfig,
  accumulation: int,
) -> Callable[[Any, step_lib.Batch], dict[str, jax.Array]]:
  """(params, batch) -> statistics, float32; to be jitted.

  Arguments are those of `step.make_train_step`. By name:
    `param_norm/NAME`, `grad_norm/NAME`: the L2 norm of each parameter, and of
      its gradient before clipping; [L] where layers are stacked.
    `activation_rms`, `activation_max`: of the residual stream's numbers, where
      they enter each layer and after the last [L + 1]; the maximum is of
      absolute values. Of the first accumulation piece, without padding.
    `expert_load/BLOCK`: each expert's share of the tokens [L, E]; 1/E is even.
    `expert_dropped/BLOCK`: the share of routed tokens that was dropped [L].
  """

  def stats(params: Any, batch: step_lib.Batch) -> dict[str, jax.Array]:
    grads, sums = step_lib.gradients(
      params,
      batch,
      graphdef=graphdef,
      config=loss,
      balance=balance,
      accumulation=accumulation,
    )
    piece = jax.tree.map(lambda x: x[::accumulation], batch)
    result = {
      f"{kind}/{name}": norm(name, leaf)
      for kind, tree in (("param_norm", params), ("grad_norm", grads))
      for name, leaf in sharding.named_leaves(tree).items()
    }
    for name, of_block in sums.routers.items():
      result[f"expert_load/{name}"] = router_lib.load(of_block)
      dropped = router_lib.metrics(of_block)["drop_rate"]
      result[f"expert_dropped/{name}"] = dropped
    result |= _activations(transformer.bind(graphdef, params), piece)
    # Every host reads all of them.
    return jax.tree.map(sharding.replicate, result)

  return stats


def norm(name: str, leaf: jax.Array) -> Float[Array, "*L"]:
  """The L2 norm of the parameter `name`, by layer if it is stacked."""
  dims = sharding.param_dims(name.rpartition(".")[2])
  axes = tuple(range(leaf.ndim - len(dims), leaf.ndim))
  return jnp.sqrt(jnp.sum(jnp.square(leaf.astype(jnp.float32)), axis=axes))


def _activations(
  model: transformer.Transformer, batch: step_lib.Batch
) -> dict[str, jax.Array]:
  output = model(
    batch["tokens"],
    positions=batch["positions"],
    segment_ids=batch["segment_ids"],
    capture=True,
    bounded=True,
  )
  assert output.inputs is not None
  is_token = (batch["segment_ids"] > 0)[..., None]
  num_tokens = jnp.maximum(jnp.sum(is_token), 1)

  def of_one(x: Float[Array, "B T D"]) -> tuple[jax.Array, jax.Array]:
    x32 = jnp.where(is_token, x.astype(jnp.float32), 0.0)
    mean_square = jnp.sum(jnp.square(x32)) / (num_tokens * x.shape[-1])
    return jnp.sqrt(mean_square), jnp.max(jnp.abs(x32))

  # One layer at a time: in float32 all of them could be too much.
  rms, largest = jax.lax.map(of_one, output.inputs)
  last_rms, last_largest = of_one(output.residual)
  return {
    "activation_rms": jnp.append(rms, last_rms),
    "activation_max": jnp.append(largest, last_largest),
  }
