"""What is computed in a step, as functions to be jitted.

They are separate programs, so that their variants add up rather than multiply:
`read` or `go_on` run the model, `choose` picks tokens; what few ask for (the
log-probabilities of chosen tokens, or of a prompt's) comes after. What was
chosen stays on the device, where the next step finds it.

Dims: B rows, T tokens of a row, K drafts, V vocabulary, D model, N tokens that
can be read at once.
"""

import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from model import kv_cache
from model import transformer
from serve import logprobs
from serve import sampling
from serve import shapes

Params = dict[str, Any]
Layers = dict[str, dict[str, Any]]

# Positions whose logits are held at once.
_LOGPROB_BLOCK = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
  """A model and where its pages are.

  Attributes:
    graphdef: Its structure.
    tables: By each of its windows, the one whose table it uses.
  """

  graphdef: nnx.GraphDef
  tables: dict[int, int]

  def run(
    self,
    params: Params,
    layers: Layers,
    inputs: shapes.Inputs,
    tokens: Int[Array, "B T"],
    num_tokens: Int[Array, "B"],
    ahead: Int[Array, ""] | int = 0,
  ) -> tuple[transformer.Transformer, transformer.Output]:
    """The model, and what it makes of each row's first `num_tokens`.

    Args:
      params: Its parameters.
      layers: Its pages.
      inputs: Of the rows; their tokens are not looked at.
      tokens: Of each row.
      num_tokens: How many are meant.
      ahead: Where the tokens stand, from `inputs.start` on.
    """
    model = transformer.bind(self.graphdef, params)
    in_row = jnp.arange(tokens.shape[1]) < num_tokens[:, None]
    cache = kv_cache.PagedCache(
      layers=layers,
      tables={w: inputs.tables[table] for w, table in self.tables.items()},
      start=inputs.start + ahead,
      rows=inputs.slot,
      length=inputs.length,
    )
    output = model(tokens, segment_ids=in_row.astype(jnp.int32), cache=cache)
    return model, output


def read(
  params: Params,
  layers: Layers,
  packed: Int[Array, "B C"],
  *,
  network: Network,
  form: shapes.Format,
  num_rows: int,
  num_tokens: int,
) -> tuple[
  Layers,
  Float[Array, "{num_rows} 1 V"],
  Float[Array, "{num_rows} D"],
  Float[Array, "{num_tokens} D"],
]:
  """Reads texts.

  Args:
    params: The model's.
    layers: Its pages; donate them.
    packed: Of shapes.Format.
    network: The model.
    form: Of `packed`.
    num_rows: To which rows are padded in what follows.
    num_tokens: N.

  Returns:
    The pages; the logits of each row's next token; the sum of its final hidden
    states; and all of these, one row of the call behind the other.
  """
  inputs = form.unpack(packed)
  model, output = network.run(
    params, layers, inputs, inputs.tokens, inputs.num_tokens
  )
  assert output.cache is not None
  in_row = jnp.arange(inputs.tokens.shape[1]) < inputs.num_tokens[:, None]
  hidden = jnp.where(in_row[..., None], output.hidden, 0)
  last = jnp.maximum(inputs.num_tokens - 1, 0)[:, None, None]
  last = jnp.take_along_axis(output.hidden, last, axis=1)
  last = _pad(last, num_rows)
  vocab_size = model.config.vocab_size
  logits = jax.lax.cond(
    jnp.any(inputs.active > 0),
    model.logits,
    lambda _: jnp.zeros((num_rows, 1, vocab_size), jnp.float32),
    last,
  )
  total = jnp.sum(hidden.astype(jnp.float32), axis=1)
  flat = _pad(hidden.reshape(-1, hidden.shape[-1]), num_tokens)
  return output.cache.layers, logits, _pad(total, num_rows), flat


def read_draft(
  params: Params,
  layers: Layers,
  packed: Int[Array, "B C"],
  *,
  network: Network,
  form: shapes.Format,
) -> Layers:
  """Reads texts with the model that will make drafts."""
  inputs = form.unpack(packed)
  _, output = network.run(
    params, layers, inputs, inputs.tokens, inputs.num_tokens
  )
  assert output.cache is not None
  return output.cache.layers


def go_on(
  params: Params,
  layers: Layers,
  last_token: Int[Array, "S"],
  packed: Int[Array, "B C"],
  drafts: Int[Array, "B K"],
  *,
  network: Network,
  form: shapes.Format,
) -> tuple[Layers, Float[Array, "B 1+K V"]]:
  """Logits behind each row's last token, and behind each draft.

  Args:
    params: The model's.
    layers: Its pages; donate them.
    last_token: Of each slot.
    packed: Of shapes.Format, without tokens.
    drafts: Of each row.
    network: The model.
    form: Of `packed`.
  """
  inputs = form.unpack(packed)
  tokens = jnp.concatenate([last_token[inputs.slot][:, None], drafts], axis=1)
  model, output = network.run(
    params, layers, inputs, tokens, inputs.num_tokens + inputs.num_drafts
  )
  assert output.cache is not None
  return output.cache.layers, model.logits(output.hidden)


