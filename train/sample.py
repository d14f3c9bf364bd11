"""Text from a model, the plain way: one full forward pass per token.

No cache, no batching tricks: it is a look at a model in training, and the
definition that a decode engine must equal.

Dims: B prompts, T length of prompt and continuation together.
"""

import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from data import tokenizer as tokenizer_lib
from model import sharding
from model import transformer


def continue_tokens(
  params: Any,
  tokens: Int[Array, "B T"],
  lengths: Int[Array, "B"],
  key: jax.Array,
  *,
  graphdef: nnx.GraphDef,
  temperature: float,
) -> Int[Array, "B T"]:
  """Fills `tokens` from each row's length on.

  Args:
    params: The model's parameters.
    tokens: Prompts, padded with anything.
    lengths: Tokens of each prompt, at least 1.
    key: Of the random choices; unused at temperature 0.
    graphdef: The model's structure.
    temperature: Divides the logits; 0 takes the likeliest token.

  Returns:
    Prompts and continuations.
  """

  def step(position, tokens):
    model = transformer.bind(graphdef, params)
    # What is still to be filled must not take experts' capacity, for one.
    segment_ids = jnp.broadcast_to(
      (jnp.arange(tokens.shape[1]) < position).astype(jnp.int32), tokens.shape
    )
    output = model(tokens, segment_ids=segment_ids)
    hidden = output.hidden[:, position - 1, None]
    logits = model.logits(hidden)[:, 0]
    if temperature > 0:
      choice = jax.random.categorical(
        jax.random.fold_in(key, position), logits / temperature
      )
    else:
      choice = jnp.argmax(logits, axis=-1)
    keep = position < lengths
    token = jnp.where(keep, tokens[:, position], choice)
    return tokens.at[:, position].set(token)

  return sharding.replicate(jax.lax.fori_loop(1, tokens.shape[1], step, tokens))


class Sampler:
  """Continues the same prompts again and again while a model trains."""

  def __init__(
    self,
    *,
    graphdef: nnx.GraphDef,
    tokenizer: tokenizer_lib.Tokenizer,
    prompts: tuple[str, ...],
    num_tokens: int,
    temperature: float,
  ):
    """Encodes `prompts`, each as the start of a document."""
    self._tokenizer = tokenizer
    encoded = [
      [tokenizer.eos_id, *tokenizer.encode(prompt)][:num_tokens]
      for prompt in prompts
    ]
    self._lengths = jnp.array([len(ids) for ids in encoded])
    total = max(len(ids) for ids in encoded) + num_tokens
    self._tokens = jnp.array(
      [ids + [0] * (total - len(ids)) for ids in encoded]
    )
    self._continue = jax.jit(
      functools.partial(
        continue_tokens, graphdef=graphdef, temperature=temperature
      )
    )

  def __call__(self, params: Any, *, seed: int) -> list[str]:
    """One text per prompt, prompt included, up to the document's end."""
    out = self._continue(
      params, self._tokens, self._lengths, jax.random.key(seed)
    )
    texts = []
    for ids in jax.device_get(out).tolist():
      body = ids[1:]
      if self._tokenizer.eos_id in body:
        body = body[: body.index(self._tokenizer.eos_id)]
      texts.append(self._tokenizer.decode(body))
    return texts
