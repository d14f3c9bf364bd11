"""Which experts each token goes to, and whether they are evenly used.

All in float32. What the train step needs of a batch is summed over its tokens
in `RouterStats`: sums add up over devices and layers, averages do not.

Dims: B batch, T length, D model, E experts, K experts of a token.
"""

import dataclasses
import functools

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from model import config as model_config

# Logits and the chosen experts, under this name for jax.checkpoint's policies.
ROUTING = "router_routing"


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["logits", "probs", "indices", "weights"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Routing:
  """Each token's experts.

  Attributes:
    logits: The router's output.
    probs: A distribution over all experts: the softmax of the logits, or their
      sigmoids divided by the sum. What balance is measured by.
    indices: The chosen experts, best first; of equals the lowest first.
    weights: Their shares in the output.
  """

  logits: Float[Array, "*B E"]
  probs: Float[Array, "*B E"]
  indices: Int[Array, "*B K"]
  weights: Float[Array, "*B K"]


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=[
    "num_tokens",
    "probs",
    "counts",
    "z",
    "entropy",
    "num_dropped",
    "num_sequences",
    "sequence_balance",
    "routing",
  ],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class RouterStats:
  """Sums over the valid tokens of a batch, float32; layers lead if stacked.

  Attributes:
    num_tokens: Valid tokens.
    probs: Of `Routing.probs`.
    counts: How many tokens chose each expert.
    z: Of the squared logsumexp of the logits.
    entropy: Of the entropy of `Routing.probs`, in nats.
    num_dropped: Choices that found their expert full.
    num_sequences: Rows of the batch with a valid token.
    sequence_balance: Of these rows' own load-balance losses.
    routing: Each token's, if it was asked for.
  """

  num_tokens: Float[Array, "*L"]
  probs: Float[Array, "*L E"]
  counts: Float[Array, "*L E"]
  z: Float[Array, "*L"]
  entropy: Float[Array, "*L"]
  num_dropped: Float[Array, "*L"]
  num_sequences: Float[Array, "*L"]
  sequence_balance: Float[Array, "*L"]
  routing: Routing | None = None


def route(
  logits: Float[Array, "*B E"],
  config: model_config.RouterConfig,
  *,
  num_chosen: int,
  selection_bias_E: Float[Array, "E"] | None = None,
) -> Routing:
  """Chooses `num_chosen` experts per token.

  Args:
    logits: The router's output, float32.
    config: How.
    num_chosen: K.
    selection_bias_E: Added to the scores for choosing only; gets no gradient.
  """
  if config.score == "sigmoid":
    scores = jax.nn.sigmoid(logits)
    probs = scores / (jnp.sum(scores, axis=-1, keepdims=True) + 1e-20)
  else:
    probs = jax.nn.softmax(logits, axis=-1)
    scores = probs if config.score == "softmax" else logits
  choice = jax.lax.stop_gradient(scores)
  if selection_bias_E is not None:
    choice += jax.lax.stop_gradient(selection_bias_E).astype(choice.dtype)
  if config.num_groups > 1:
    choice = _within_best_groups(choice, config)
  indices = checkpoint_name(jax.lax.top_k(choice, num_chosen)[1], ROUTING)
  weights = jnp.take_along_axis(scores, indices, axis=-1)
  if config.score == "softmax_after_topk":
    weights = jax.nn.softmax(weights, axis=-1)
  elif config.normalize:
    # The tiny number is DeepSeek-V3's: sigmoids may all be 0.
    tiny = 1e-20 if config.score == "sigmoid" else 0.0
    weights /= jnp.sum(weights, axis=-1, keepdims=True) + tiny
  return Routing(
    logits=logits, probs=probs, indices=indices, weights=weights * config.scale
  )


def _within_best_groups(
  choice: Float[Array, "*B E"], config: model_config.RouterConfig
) -> Float[Array, "*B E"]:
  """-inf for the experts outside of a token's best groups."""
  grouped = choice.reshape(*choice.shape[:-1], config.num_groups, -1)
  if config.group_score == "max":
    group_scores = jnp.max(grouped, axis=-1)
  else:
    # A group of one expert has no second best.
    num_best = min(2, grouped.shape[-1])
    group_scores = jnp.sum(jax.lax.top_k(grouped, num_best)[0], axis=-1)
  best = jax.lax.top_k(group_scores, config.groups_per_token)[1]
  is_best = jnp.any(best[..., None] == jnp.arange(config.num_groups), axis=-2)
  return jnp.where(is_best[..., None], grouped, -jnp.inf).reshape(choice.shape)


def summarize(
  routing: Routing,
  *,
  valid: Bool[Array, "B T"],
  dropped: Bool[Array, "B T K"] | None = None,
  axis: str | None = None,
) -> RouterStats:
  """The sums over valid tokens.

  Args:
    routing: Of tokens [B, T].
    valid: Tokens that count; padding does not.
    dropped: Choices that found their expert full; none if not given.
    axis: Mesh axis over whose devices the rows are cut, under shard_map: the
      sums are those of all.
  """

  def total(x: jax.Array) -> jax.Array:
    return x if axis is None else jax.lax.psum(x, axis)

  num_experts, num_chosen = routing.probs.shape[-1], routing.indices.shape[-1]
  rows = valid.shape[0]
  weight = valid.astype(jnp.float32)
  num_tokens_B = total(jnp.sum(weight, axis=1))
  probs_BE = total(jnp.einsum("BTE,BT->BE", routing.probs, weight))
  counts_BE = total(
    jnp.zeros((rows, num_experts))
    .at[jnp.arange(rows)[:, None, None], routing.indices]
    .add(jnp.broadcast_to(weight[..., None], routing.indices.shape))
  )
  logsumexp = jax.nn.logsumexp(routing.logits, axis=-1)
  entropy = -jnp.sum(_x_log_x(routing.probs), axis=-1)
  balance_B = _balance(counts_BE, probs_BE, num_tokens_B)
  num_dropped = jnp.zeros(())
  if dropped is not None:
    assert dropped.shape[-1] == num_chosen
    num_dropped = total(jnp.sum(dropped * weight[..., None]))
  return RouterStats(
    num_tokens=jnp.sum(num_tokens_B),
    probs=jnp.sum(probs_BE, axis=0),
    counts=jnp.sum(counts_BE, axis=0),
    z=total(jnp.sum(jnp.square(logsumexp) * weight)),
    entropy=total(jnp.sum(entropy * weight)),
    num_dropped=num_dropped,
    num_sequences=jnp.sum(num_tokens_B > 0).astype(jnp.float32),
    sequence_balance=jnp.sum(balance_B),
  )


def _x_log_x(x):
  """x log x and its gradient, 0 where x is 0."""
  positive = x > 0
  return jnp.where(positive, x * jnp.log(jnp.where(positive, x, 1)), 0)


def _balance(counts_E, probs_E, num_tokens):
  """E * sum_e f_e P_e; 0 without tokens."""
  num_experts = counts_E.shape[-1]
  dot = jnp.sum(jax.lax.stop_gradient(counts_E) * probs_E, axis=-1)
  return num_experts * dot / jnp.square(jnp.maximum(num_tokens, 1))


def sum_layers(stats: RouterStats) -> RouterStats:
  """Stacked stats [L, ...] as those of one layer with all layers' tokens."""
  return jax.tree.map(
    lambda x: jnp.sum(x, axis=0), dataclasses.replace(stats, routing=None)
  )


def load_balance_loss(
  stats: RouterStats, *, scope: str = "batch"
) -> Float[Array, "*L"]:
  """E * sum_e f_e P_e (Switch Transformer, arXiv:2101.03961), K when balanced.

  f_e is the share of tokens that chose expert e (they sum to K, as in Hugging
  Face Transformers; DeepSeek divides by K), P_e the mean of its probability.

  Args:
    stats: Of a batch. Hugging Face's loss of a model is that of `sum_layers`.
    scope: f and P are averages over the `batch`, or over each `sequence` (row),
      the result being the mean over these (DeepSeek-V3, arXiv:2412.19437).
      Balance in a batch leaves experts free to specialise (arXiv:2501.11873).
  """
  match scope:
    case "batch":
      return _balance(stats.counts, stats.probs, stats.num_tokens)
    case "sequence":
      return stats.sequence_balance / jnp.maximum(stats.num_sequences, 1)
    case _:
      raise ValueError(f"scope={scope!r} must be 'batch' or 'sequence'.")


def z_loss(stats: RouterStats) -> Float[Array, "*L"]:
  """The mean squared logsumexp of the logits (ST-MoE, arXiv:2202.08906)."""
  return stats.z / jnp.maximum(stats.num_tokens, 1)


def load(stats: RouterStats) -> Float[Array, "*L E"]:
  """Each expert's share of all choices; they sum to 1."""
  total = jnp.sum(stats.counts, axis=-1, keepdims=True)
  return stats.counts / jnp.maximum(total, 1)


def metrics(stats: RouterStats) -> dict[str, Float[Array, "*L"]]:
  """What to watch.

  Returns:
    entropy: Mean entropy of a token's distribution over experts, in nats.
    load_entropy: Entropy of the load; log E when balanced, 0 when collapsed.
    max_load: The fullest expert's load in even shares; 1 when balanced.
    min_load: The emptiest expert's.
    drop_rate: Share of the choices that found their expert full.
  """
  load_E = load(stats)
  num_experts = load_E.shape[-1]
  num_choices = jnp.sum(stats.counts, axis=-1)
  return {
    "entropy": stats.entropy / jnp.maximum(stats.num_tokens, 1),
    "load_entropy": -jnp.sum(_x_log_x(load_E), axis=-1),
    "max_load": num_experts * jnp.max(load_E, axis=-1),
    "min_load": num_experts * jnp.min(load_E, axis=-1),
    "drop_rate": stats.num_dropped / jnp.maximum(num_choices, 1),
  }


def updated_bias(
  bias_E: Float[Array, "*L E"], load_E: Float[Array, "*L E"], *, rate: float
) -> Float[Array, "*L E"]:
  """The selection bias after a step: up for idle experts, down for busy ones.

  Balances without a loss (arXiv:2408.15664, as used in DeepSeek-V3).
  """
  mean = jnp.mean(load_E, axis=-1, keepdims=True)
  return bias_E + (rate * jnp.sign(mean - load_E)).astype(bias_E.dtype)
