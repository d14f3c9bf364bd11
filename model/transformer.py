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

With a cache (kv_cache.py) a model goes on where an earlier call ended:

  cache = model.make_cache(rows=B, slots=S)
  output = model(prompt, segment_ids=ids, cache=cache)
  output = model(next_token, cache=output.cache)

A server's cache lies in pages (`make_pages`), and each call is for other texts.

Dims: B batch, T length, D model, V vocabulary, L layers.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from model import attention
from model import config as model_config
from model import gated_delta_net
from model import kv_cache
from model import linear
from model import mla
from model import mlp
from model import moe
from model import mtp
from model import norm
from model import router as router_lib
from model import sharding
from model import zigzag


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=[
    "hidden",
    "cache",
    "router",
    "residual",
    "inputs",
    "max_logits",
  ],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
  """What a call of the model gives.

  Attributes:
    hidden: Final hidden states, normed: multiply with `head` for logits.
    cache: The cache with the new tokens in it; None without one.
    router: By group and block, what the routers did, stacked over L. Empty
      without mixtures of experts.
    residual: The residual stream after the last block, before the final norm.
    inputs: What enters each layer [L, B, T, D]; None unless `capture`.
    max_logits: By group and block of attention, the largest logit of each head
      [L, N] before a soft cap, or 0 if none is positive; empty unless
      `measure_logits`.
  """

  hidden: Float[Array, "B T D"]
  cache: kv_cache.Cache | kv_cache.PagedCache | None
  router: dict[str, dict[str, router_lib.RouterStats]]
  residual: Float[Array, "B T D"]
  inputs: Float[Array, "L B T D"] | None
  max_logits: dict[str, dict[str, Float[Array, "L N"]]]


class Block(nnx.Module):
  """x + mixer(norm(x)), then x + feed_forward(norm(x)).

  Norms stand before each of the two, after, or both (`BlockConfig.norms`).
  """

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
      norm.make, config, param_dtype=execution.param_dtype
    )
    if block.norms != "post":
      self.mixer_norm = make_norm()
      self.feed_forward_norm = make_norm()
    if block.norms != "pre":
      self.mixer_post_norm = make_norm()
      self.feed_forward_post_norm = make_norm()
    init: dict[str, Any] = {
      "dim": config.dim,
      "init_std": config.init_std,
      "out_std": config.init_std / (2 * config.num_layers) ** 0.5,
      "param_dtype": execution.param_dtype,
      "rngs": rngs,
    }
    match block.mixer:
      case model_config.AttentionConfig():
        self.mixer = attention.Attention(
          block.mixer,
          norm_eps=config.norm_eps,
          norm_offset=norm.offset(config),
          implementation=execution.attention,
          **init,
        )
      case model_config.MlaConfig():
        self.mixer = mla.Mla(
          block.mixer, implementation=execution.attention, **init
        )
      case model_config.GatedDeltaNetConfig():
        self.mixer = gated_delta_net.GatedDeltaNet(
          block.mixer, norm_eps=config.norm_eps, **init
        )
    match block.feed_forward:
      case model_config.MlpConfig():
        self.feed_forward = mlp.Mlp(block.feed_forward, **init)
      case model_config.MoeConfig():
        self.feed_forward = moe.Moe(
          block.feed_forward,
          implementation=execution.experts,
          exchange=execution.expert_exchange,
          **init,
        )
    self.norms = block.norms

  def __call__(
    self,
    x: Float[Array, "B T D"],
    span: kv_cache.Span,
    state: Any = None,
    *,
    capture: bool = False,
    bounded: bool = False,
  ) -> tuple[Float[Array, "B T D"], Any, router_lib.RouterStats | None]:
    """The block's output, the mixer's new state, and what the router did."""
    has_pre, has_post = self.norms != "post", self.norms != "pre"
    out, state = self.mixer(
      x,
      norm=self.mixer_norm if has_pre else _identity,
      span=span,
      state=state,
    )
    x += self.mixer_post_norm(out) if has_post else out
    pre_norm = self.feed_forward_norm if has_pre else _identity
    stats = None
    if isinstance(self.feed_forward, moe.Moe):
      out, stats = self.feed_forward(
        x,
        norm=pre_norm,
        valid=span.segment_ids > 0,
        capture=capture,
        bounded=bounded,
      )
    else:
      out = self.feed_forward(x, norm=pre_norm)
    x += self.feed_forward_post_norm(out) if has_post else out
    return x, state, stats


