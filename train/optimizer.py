"""AdamW with decoupled weight decay and clipping by global norm (optax)."""

import dataclasses
from typing import Any, Literal

import jax
import optax


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
  """AdamW (arXiv:1711.05101).

  Attributes:
    b1: Decay of the first moment.
    b2: Decay of the second moment.
    eps: Added to the root of the second moment.
    weight_decay: Decoupled, times the learning rate.
    decay: Which parameters decay: `matrices` leaves out norm scales, `all`
      does not.
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
      config.weight_decay,
      mask=decays if config.decay == "matrices" else None,
    ),
    optax.scale_by_learning_rate(schedule),
  )


def decays(params: Any) -> Any:
  """True for matrices: parameters of two dims or more besides the layers'.

  The dims are the last part of a parameter's name, so that the stacked norm
  scales [L, D], two-dimensional as arrays, count as the vectors they are.
  """

  def is_matrix(path, leaf):
    del leaf
    dims = str(path[-1].key).rsplit("_", 1)[-1]
    return len(dims) >= 2

  return jax.tree_util.tree_map_with_path(is_matrix, params)
