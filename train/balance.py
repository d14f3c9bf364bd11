"""Keeping experts evenly loaded: losses, the selection bias, and what to watch.

A model's routers report sums over a batch (model/router.py), by the block they
are in. With gradient accumulation a batch goes through the model in pieces;
every term here is a share of the whole batch's, so that the pieces' sum is the
batch's loss whatever their number.

Dims: L layers of a group, E experts.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from model import config as model_config
from model import mtp
from model import router as router_lib
from model import transformer

# By block (`group_0.block_1`, `mtp_0.block`), stacked over L.
Stats = dict[str, router_lib.RouterStats]
# Where a block's bias is, from the block.
_BIAS = ("feed_forward", "selection_bias_E")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BalanceConfig:
  """How the load of experts is balanced.

  A loss's weight is for models that have experts (`check_model`); the rest
  counts for nothing in others.

  Attributes:
    aux_loss_weight: Of the load-balance loss (Switch, arXiv:2101.03961), its
      mean over layers; it is K, the experts per token, when balanced.
    aux_loss_scope: Over what it is balanced: each `sequence` (DeepSeek-V3), the
      `batch` as it goes through the model at a time, or the `global_batch`,
      also when that goes in pieces (arXiv:2501.11873); then another forward
      pass counts the load first.
    z_loss_weight: Of the routers' mean squared log-normaliser (ST-MoE,
      arXiv:2202.08906, 1e-3).
    bias_update_rate: By how much a selection bias moves each step, up for idle
      and down for busy experts (arXiv:2408.15664, 1e-3); models with
      `router.selection_bias` only.
  """

  aux_loss_weight: float = 0.0
  aux_loss_scope: Literal["sequence", "batch", "global_batch"] = "batch"
  z_loss_weight: float = 0.0
  bias_update_rate: float = 1e-3

  def __post_init__(self):
    for name in ("aux_loss_weight", "z_loss_weight", "bias_update_rate"):
      value = getattr(self, name)
      if value < 0:
        raise ValueError(f"balance.{name}={value} must be 0 or more.")

  @property
  def counts_first(self) -> bool:
    """Whether the batch's load must be known before its pieces' gradients."""
    return self.aux_loss_scope == "global_batch" and self.aux_loss_weight > 0


def check_model(config: BalanceConfig, model: model_config.ModelConfig) -> None:
  """Refuses losses of routers that the model has not.

  Raises:
    ValueError: Names the weight.
  """
  if _expert_layers(model):
    return
  for name in ("aux_loss_weight", "z_loss_weight"):
    value = getattr(config, name)
    if value > 0:
      raise ValueError(
        f"balance.{name}={value}, but {model.name} has no experts to balance; "
        "set it to 0."
      )


def moves_biases(
  config: BalanceConfig, model: model_config.ModelConfig
) -> bool:
  """Whether the step moves selection biases, besides the optimizer."""
  has_bias = any(moe.router.selection_bias for moe in _expert_layers(model))
  return has_bias and config.bias_update_rate > 0


def _expert_layers(
  model: model_config.ModelConfig,
) -> list[model_config.MoeConfig]:
  blocks = [block for group in model.groups for block in group.pattern]
  if model.mtp is not None:
    blocks.append(model.mtp.block)
  layers = (block.feed_forward for block in blocks)
  return [x for x in layers if isinstance(x, model_config.MoeConfig)]


def collect(
  output: transformer.Output, predictions: Sequence[mtp.Prediction]
) -> Stats:
  """What all routers of a call did."""
  stats = {
    f"{group}.{block}": dataclasses.replace(of_block, routing=None)
    for group, blocks in output.router.items()
    for block, of_block in blocks.items()
  }
  for i, prediction in enumerate(predictions):
    if prediction.router is not None:
      alone = dataclasses.replace(prediction.router, routing=None)
      stats[f"mtp_{i}.block"] = jax.tree.map(lambda x: x[None], alone)
  return stats


def loss(
  piece: Stats,
  config: BalanceConfig,
  *,
  share: jax.Array | float = 1.0,
  num_sequences: jax.Array,
  whole: Stats | None = None,
) -> jax.Array:
  """A piece's share of the weighted losses, to be added to the batch's.

  Args:
    piece: Of the pass that is differentiated.
    config: The weights.
    share: Of the batch's tokens that are in the piece.
    num_sequences: Rows of the whole batch that are not all padding.
    whole: Of the whole batch, if the piece is not all of it; for
      `global_batch`.
  """
  total = jnp.zeros(())
  num_layers = sum(stats.num_tokens.shape[0] for stats in piece.values())
  for name, stats in piece.items():
    if config.aux_loss_weight > 0:
      match config.aux_loss_scope:
        case "sequence":
          of_batch = dataclasses.replace(stats, num_sequences=num_sequences)
          aux = router_lib.load_balance_loss(of_batch, scope="sequence")
        case "batch":
          aux = router_lib.load_balance_loss(stats) * share
        case "global_batch":
          counted = stats if whole is None else whole[name]
          # The load of all, the probabilities of these: the sum over pieces is
          # E * sum_e f_e P_e with f and P of the whole batch.
          combined = dataclasses.replace(counted, probs=stats.probs)
          aux = router_lib.load_balance_loss(combined)
      total += config.aux_loss_weight * jnp.sum(aux) / num_layers
    if config.z_loss_weight > 0:
      z = router_lib.z_loss(stats) * share
      total += config.z_loss_weight * jnp.sum(z) / num_layers
  return total


def update_biases(params: Any, stats: Stats, config: BalanceConfig) -> Any:
  """`params` with every selection bias moved against the batch's load."""
  if config.bias_update_rate == 0:
    return params
  for name, of_block in stats.items():
    path = (*name.split("."), *_BIAS)
    if _has(params, path):
      load = router_lib.load(of_block)
      params = _replaced(params, path, load, config.bias_update_rate)
  return params