def draft(
  params: Params,
  layers: Layers,
  state: sampling.State,
  packed: Int[Array, "B C"],
  drafts: Int[Array, "B K"],
  index: Int[Array, ""],
  *,
  network: Network,
  form: shapes.Format,
  variant: sampling.Variant,
) -> tuple[Layers, Int[Array, "B K"]]:
  """Makes one more draft of each row; called 1 + K times.

  The last call only has the last draft's state written to the pages.

  Args:
    params: The draft model's.
    layers: Its pages; donate them.
    state: Of all slots.
    packed: Of shapes.Format, without tokens.
    drafts: Those made before.
    index: How many these are.
    network: The draft model.
    form: Of `packed`.
    variant: Of sampling.
  """
  inputs = form.unpack(packed)
  num_drafts = drafts.shape[1]
  before = jnp.take(drafts, jnp.maximum(index - 1, 0), axis=1)
  token = jnp.where(index == 0, state.last_token[inputs.slot], before)
  is_meant = (inputs.num_tokens > 0) & (index <= inputs.num_drafts)
  model, output = network.run(
    params,
    layers,
    inputs,
    token[:, None],
    is_meant.astype(jnp.int32),
    ahead=index,
  )
  assert output.cache is not None
  made = jnp.arange(num_drafts) < index
  proposed = sampling.propose(
    state,
    model.logits(output.hidden)[:, 0],
    slots=inputs.slot,
    positions=inputs.start + 1 + index,
    earlier=jnp.where(made, drafts, model.config.vocab_size),
    variant=variant,
  )
  is_next = jnp.arange(num_drafts) == index
  return output.cache.layers, jnp.where(is_next, proposed[:, None], drafts)


def choose(
  state: sampling.State,
  logits: Float[Array, "B 1+K V"],
  header: Int[Array, "B C"],
  drafts: Int[Array, "B K"],
  masks: UInt32[Array, "B 1+K W"] | None = None,
  *,
  form: shapes.Format,
  variant: sampling.Variant,
) -> tuple[sampling.State, Int[Array, "B 3+K"]]:
  """Chooses each row's next tokens.

  Args:
    state: Of all slots; donate it.
    logits: Of `read` or `go_on`.
    header: Of shapes.Format.
    drafts: As there.
    masks: Of `Variant.FULL`.
    form: Of `header`.
    variant: Of sampling.

  Returns:
    The state, and of each row: how many tokens were chosen, whether its logits
    are finite, and the tokens.
  """
  inputs = form.unpack(header)
  state, choice = sampling.choose(
    state,
    logits,
    slots=inputs.slot,
    positions=inputs.start + inputs.num_tokens,
    drafts=drafts,
    num_drafts=inputs.num_drafts,
    active=inputs.active > 0,
    masks=masks,
    variant=variant,
  )
  figures = jnp.stack([choice.num_chosen, choice.is_finite], axis=1)
  return state, jnp.concatenate([figures, choice.tokens], axis=1)


def chosen_logprobs(
  logits: Float[Array, "B 1+K V"],
  chosen: Int[Array, "B 3+K"],
  *,
  num_top: int,
) -> logprobs.Logprobs:
  """Of the tokens that `choose` gave."""
  return logprobs.compute(logits, chosen[:, 2:], num_top=num_top)


def prompt_logprobs(
  params: Params,
  hidden: Float[Array, "N D"],
  targets: Int[Array, "N"],
  *,
  network: Network,
  num_top: int,
) -> logprobs.Logprobs:
  """Of the token behind each hidden state of `read`, block by block."""
  model = transformer.bind(network.graphdef, params)
  size = min(_LOGPROB_BLOCK, hidden.shape[0])

  def block(hidden_and_targets):
    hidden, targets = hidden_and_targets
    return logprobs.compute(
      model.logits(hidden[None])[0], targets, num_top=num_top
    )

  blocks = jax.lax.map(
    block,
    (hidden.reshape(-1, size, hidden.shape[1]), targets.reshape(-1, size)),
  )
  return jax.tree.map(
    lambda x: x.reshape(x.shape[0] * size, *x.shape[2:]), blocks
  )


def _pad(x: jax.Array, num: int) -> jax.Array:
  """With zeros to so many rows."""
  return jnp.pad(x, ((0, num - x.shape[0]), *((0, 0),) * (x.ndim - 1)))
