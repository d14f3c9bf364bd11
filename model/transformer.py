"""The decoder: embed -> blocks -> norm -> logits. Read this first.

Modules are Flax NNX; at the step boundary a model is a graph definition (its
structure, hashable) and a plain nested dict of arrays (its parameters):

  graphdef, shapes = transformer.abstract(config, execution)
  params = transformer.init(config, execution, seed=0)
  hidden = transformer.bind(graphdef, params)(tokens)

Parameters of the layers of a group are stacked on a leading L dim and scanned
over, so that compile time does not grow with depth. Their names
(`group_0.block_0.mixer.q_DNH`) are public: checkpoints, surgery and name maps
address them.

Dims: B batch, T length, D model, V vocabulary, L layers.
"""

from collections.abc import Callable
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from model import attention
from model import config as model_config
from model import mlp
from model import norm
from model import sharding


class Block(nnx.Module):
  """x + mixer(norm(x)), then x + feed_forward(norm(x)) (pre-norm)."""

  def __init__(
    self,
    block: model_config.BlockConfig,
    *,
    config: model_config.ModelConfig,
    execution: model_config.ExecutionConfig,
    rngs: nnx.Rngs,
  ):
    """`config` is the model that the block is a part of."""
    make_norm = functools.partial(
      norm.RmsNorm,
      config.dim,
      eps=config.norm_eps,
      param_dtype=execution.param_dtype,
    )
    init = {
      "dim": config.dim,
      "init_std": config.init_std,
      "out_std": config.init_std / (2 * config.num_layers) ** 0.5,
      "param_dtype": execution.param_dtype,
      "rngs": rngs,
    }
    self.mixer_norm = make_norm()
    self.mixer = attention.Attention(
      block.mixer, implementation=execution.attention, **init
    )
    self.feed_forward_norm = make_norm()
    self.feed_forward = mlp.Mlp(block.feed_forward, **init)

  def __call__(
    self,
    x: Float[Array, "B T D"],
    positions: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
  ) -> Float[Array, "B T D"]:
    x += self.mixer(
      x, norm=self.mixer_norm, positions=positions, segment_ids=segment_ids
    )
    return x + self.feed_forward(x, norm=self.feed_forward_norm)


def _stack(make: Callable[..., Block], repeats: int, rngs: nnx.Rngs) -> Block:
  """`repeats` blocks in one, each parameter with a leading L dim."""

  @nnx.split_rngs(splits=repeats)
  @nnx.vmap(in_axes=(0,), out_axes=0)
  def make_layers(rngs):
    return make(rngs=rngs)

  return make_layers(rngs)


class Group(nnx.Module):
  """A pattern of blocks whose parameters are stacked over its repeats."""

  def __init__(
    self,
    group: model_config.LayerGroup,
    *,
    config: model_config.ModelConfig,
    execution: model_config.ExecutionConfig,
    rngs: nnx.Rngs,
  ):
    for i, block in enumerate(group.pattern):
      make = functools.partial(Block, block, config=config, execution=execution)
      setattr(self, f"block_{i}", _stack(make, group.repeats, rngs))
    self.num_blocks = len(group.pattern)
    self.remat = execution.remat

  def __call__(self, x, positions, segment_ids):
    graphdef, stacked = nnx.split(self)

    def layer(x, params):
      group = nnx.merge(graphdef, params)
      for i in range(self.num_blocks):
        x = getattr(group, f"block_{i}")(x, positions, segment_ids)
      return x, None

    if self.remat == "full":
      layer = jax.checkpoint(layer, prevent_cse=False)
    x, _ = jax.lax.scan(layer, x, stacked)
    return x


class Transformer(nnx.Module):
  """A decoder-only language model."""

  def __init__(
    self,
    config: model_config.ModelConfig,
    *,
    execution: model_config.ExecutionConfig,
    rngs: nnx.Rngs,
  ):
    """Initialises parameters from `rngs`; see `init` for the usual way."""
    dtype = execution.param_dtype

    def normal(shape):
      return nnx.Param(
        config.init_std * jax.random.normal(rngs(), shape, dtype)
      )

    self.embed_VD = normal((config.vocab_size, config.dim))
    for i, group in enumerate(config.groups):
      layers = Group(group, config=config, execution=execution, rngs=rngs)
      setattr(self, f"group_{i}", layers)
    self.final_norm = norm.RmsNorm(
      config.dim, eps=config.norm_eps, param_dtype=dtype
    )
    if not config.tie_embeddings:
      self.head_DV = normal((config.dim, config.vocab_size))
    self.config = config
    self.compute_dtype = execution.compute_dtype

  def __call__(
    self,
    tokens: Int[Array, "B T"],
    *,
    positions: Int[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
  ) -> Float[Array, "B T D"]:
    """Final hidden states, normed: multiply with `head` for logits.

    Args:
      tokens: Token ids.
      positions: For RoPE; 0..T-1 if not given.
      segment_ids: Attention stays within equal ids; one segment if not given.
    """
    if positions is None:
      positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    if segment_ids is None:
      segment_ids = jnp.ones_like(tokens)
    table = sharding.constrain(self.embed_VD[...], "VD")
    x = table.astype(self.compute_dtype)[tokens]
    x = sharding.constrain(x, "BTD")
    for i in range(len(self.config.groups)):
      x = getattr(self, f"group_{i}")(x, positions, segment_ids)
    return self.final_norm(x)

  def head(self) -> Float[Array, "D V"]:
    """The output projection, in the dtype it is stored in."""
    if self.config.tie_embeddings:
      return self.embed_VD[...].T
    return self.head_DV[...]

  def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    """Unnormalised log-probabilities, float32."""
    return jnp.einsum(
      "BTD,DV->BTV",
      hidden,
      self.head().astype(hidden.dtype),
      preferred_element_type=jnp.float32,
    )


def init(
  config: model_config.ModelConfig,
  execution: model_config.ExecutionConfig,
  *,
  seed: int,
) -> dict[str, Any]:
  """Fresh parameters as nested dicts; call under jit to shard them."""
  model = Transformer(config, execution=execution, rngs=nnx.Rngs(seed))
  return nnx.to_pure_dict(nnx.state(model))


def abstract(
  config: model_config.ModelConfig, execution: model_config.ExecutionConfig
) -> tuple[nnx.GraphDef, dict[str, Any]]:
  """The graph definition, and the parameters' shapes without memory."""
  model = nnx.eval_shape(
    lambda: Transformer(config, execution=execution, rngs=nnx.Rngs(0))
  )
  graphdef, state = nnx.split(model)
  return graphdef, nnx.to_pure_dict(state)


def bind(graphdef: nnx.GraphDef, params: dict[str, Any]) -> Transformer:
  """The module with these parameters; inside jit this costs nothing."""
  return nnx.merge(graphdef, nnx.State(params))