def _identity(x: jax.Array) -> jax.Array:
  return x


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
    self.blocks = tuple(f"block_{i}" for i in range(len(group.pattern)))
    self.repeats = group.repeats
    self.remat = execution.remat

  def states(self, rows: int, slots: int, dtype: str) -> dict[str, Any]:
    """Empty mixers' states by block, stacked over L."""
    return {
      name: jax.tree.map(
        lambda x: jnp.zeros((self.repeats, *x.shape), x.dtype),
        getattr(self, name).mixer.state(rows, slots, dtype),
      )
      for name in self.blocks
    }

  def pages(
    self,
    *,
    num_pages: Mapping[int, int],
    page_size: int,
    rows: int,
    page_dtype: str,
    row_dtype: str,
  ) -> dict[str, Any]:
    """Empty pages and rows by block, stacked over L."""
    return {
      name: jax.tree.map(
        lambda x: jnp.zeros((self.repeats, *x.shape), x.dtype),
        jax.eval_shape(
          functools.partial(
            getattr(self, name).mixer.pages,
            num_pages=num_pages,
            page_size=page_size,
            rows=rows,
            page_dtype=page_dtype,
            row_dtype=row_dtype,
          )
        ),
      )
      for name in self.blocks
    }

  def __call__(self, x, span, states=None, *, capture=False, bounded=False):
    """Returns x; and by block, stacked over L: states, stats, inputs.

    A single layer is not scanned over: a scan's slices of weights and states
    are copies. With states it is traced once for all groups of its kind: a
    server, whose groups are all of one layer, starts several times as fast.
    """
    graphdef, stacked = nnx.split(self)
    options = {"graphdef": graphdef, "capture": capture, "bounded": bounded}
    if self.repeats == 1:
      operands = jax.tree.map(lambda a: jnp.squeeze(a, 0), (stacked, states))
      layer = functools.partial(
        _layer if states is None else _jitted_layer, **options
      )
      if self.remat == "full":
        layer = jax.checkpoint(layer)
      x, outputs = layer(x, span, *operands)
      return x, jax.tree.map(lambda a: a[None], outputs)

    def layer_of_many(x, operands):
      return _layer(x, span, *operands, **options)

    if self.remat == "full":
      layer_of_many = jax.checkpoint(layer_of_many, prevent_cse=False)
    return jax.lax.scan(layer_of_many, x, (stacked, states))


def _layer(x, span, params, states, *, graphdef, capture, bounded):
  """One layer of a group: x; and by block states, stats and inputs."""
  group = nnx.merge(graphdef, params)
  new_states, all_stats, inputs = {}, {}, []
  for name in group.blocks:
    inputs.append(x)
    x, new_states[name], stats = getattr(group, name)(
      x,
      span,
      states[name] if states else None,
      capture=capture,
      bounded=bounded,
    )
    if stats is not None:
      all_stats[name] = stats
  return x, (new_states, all_stats, inputs if capture else None)


