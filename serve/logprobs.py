"""Log-probabilities of tokens: computed on the device, made into values here.

They are of the logits as the model gives them, before any setting changes
them.

Dims: `...` any, such as B rows or B rows and T positions; V vocabulary, N of
the likeliest.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from serve import request as request_lib

# How many of the likeliest are computed: few numbers, so few compiled programs.
NUM_TOP = (0, 5, request_lib.MAX_LOGPROBS)


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["logprob", "rank", "top_ids", "top_logprobs"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Logprobs:
  """Of each position, as `request.TokenLogprobs`.

  Attributes:
    logprob: Of the token that is there.
    rank: How many tokens are at least as likely, itself included.
    top_ids: The likeliest tokens, likeliest first, of equals the smallest id.
    top_logprobs: Theirs.
  """

  logprob: Float[Array, "..."]
  rank: Int[Array, "..."]
  top_ids: Int[Array, "... N"]
  top_logprobs: Float[Array, "... N"]


def num_top(wanted: int) -> int:
  """The number to compute for a number that is wanted."""
  return next(number for number in NUM_TOP if number >= wanted)


def compute(
  logits: Float[Array, "... V"], tokens: Int[Array, "..."], *, num_top: int
) -> Logprobs:
  """Log-probabilities of tokens; jit it with `num_top` static.

  Args:
    logits: float32.
    tokens: The token at each position; any id where it does not matter.
    num_top: One of `NUM_TOP`; of a smaller vocabulary, all.
  """
  # Differences first: large logits would take digits from what is small.
  logits = logits - jnp.max(logits, axis=-1, keepdims=True)
  total = jnp.log(jnp.sum(jnp.exp(logits), axis=-1))
  own = jnp.take_along_axis(logits, tokens[..., None], axis=-1, mode="clip")
  rank = jnp.sum(logits >= own, axis=-1, dtype=jnp.int32)
  top, top_ids = jax.lax.top_k(logits, min(num_top, logits.shape[-1]))
  return Logprobs(
    logprob=own[..., 0] - total,
    rank=rank,
    top_ids=top_ids,
    top_logprobs=top - total[..., None],
  )


def values(
  logprobs: Logprobs, index: tuple[int, ...], *, num_top: int
) -> request_lib.TokenLogprobs:
  """Those of one position.

  Args:
    logprobs: NumPy arrays: fetch them from the device first, all at once.
    index: Of the position.
    num_top: How many of the likeliest are wanted, of those that were computed.
  """
  ids = np.asarray(logprobs.top_ids)[index][:num_top].tolist()
  top = np.asarray(logprobs.top_logprobs)[index][:num_top].tolist()
  return request_lib.TokenLogprobs(
    logprob=float(np.asarray(logprobs.logprob)[index]),
    rank=int(np.asarray(logprobs.rank)[index]),
    top=tuple(zip(ids, top, strict=True)),
  )
