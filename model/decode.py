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

from model import config as model_config
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

  LongRoPE has other factors for all positions once one lies beyond the original
  context: as the longest row gets there, everything is computed again.

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

  turns = turning_points(model.config)

  def extend(cache, text, token):
    del text
    output = model(token[:, None], cache=cache)
    return output.hidden, output.cache

  def again(cache, text, token):
    del token
    in_text = jnp.arange(text.shape[1]) <= cache.lengths[:, None]
    output = model(
      text,
      segment_ids=in_text.astype(jnp.int32),
      cache=model.make_cache(rows=rows, slots=text.shape[1]),
    )
    newest = cache.lengths[:, None, None]
    return jnp.take_along_axis(output.hidden, newest, axis=1), output.cache

  def step(carry, _):
    logits, cache, text = carry
    allowed = logits
    if forbidden:
      allowed = logits.at[:, jnp.array(forbidden)].set(-jnp.inf)
    token = jnp.argmax(allowed, axis=-1)
    if turns:
      text = text.at[jnp.arange(rows), cache.lengths].set(token)
      turned = jnp.isin(jnp.max(cache.lengths), jnp.array(turns))
      hidden, cache = jax.lax.cond(turned, again, extend, cache, text, token)
    else:
      hidden, cache = extend(cache, text, token)
    return (model.logits(hidden)[:, 0], cache, text), (token, logits)

  text = jnp.pad(tokens, ((0, 0), (0, num_tokens)))
  first = (model.logits(last)[:, 0], output.cache, text)
  _, (chosen, logits) = jax.lax.scan(step, first, length=num_tokens)
  return Continuation(
    tokens=chosen.swapaxes(0, 1), logits=logits.swapaxes(0, 1)
  )


def turning_points(config: model_config.ModelConfig) -> list[int]:
  """Lengths behind which LongRoPE takes its long factors."""
  ropes = [getattr(block.mixer, "rope", None) for block in config.layers]
  scalings = [rope.scaling for rope in ropes if rope is not None]
  return sorted(
    {
      scaling.original_max_seq_len
      for scaling in scalings
      if isinstance(scaling, model_config.LongRopeScaling)
    }
  )
