"""Held-out loss, per source and for the mixture."""

from collections.abc import Callable, Iterable
import dataclasses
import math
from typing import Any

import jax

from model import sharding
from train import loss as loss_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
  """Loss on one source's held-out text.

  Attributes:
    nats_per_token: Mean negative log-likelihood.
    bits_per_byte: The same per byte of text: comparable between tokenizers.
    num_tokens: Tokens scored.
  """

  nats_per_token: float
  bits_per_byte: float
  num_tokens: int


def score(
  params: Any,
  batches: Iterable[dict[str, Any]],
  *,
  num_bytes: float,
  eval_step: Callable[[Any, Any], loss_lib.LossSums],
  mesh: jax.sharding.Mesh,
) -> HeldOut:
  """The loss over all of `batches`.

  Args:
    params: The model's parameters.
    batches: This process's rows of each batch, as numpy arrays.
    num_bytes: Bytes of text that the scored tokens stand for.
    eval_step: The jitted step.make_eval_step(...).
    mesh: Where the batches go.
  """
  nll = tokens = 0.0
  for batch in batches:
    sums = jax.device_get(eval_step(params, sharding.put_batch(batch, mesh)))
    nll += float(sums.nll)
    tokens += float(sums.weight)
  return HeldOut(
    nats_per_token=nll / max(tokens, 1.0),
    bits_per_byte=nll / math.log(2) / max(num_bytes, 1.0),
    num_tokens=int(tokens),
  )


def blend(results: dict[str, HeldOut], weights: dict[str, float]) -> HeldOut:
  """The mixture's loss: each source's, weighted by its share in training."""
  total = sum(weights[name] for name in results)

  def mean(field: str) -> float:
    return sum(
      weights[name] / total * getattr(result, field)
      for name, result in results.items()
    )

  return HeldOut(
    nats_per_token=mean("nats_per_token"),
    bits_per_byte=mean("bits_per_byte"),
    num_tokens=sum(result.num_tokens for result in results.values()),
  )
