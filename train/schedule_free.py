"""Schedule-Free: no decay of the learning rate, and none to plan for.

"The Road Less Scheduled" (arXiv:2405.15682), by optax. There are three points:
z, stepped without momentum; x, the average of all z; and between them y, where
gradients are taken. y is the state's parameters, z lies in the optimizer's
state, and x follows from both. x is the result: what is evaluated and served.
"""

from typing import Any

import jax
import optax


def wrap(
  base: optax.GradientTransformation, schedule: optax.Schedule, *, b1: float
) -> optax.GradientTransformationExtraArgs:
  """The updates of y.

  Args:
    base: Gives the updates of z; without momentum of its own.
    schedule: Its learning rate: an average weighs each z by the largest rate so
      far, squared, so that those of the warm-up count little.
    b1: How near y is to x; 0 is z.
  """
  return optax.contrib.schedule_free(
    base,
    # Optax asks for the rate of its step 1 first.
    learning_rate=lambda step: schedule(step - 1),
    b1=b1,
  )


def is_state(optimizer_state: Any) -> bool:
  """Whether it is of an optimizer that `wrap` made."""
  return isinstance(optimizer_state, optax.contrib.ScheduleFreeState)


@jax.jit
def average(optimizer_state: Any, params: Any) -> Any:
  """x, of the optimizer's state and y."""
  return optax.contrib.schedule_free_eval_params(optimizer_state, params)
