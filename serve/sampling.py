"""Chooses tokens from logits, on the device, each row by its own settings.

Randomness (serve/noise.py) depends on the request's seed and on the position of
the chosen token in the text alone, so what a request says does not depend on
its slot, on the size of the batch or on the company in it.

Speculation is sample-and-match: behind every draft the token is chosen that
would be chosen anyway, and drafts count as long as they are that token. What is
written is therefore what would be written without drafts.

Of equally likely tokens, top_k and top_p keep all or none (serve/truncation.py)
and greedy choice takes the smallest id.

Dims: B rows, K drafts, V vocabulary, W = ceil(V / 32) words of a mask, S slots,
R = B (1 + K) choices, J tokens.
"""

import dataclasses
import enum
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32
import numpy as np

from serve import noise
from serve import request as request_lib
from serve import truncation

# Entries of a request's logit_bias, as of OpenAI's API.
MAX_BIASES = 300
MAX_STOP_IDS = 64


class Variant(enum.IntEnum):
  """What a compiled program can do; each can what the ones before it can."""

  GREEDY = 0  # The likeliest token.
  SAMPLED = 1  # temperature, top_k, top_p, min_p, seed.
  FULL = 2  # Penalties, biases, masks, min_tokens.


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=[
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "min_length",
    "bias_ids",
    "biases",
    "stop_ids",
  ],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How tokens are chosen; `...` is nothing, S slots or R choices.

  Attributes:
    temperature: 0 takes the likeliest.
    top_k: V or more: all.
    top_p: 1: all.
    min_p: 0: all.
    repetition_penalty: 1: none.
    presence_penalty: 0: none.
    frequency_penalty: 0: none.
    seed: Of the request.
    min_length: Prompt and min_tokens: at an earlier position of the text no
      stop token is chosen, unless a mask leaves nothing else.
    bias_ids: Tokens with a bias; V: none.
    biases: Theirs.
    stop_ids: V: none.
  """

  temperature: Float[Array, "..."]
  top_k: Int[Array, "..."]
  top_p: Float[Array, "..."]
  min_p: Float[Array, "..."]
  repetition_penalty: Float[Array, "..."]
  presence_penalty: Float[Array, "..."]
  frequency_penalty: Float[Array, "..."]
  seed: UInt32[Array, "..."]
  min_length: Int[Array, "..."]
  bias_ids: Int[Array, "... 300"]
  biases: Float[Array, "... 300"]
  stop_ids: Int[Array, "... 64"]


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["settings", "last_token", "counts", "in_prompt"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
  """What is remembered of the request in each slot; donate it.

  Attributes:
    settings: Of each slot.
    last_token: Chosen last.
    counts: How often each token is in the output; kept by `FULL` alone, and
      right for requests with penalties alone.
    in_prompt: Which tokens are in the prompt; likewise.
  """

  settings: Settings
  last_token: Int[Array, "S"]
  counts: Int[Array, "S V"]
  in_prompt: Bool[Array, "S V"]


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["tokens", "num_chosen", "is_finite"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
  """What comes next.

  Attributes:
    tokens: All but the last of those that are chosen are right drafts; what is
      behind them means nothing.
    num_chosen: 0 in rows that are not active, or not finite.
    is_finite: Whether there was a likeliest token wherever one was asked for.
  """

  tokens: Int[Array, "B 1+K"]
  num_chosen: Int[Array, "B"]
  is_finite: Bool[Array, "B"]


def variant_of(request: request_lib.Request) -> Variant:
  """The least that all steps of a request need; a batch takes the greatest."""
  sampling = request.sampling
  if (
    sampling.has_penalties
    or sampling.logit_bias
    or request.constraint is not None
    or (request.min_tokens and request.stop_ids)
  ):
    return Variant.FULL
  return Variant.SAMPLED if sampling.temperature else Variant.GREEDY


def settings_of(request: request_lib.Request, *, vocab_size: int) -> Settings:
  """A request's settings as the device wants them: NumPy arrays.

  Raises:
    ValueError: It has more biases or stop tokens than there is room for, or one
      that the vocabulary does not have.
  """
  sampling = request.sampling
  ids = [token for token, _ in sampling.logit_bias]
  _check("logit_bias", ids, most=MAX_BIASES, vocab_size=vocab_size)
  stops = sorted(request.stop_ids)
  _check("stop_ids", stops, most=MAX_STOP_IDS, vocab_size=vocab_size)
  bias_ids = np.full(MAX_BIASES, vocab_size, np.int32)
  bias_ids[: len(ids)] = ids
  biases = np.zeros(MAX_BIASES, np.float32)
  biases[: len(ids)] = [bias for _, bias in sampling.logit_bias]
  stop_ids = np.full(MAX_STOP_IDS, vocab_size, np.int32)
  stop_ids[: len(stops)] = stops
  top_k = vocab_size if sampling.top_k is None else sampling.top_k
  arrays: dict[str, Any] = {
    "temperature": np.float32(sampling.temperature),
    "top_k": np.int32(min(top_k, vocab_size)),
    "top_p": np.float32(sampling.top_p),
    "min_p": np.float32(sampling.min_p),
    "repetition_penalty": np.float32(sampling.repetition_penalty),
    "presence_penalty": np.float32(sampling.presence_penalty),
    "frequency_penalty": np.float32(sampling.frequency_penalty),
    "seed": np.uint32(sampling.seed),
    "min_length": np.int32(len(request.prompt) + request.min_tokens),
    "bias_ids": bias_ids,
    "biases": biases,
    "stop_ids": stop_ids,
  }
  return Settings(**arrays)


def make(*, num_slots: int, vocab_size: int) -> State:
  """A state of slots that nothing is known of."""
  nobody = request_lib.Request(id="", prompt=(0,), max_tokens=0)
  one = settings_of(nobody, vocab_size=vocab_size)
  return State(
    settings=jax.tree.map(
      lambda x: jnp.full((num_slots, *x.shape), x, x.dtype), one
    ),
    last_token=jnp.zeros(num_slots, jnp.int32),
    counts=jnp.zeros((num_slots, vocab_size), jnp.int32),
    in_prompt=jnp.zeros((num_slots, vocab_size), bool),
  )


def text_counts(
  tokens: tuple[int, ...], *, num_prompt: int, vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
  """What penalties know of a text: `counts` and `in_prompt` of `admit`.

  Args:
    tokens: The prompt, and what has been written already if the request was
      interrupted.
    num_prompt: Tokens of the prompt.
    vocab_size: V.
  """
  output = np.asarray(tokens[num_prompt:], np.int64)
  in_prompt = np.zeros(vocab_size, bool)
  in_prompt[list(tokens[:num_prompt])] = True
  counts = np.bincount(output, minlength=vocab_size).astype(np.int32)
  return counts, in_prompt


def admit(
  state: State,
  slot: Int[Array, ""],
  settings: Settings,
  counts: Int[Array, "V"] | None = None,
  in_prompt: Bool[Array, "V"] | None = None,
) -> State:
  """Gives a slot to a request; jit it.

  Args:
    state: Before; donate it.
    slot: Which.
    settings: The request's.
    counts: Of a request with penalties; others need none.
    in_prompt: Likewise.
  """
  new = dataclasses.replace(
    state,
    settings=jax.tree.map(
      lambda all_, one: all_.at[slot].set(one), state.settings, settings
    ),
  )
  if counts is None or in_prompt is None:
    return new
  return dataclasses.replace(
    new,
    counts=state.counts.at[slot].set(counts),
    in_prompt=state.in_prompt.at[slot].set(in_prompt),
  )


def choose(
  state: State,
  logits: Float[Array, "B 1+K V"],
  *,
  slots: Int[Array, "B"],
  positions: Int[Array, "B"],
  drafts: Int[Array, "B K"],
  num_drafts: Int[Array, "B"],
  active: Bool[Array, "B"],
  masks: UInt32[Array, "B 1+K W"] | None = None,
  variant: Variant,
) -> tuple[State, Choice]:
  """Chooses the next tokens of each row; jit it with `variant` static.

  Args:
    state: Before; donate it.
    logits: Of the next token, and of the one behind each draft; float32.
    slots: Of each row; of active rows different ones.
    positions: In the text, of the token that `logits[:, 0]` are for: the length
      of the text before it.
    drafts: Guesses of the next tokens.
    num_drafts: How many of them are meant.
    active: Rows of which a token is wanted; of others nothing changes.
    masks: Which tokens are allowed, as `request.Constraint.masks`; `FULL` only.
    variant: What is done at all.
  """
  num_rows, width, vocab_size = logits.shape
  tokens, is_finite = _choose(
    state,
    logits.reshape(-1, vocab_size),
    slots=jnp.repeat(slots, width),
    positions=(positions[:, None] + jnp.arange(width)).reshape(-1),
    # Position i counts the drafts before it: if one was wrong, i is not used.
    earlier=jnp.where(
      jnp.arange(width)[:, None] > jnp.arange(width - 1),
      drafts[:, None],
      vocab_size,
    ).reshape(num_rows * width, width - 1),
    masks=None if masks is None else masks.reshape(num_rows * width, -1),
    variant=variant,
  )
  tokens = tokens.reshape(num_rows, width)
  is_finite = is_finite.reshape(num_rows, width)
  right = drafts == tokens[:, :-1]
  right &= jnp.arange(width - 1) < num_drafts[:, None]
  num_chosen = 1 + jnp.sum(jnp.cumprod(right, axis=1), axis=1, dtype=jnp.int32)
  chosen = jnp.arange(width) < num_chosen[:, None]
  finite = jnp.all(is_finite | ~chosen, axis=1) | ~active
  num_chosen = jnp.where(active & finite, num_chosen, 0)
  choice = Choice(tokens=tokens, num_chosen=num_chosen, is_finite=finite)
  return _remember(state, slots, choice, counts=variant is Variant.FULL), choice


def propose(
  state: State,
  logits: Float[Array, "B V"],
  *,
  slots: Int[Array, "B"],
  positions: Int[Array, "B"],
  earlier: Int[Array, "B J"] | None = None,
  variant: Variant,
) -> Int[Array, "B"]:
  """Drafts from another model's logits, with the noise of `choose`.

  With the same noise two models that are alike choose alike: that is as good a
  draft as there is. Masks and min_tokens' end of a mask it does not know.

  Args:
    state: As of `choose`; it does not change.
    logits: Of the draft.
    slots: Of each row.
    positions: Of the draft in the text.
    earlier: Drafts before it in this step, for penalties; V or more: none.
    variant: As of `choose`.
  """
  if earlier is None:
    earlier = jnp.zeros((logits.shape[0], 0), jnp.int32)
  tokens, _ = _choose(
    state,
    logits,
    slots=slots,
    positions=positions,
    earlier=earlier,
    masks=None,
    variant=variant,
  )
  return tokens


def unpack(
  masks: UInt32[Array, "R W"], *, vocab_size: int
) -> Bool[Array, "R V"]:
  """Whether each token is allowed, of packed bits."""
  bits = masks[..., None] >> jnp.arange(32, dtype=jnp.uint32) & 1
  return bits.reshape(masks.shape[0], -1)[:, :vocab_size].astype(bool)


def _check(field: str, ids: list[int], *, most: int, vocab_size: int) -> None:
  if len(ids) > most:
    raise ValueError(f"{field} has {len(ids)} tokens; give at most {most}")
  for token in ids:
    if not 0 <= token < vocab_size:
      raise ValueError(
        f"{field} has token {token}; give tokens of 0 to {vocab_size - 1}"
      )


def _choose(
  state: State,
  logits: Float[Array, "R V"],
  *,
  slots: Int[Array, "R"],
  positions: Int[Array, "R"],
  earlier: Int[Array, "R J"],
  masks: UInt32[Array, "R W"] | None,
  variant: Variant,
) -> tuple[Int[Array, "R"], Bool[Array, "R"]]:
  """One token from each row of logits, and whether there is one."""
  vocab_size = logits.shape[-1]
  rows = jax.tree.map(lambda x: x[slots], state.settings)
  is_finite = jnp.ones(logits.shape[0], bool)
  if variant is Variant.FULL:
    is_finite = jnp.isfinite(jnp.max(logits, axis=-1))
    logits = _penalized(state, logits, rows, slots=slots, earlier=earlier)
    ids = jnp.arange(logits.shape[0])[:, None]
    logits = logits.at[ids, rows.bias_ids].add(rows.biases, mode="drop")
    if masks is not None:
      allowed = unpack(masks, vocab_size=vocab_size)
      logits = jnp.where(allowed, logits, -jnp.inf)
    logits = _without_stops(logits, rows, positions)
  # Computed once, though read twice: what is equal to the best must be.
  logits = jax.lax.optimization_barrier(logits)
  best = jnp.max(logits, axis=-1, keepdims=True)
  is_finite &= jnp.isfinite(best[:, 0])
  if variant is Variant.GREEDY:
    token, is_found = _first(logits == best)
    return token, is_finite & is_found

  greedy = rows.temperature == 0
  # Differences first: a temperature of nearly 0 makes them -inf, never NaN.
  scaled = (logits - best) / jnp.where(greedy, 1, rows.temperature)[:, None]
  shares = jnp.exp(scaled)
  least = truncation.least_share(
    shares,
    top_k=jnp.where(greedy, vocab_size, rows.top_k),
    top_p=jnp.where(greedy, 1, rows.top_p),
    min_p=rows.min_p,
  )
  arrival = noise.exponential(rows.seed, positions, vocab_size=vocab_size)
  race = jnp.where(shares >= least[:, None], shares / arrival, -1)
  score = jnp.where(greedy[:, None], logits, race)
  score = jax.lax.optimization_barrier(score)
  token, is_found = _first(score == jnp.max(score, axis=-1, keepdims=True))
  return token, is_finite & is_found


def _penalized(
  state: State,
  logits: Float[Array, "R V"],
  rows: Settings,
  *,
  slots: Int[Array, "R"],
  earlier: Int[Array, "R J"],
) -> Float[Array, "R V"]:
  """Logits after penalties, `earlier` tokens counted as output."""
  counts = state.counts[slots]
  if earlier.shape[1]:
    ids = jnp.arange(logits.shape[0])[:, None]
    counts = counts.at[ids, earlier].add(1, mode="drop")
  repetition = rows.repetition_penalty[:, None]
  logits = jnp.where(
    (counts > 0) | state.in_prompt[slots],
    jnp.where(logits > 0, logits / repetition, logits * repetition),
    logits,
  )
  logits -= rows.frequency_penalty[:, None] * counts
  return logits - rows.presence_penalty[:, None] * (counts > 0)


def _without_stops(
  logits: Float[Array, "R V"], rows: Settings, positions: Int[Array, "R"]
) -> Float[Array, "R V"]:
  """Logits without stop tokens where it is too early for one."""
  vocab_size = logits.shape[-1]
  early = (positions < rows.min_length)[:, None]
  ids = jnp.where(early, rows.stop_ids, vocab_size)
  banned = logits.at[jnp.arange(logits.shape[0])[:, None], ids].set(
    -jnp.inf, mode="drop"
  )
  stuck = jnp.max(banned, axis=-1, keepdims=True) == -jnp.inf
  return jnp.where(stuck, logits, banned)


def _first(
  is_best: Bool[Array, "R V"],
) -> tuple[Int[Array, "R"], Bool[Array, "R"]]:
  """The first true of each row, and whether there is one.

  With the maximum before it a seventh of what argmax takes on XLA:CPU.
  """
  vocab_size = is_best.shape[-1]
  ids = jnp.arange(vocab_size, dtype=jnp.int32)
  first = jnp.min(jnp.where(is_best, ids, vocab_size), axis=-1)
  is_found = first < vocab_size
  return jnp.where(is_found, first, 0), is_found


def _remember(
  state: State, slots: Int[Array, "B"], choice: Choice, *, counts: bool
) -> State:
  """The state behind a choice; rows without one leave no trace."""
  num_slots, vocab_size = state.counts.shape
  last = jnp.maximum(choice.num_chosen - 1, 0)[:, None]
  token = jnp.take_along_axis(choice.tokens, last, axis=1)[:, 0]
  slots = jnp.where(choice.num_chosen > 0, slots, num_slots)
  new = dataclasses.replace(
    state, last_token=state.last_token.at[slots].set(token, mode="drop")
  )
  if not counts:
    return new
  width = choice.tokens.shape[1]
  chosen = jnp.arange(width) < choice.num_chosen[:, None]
  ids = jnp.where(chosen, choice.tokens, vocab_size)
  return dataclasses.replace(
    new, counts=state.counts.at[slots[:, None], ids].add(1, mode="drop")
  )
