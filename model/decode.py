"""Greedy decoding with a cache: the likeliest token, again and again.

The plain loop that tools and tests use; a server schedules requests instead.

Dims: B rows, T prompt length, C continuation length, V vocabulary.
"""

import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from model import transformer


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["tokens", "logits"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Continuation:
  """What follows each prompt.

  Attributes:
    tokens: The chosen ids.
    logits: From which each was chosen, the forbidden ones' too.
  """

  tokens: Int[Array, "B C"]
  logits: Float[Array, "B C V"]


def greedy(
  params: Any,
  tokens: Int[Array, "B T"],
  lengths: Int[Array, "B"],
  *,
  graphdef: nnx.GraphDef,
  num_tokens: int,
  forbidden: tuple[int, ...] = (),
) -> Continuation:
  """Continues every prompt by `num_tokens` tokens; jit it.

  Args:
    params: The model's parameters.
    tokens: Prompts, right-padded with anything.
    lengths: Tokens of each prompt, at least 1.
    graphdef: The model's structure.
    num_tokens: C.
    forbidden: Ids that are never chosen, such as the end of the text.
  """
  model = transformer.bind(graphdef, params)
  rows, longest = tokens.shape
  cache = model.make_cache(rows=rows, slots=longest + num_tokens)
  in_prompt = jnp.arange(longest) < lengths[:, None]
  output = model(tokens, segment_ids=in_prompt.astype(jnp.int32), cache=cache)
  last = jnp.take_along_axis(
    output.hidden, (lengths - 1)[:, None, None], axis=1
  )

  def step(carry, _):
    logits, cache = carry
    allowed = logits
    if forbidden:
      allowed = logits.at[:, jnp.array(forbidden)].set(-jnp.inf)
    token = jnp.argmax(allowed, axis=-1)
    output = model(token[:, None], cache=cache)
    return (model.logits(output.hidden)[:, 0], output.cache), (token, logits)

  first = (model.logits(last)[:, 0], output.cache)
  _, (chosen, logits) = jax.lax.scan(step, first, length=num_tokens)
  return Continuation(
    tokens=chosen.swapaxes(0, 1), logits=logits.swapaxes(0, 1)
  )
