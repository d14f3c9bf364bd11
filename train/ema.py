"""An exponential moving average of the parameters, kept beside them.

It is what the run evaluates, samples from and saves as the model's parameters;
training goes on from the parameters themselves. The average follows what was
there after each update, all of it: also what balances experts.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmaConfig:
  """Of the parameters.

  Attributes:
    decay: Share of the average that an update keeps; unset: there is none. It
      averages over about 1 / (1 - decay) updates. At the t-th update it is no
      more than t / (t + 9), so that the initial parameters are soon forgotten.
  """

  decay: float | None = None

  def __post_init__(self):
    if self.decay is not None and not 0 < self.decay < 1:
      raise ValueError(
        f"ema.decay={self.decay} must be between 0 and 1, or unset for no "
        "average."
      )


def decay_at(config: EmaConfig, step: Int[Array, ""]) -> Float[Array, ""]:
  """The decay of update `step`, from 0."""
  assert config.decay is not None
  return jnp.minimum(config.decay, (step + 1.0) / (step + 10.0))


def update(average: Any, params: Any, *, decay: jax.Array) -> Any:
  """decay * average + (1 - decay) * params, for each array."""
  return jax.tree.map(lambda a, p: a + (1.0 - decay) * (p - a), average, params)
