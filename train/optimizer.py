"""AdamW with decoupled weight decay and clipping by global norm (optax)."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import optax

from model import sharding


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
  """AdamW (arXiv:1711.05101).

  Attributes:
    b1: Decay of the first moment.
    b2: Decay of the second moment.
    eps: Added to the root of the second moment.
    weight_decay: Decoupled, times the learning rate.
    decay: Which parameters decay: `matrices` leaves out norm scales and
      biases, `all` does not.
    clip_norm: Gradients are scaled down to this global norm; unset: never.
  """

  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.1
  decay: Literal["matrices", "all"] = "matrices"
  clip_norm: float | None = 1.0

  def __post_init__(self):
    for name in ("b1", "b2"):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(
          f"optimizer.{name}={getattr(self, name)} must be in [0, 1)."
        )
    for name in ("eps", "clip_norm"):
      value = getattr(self, name)
      if value is not None and not value > 0:
        raise ValueError(f"optimizer.{name}={value} must be positive.")
    if self.weight_decay < 0:
      raise ValueError(
        f"optimizer.weight_decay={self.weight_decay} must be 0 or more."
      )


def make(
  config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """Clip, Adam, decay, learning rate: in this order."""
  clip = (
    optax.identity()
    if config.clip_norm is None
    else optax.clip_by_global_norm(config.clip_norm)
  )
  return optax.chain(
    clip,
    optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
    optax.add_decayed_weights(
      config.weight_decay, mask=functools.partial(decays, which=config.decay)
    ),
    optax.scale_by_learning_rate(schedule),
  )


def decays(params: Any, *, which: str) -> Any:
  """True for parameters that decay, by OptimizerConfig.decay.

  A parameter's name says what it is: the stacked norm scales [L, D] are
  two-dimensional as arrays, and vectors all the same. A router's selection bias
  never decays: it is no weight of the loss (balance.py).
  """

  def one(path, leaf):
    del leaf
    name = str(path[-1].key)
    if name.startswith("selection_bias"):
      return False
    return which == "all" or sharding.is_matrix(name)

  return jax.tree_util.tree_map_with_path(one, params)