_jitted_layer = jax.jit(
  _layer, static_argnames=("graphdef", "capture", "bounded")
)


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

    def normal(*shape):
      return nnx.Param(
        config.init_std * jax.random.normal(rngs(), shape, dtype)
      )

    self.embed_VD = normal(config.vocab_size, config.dim)
    if config.learned_positions:
      self.position_PD = normal(config.max_seq_len, config.dim)
    for i, group in enumerate(config.groups):
      layers = Group(group, config=config, execution=execution, rngs=rngs)
      setattr(self, f"group_{i}", layers)
    self.final_norm = norm.make(config, param_dtype=dtype)
    if not config.tie_embeddings:
      self.head_DV = normal(config.dim, config.vocab_size)
    if config.mtp is not None:
      for i in range(config.mtp.num_modules):
        module = mtp.Module(
          config.dim,
          make_block=functools.partial(
            Block, config.mtp.block, config=config, execution=execution
          ),
          make_norm=functools.partial(norm.make, config, param_dtype=dtype),
          init_std=config.init_std,
          param_dtype=dtype,
          remat=execution.remat,
          rngs=rngs,
        )
        setattr(self, f"mtp_{i}", module)
    self.config = config
    self.compute_dtype = execution.compute_dtype

  def __call__(
    self,
    tokens: Int[Array, "B T"],
    *,
    positions: Int[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    cache: kv_cache.Cache | kv_cache.PagedCache | None = None,
    capture: bool = False,
    bounded: bool = False,
    measure_logits: bool = False,
  ) -> Output:
    """Hidden states of `tokens`, each seeing those before it in its segment.

    Args:
      tokens: Token ids.
      positions: In the document; if not given they count on from the cache.
      segment_ids: Attention stays within equal ids; 0 is padding, after a
        row's tokens if there is a cache. One segment if not given.
      cache: What the tokens follow. The caller sees to it that they fit: of
        what lies beyond its last slot nothing is kept.
      capture: Keep what enters each layer and each token's routing too.
      bounded: Experts with a capacity drop the tokens that exceed it, as in
        training. Otherwise none does: what a token becomes must not depend on
        its neighbours in a batch.
      measure_logits: Say how large attention's logits are; without a cache.
    """
    span = kv_cache.span(
      cache,
      positions=positions,
      segment_ids=segment_ids,
      shape=(tokens.shape[0], tokens.shape[1]),
    )
    if measure_logits:
      assert cache is None
      span = dataclasses.replace(span, measures_logits=True)
    zigzags = cache is None and not capture and self._zigzags(tokens.shape[1])
    if zigzags:
      num_shards = sharding.num_context_shards()
      tokens = zigzag.apply(tokens, num_shards)
      ids = zigzag.apply(span.segment_ids, num_shards)
      span = dataclasses.replace(
        span,
        positions=zigzag.apply(span.positions, num_shards),
        segment_ids=ids,
        key_segment_ids=ids,
        order="zigzag",
      )
    x = self.embed(tokens)
    if self.config.learned_positions:
      table = self.position_PD[...].astype(self.compute_dtype)
      x += table[span.positions]
    x = sharding.constrain(x, "BTD")
    states, router, inputs = {}, {}, []
    for i in range(len(self.config.groups)):
      name = f"group_{i}"
      x, (states[name], stats, entered) = getattr(self, name)(
        x,
        span,
        None if cache is None else cache.layers[name],
        capture=capture,
        bounded=bounded,
      )
      if stats:
        router[name] = stats
      if capture:
        # [block][L, B, T, D] -> layers in order.
        stacked = jnp.stack(entered, axis=1)
        inputs.append(stacked.reshape(-1, *x.shape))
    hidden = self.final_norm(x)
    if zigzags:
      hidden, x = zigzag.undo(hidden), zigzag.undo(x)
    return Output(
      hidden=hidden,
      cache=None if cache is None else kv_cache.advance(cache, span, states),
      router=router,
      residual=x,
      inputs=jnp.concatenate(inputs) if capture else None,
      max_logits=_max_logits(states) if measure_logits else {},
    )

  def _zigzags(self, length: int) -> bool:
    """Whether tokens are laid out for equal work on the axis `context`."""
    num_shards = sharding.num_context_shards()
    return (
      num_shards > 1
      and zigzag.divides(length, num_shards)
      and not has_recurrent_state(self.config)
    )

  def predict_ahead(
    self,
    output: Output,
    tokens: Int[Array, "B T"],
    *,
    positions: Int[Array, "B T"] | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
  ) -> tuple[mtp.Prediction, ...]:
    """What each module of multi-token prediction makes of `output`.

    Args:
      output: Of a call without a cache.
      tokens: As in that call.
      positions: As in that call.
      segment_ids: As in that call.
    """
    num_modules = 0 if self.config.mtp is None else self.config.mtp.num_modules
    return mtp.predict(
      [getattr(self, f"mtp_{i}") for i in range(num_modules)],
      output.residual,
      tokens,
      embed=self.embed,
      span=kv_cache.span(
        None,
        positions=positions,
        segment_ids=segment_ids,
        shape=(tokens.shape[0], tokens.shape[1]),
      ),
    )

  def make_cache(
    self, *, rows: int, slots: int, dtype: str | None = None
  ) -> kv_cache.Cache:
    """An empty cache for `rows` texts of up to `slots` tokens.

    Args:
      rows: B.
      slots: S.
      dtype: Of keys and values; the compute dtype if not given.
    """
    return kv_cache.Cache(
      layers={
        f"group_{i}": getattr(self, f"group_{i}").states(
          rows, slots, dtype or self.compute_dtype
        )
        for i in range(len(self.config.groups))
      },
      segment_ids=jnp.zeros((rows, slots), jnp.int32),
      lengths=jnp.zeros((rows,), jnp.int32),
    )

  def make_pages(
    self,
    *,
    num_pages: Mapping[int, int],
    page_size: int,
    rows: int,
    dtype: str | None = None,
  ) -> dict[str, dict[str, Any]]:
    """What `kv_cache.PagedCache.layers` begins as.

    Args:
      num_pages: For each of `cache_windows`, the null page among them.
      page_size: Tokens of a page.
      rows: Texts whose recurrent states are kept, the row of padding (0) among
        them.
      dtype: Of what is kept of each token; the compute dtype if not given;
        `int8` with a float32 scale per token and head.
    """
    return {
      f"group_{i}": getattr(self, f"group_{i}").pages(
        num_pages=num_pages,
        page_size=page_size,
        rows=rows,
        page_dtype=dtype or self.compute_dtype,
        row_dtype=self.compute_dtype,
      )
      for i in range(len(self.config.groups))
    }

  def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Rows of the embedding table, scaled."""
    table = jax.tree.map(
      lambda a: sharding.constrain(a, "VD"[: a.ndim]), self.embed_VD[...]
    )
    x = linear.take(table, tokens, self.compute_dtype)
    if self.config.embed_scale != 1.0:
      # Rounded to the compute dtype first, as Gemma was trained.
      x *= jnp.asarray(self.config.embed_scale, x.dtype)
    return x

  def head(self) -> Float[Array, "D V"]:
    """The output projection, in the dtype it is stored in."""
    if self.config.tie_embeddings:
      return self.embed_VD[...].T
    return self.head_DV[...]

  def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    """Unnormalised log-probabilities, float32."""
    if self.config.tie_embeddings:
      spec, weight = "BTD,VD->BTV", self.embed_VD[...]
    else:
      spec, weight = "BTD,DV->BTV", self.head_DV[...]
    logits = linear.project_float32(spec, hidden, weight)
    softcap = self.config.logit_softcap
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def _max_logits(states: dict[str, Any]) -> dict[str, dict[str, jax.Array]]:
  """What attention's states say of a call that measures logits."""
  return {
    group: {
      block: state["max_logit_N"]
      for block, state in blocks.items()
      if state is not None and "max_logit_N" in state
    }
    for group, blocks in states.items()
  }


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


def cache_windows(config: model_config.ModelConfig) -> tuple[int, ...]:
  """The windows of the mixers that keep pages, each once, smallest first.

  `kv_cache.NO_WINDOW` (0) stands for attention without one.
  """
  return tuple(
    sorted(
      {
        getattr(block.mixer, "window", None) or kv_cache.NO_WINDOW
        for block in config.layers
        if not _is_recurrent(block)
      }
    )
  )


def has_recurrent_state(config: model_config.ModelConfig) -> bool:
  """Whether a mixer keeps a state that cannot be cut at any token."""
  return any(_is_recurrent(block) for block in config.layers)


def _is_recurrent(block: model_config.BlockConfig) -> bool:
  return isinstance(block.mixer, model_config.GatedDeltaNetConfig)


def routers_by_layer(
  config: model_config.ModelConfig,
  router: dict[str, dict[str, router_lib.RouterStats]],
) -> router_lib.RouterStats:
  """`Output.router` with all layers that have one stacked, first to last."""
  layers = []
  for g, group in enumerate(config.groups):
    for row in range(group.repeats):
      for b in range(len(group.pattern)):
        stats = router.get(f"group_{g}", {}).get(f"block_{b}")
        if stats is not None:
          layers.append(jax.tree.map(lambda x, row=row: x[row], stats))
  return jax.tree.map(lambda *x: jnp.stack(x), *layers)
