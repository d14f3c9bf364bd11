"""Multi-token prediction (DeepSeek-V3, arXiv:2412.19437, 2.2).

Module d = 1, 2, ... predicts the token after the next d, keeping the causal
chain: its hidden state at position i comes from module d - 1's there and from
the embedding of token i + d, and with the model's own head it gives the logits
of token i + d + 1:

  h'_d[i] = project [norm(h_{d-1}[i]) ; norm(embed(t[i + d]))]
  h_d = block(h'_d),  logits_d = head(norm(h_d))

h_0 is the residual stream after the model's last block, before its final norm:
the paper says "the representation given by the main model", its figure shows no
norm there, and the module norms what it is given. Likewise h_d is handed on
without the norm that stands before the head.

Dims: B batch, T length, D model, M the model dim again.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from model import kv_cache
from model import linear
from model import sharding


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["hidden", "router"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
  """What one module gives.

  Attributes:
    hidden: Final hidden states, normed: multiply with the model's head.
    router: What the block's router did (moe.RouterStats, not stacked); None
      without a mixture of experts.
  """

  hidden: Float[Array, "B T D"]
  router: Any


class Module(nnx.Module):
  """Predicts one token further than what it is given."""

  def __init__(
    self,
    dim: int,
    *,
    make_block: Callable[..., Any],
    make_norm: Callable[[], Any],
    init_std: float,
    param_dtype: str,
    remat: str,
    rngs: nnx.Rngs,
  ):
    """Makes the parameters.

    Args:
      dim: D.
      make_block: Gives a transformer.Block for `rngs`.
      make_norm: Gives a norm over D.
      init_std: Of the projection.
      param_dtype: Of the parameters.
      remat: As ExecutionConfig.remat.
      rngs: Randomness.
    """

    def normal():
      return nnx.Param(
        init_std * jax.random.normal(rngs(), (dim, dim), param_dtype)
      )

    self.hidden_norm = make_norm()
    self.embed_norm = make_norm()
    # The two halves of the projection from 2 D.
    self.hidden_DM = normal()
    self.embed_DM = normal()
    self.block = make_block(rngs=rngs)
    self.final_norm = make_norm()
    self.remat = remat

  def __call__(
    self,
    hidden: Float[Array, "B T D"],
    embedded: Float[Array, "B T D"],
    span: kv_cache.Span,
  ) -> tuple[Float[Array, "B T D"], Any]:
    """The hidden state for the next module, and what the block's router did.

    Args:
      hidden: Of the module before, or the model's residual stream.
      embedded: Of the token that lies as far ahead as this module's number.
      span: Where the tokens stand; segment 0 where there is none ahead.
    """

    # Keeps its arguments for the backward pass, not also their norms.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def combine(hidden, embedded):
      return linear.project(
        "BTD,DM->BTM", self.hidden_norm(hidden), self.hidden_DM[...]
      ) + linear.project(
        "BTD,DM->BTM", self.embed_norm(embedded), self.embed_DM[...]
      )

    def run(hidden, embedded):
      x = sharding.constrain(combine(hidden, embedded), "BTD")
      x, _, stats = self.block(x, span, bounded=True)
      return x, stats

    if self.remat == "full":
      run = jax.checkpoint(run, prevent_cse=False)
    return run(hidden, embedded)


def predict(
  modules: Sequence[Module],
  residual: Float[Array, "B T D"],
  tokens: Int[Array, "B T"],
  *,
  embed: Callable[[Int[Array, "B T"]], Float[Array, "B T D"]],
  span: kv_cache.Span,
) -> tuple[Prediction, ...]:
  """Runs all modules, one behind the other.

  Args:
    modules: First to last.
    residual: The model's, before its final norm.
    tokens: What the model was given.
    embed: The model's embedding.
    span: Where the tokens stand.
  """
  predictions = []
  hidden = residual
  for places, module in enumerate(modules, start=1):
    # Positions without a token ahead are padding. They are a segment's last, so
    # that no other position sees them.
    valid = has_ahead(span.segment_ids, places)
    segment_ids = jnp.where(valid, span.segment_ids, 0)
    embedded = sharding.constrain(embed(ahead(tokens, places)), "BTD")
    hidden, stats = module(
      hidden,
      embedded,
      dataclasses.replace(
        span, segment_ids=segment_ids, key_segment_ids=segment_ids
      ),
    )
    predictions.append(
      Prediction(hidden=module.final_norm(hidden), router=stats)
    )
  return tuple(predictions)


def ahead(x: jax.Array, places: int) -> jax.Array:
  """What lies `places` further in each row of `x` [B, T]; 0 past its end."""
  return jnp.pad(x[:, places:], ((0, 0), (0, min(places, x.shape[1]))))


def has_ahead(segment_ids: Int[Array, "B T"], places: int) -> jax.Array:
  """Which positions have a token of their segment so far ahead [B, T]."""
  return (ahead(segment_ids, places) == segment_ids) & (segment_ids > 0)