def _has(tree: Any, path: tuple[str, ...]) -> bool:
  for key in path:
    if key not in tree:
      return False
    tree = tree[key]
  return True


def _replaced(tree: Any, path: tuple[str, ...], load: jax.Array, rate: float):
  """A copy of the tree's nodes on the path, with the bias at its end moved."""
  key, *rest = path
  if rest:
    return tree | {key: _replaced(tree[key], tuple(rest), load, rate)}
  bias = tree[key]
  moved = router_lib.updated_bias(bias, load.reshape(bias.shape), rate=rate)
  return tree | {key: moved}


def metrics(stats: Stats) -> dict[str, jax.Array]:
  """What to watch, over all layers; nothing for a dense model.

  Returns:
    By name, `router/` before it: `aux_loss` and `z_loss` (unweighted) and
    `entropy`, means over layers; `drop_rate`; `max_load` and `min_load`, of the
    layer in which it is worst, in even shares; `load`, each expert's share,
    layers' mean [E] (of the routers with the most experts).
  """
  if not stats:
    return {}
  layers: dict[str, list[jax.Array]] = {}
  for of_block in stats.values():
    values = router_lib.metrics(of_block) | {
      "aux_loss": router_lib.load_balance_loss(of_block),
      "z_loss": router_lib.z_loss(of_block),
    }
    for name, value in values.items():
      layers.setdefault(name, []).append(value)
  joined = {name: jnp.concatenate(values) for name, values in layers.items()}
  reduce = {"max_load": jnp.max, "min_load": jnp.min}
  result = {
    f"router/{name}": reduce.get(name, jnp.mean)(value)
    for name, value in joined.items()
  }
  loads = [router_lib.load(of_block) for of_block in stats.values()]
  widest = max(load.shape[-1] for load in loads)
  result["router/load"] = jnp.mean(
    jnp.concatenate([load for load in loads if load.shape[-1] == widest]),
    axis=0,
  )
  return result
