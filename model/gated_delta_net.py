"""Gated DeltaNet (arXiv:2412.06464), the linear attention of Qwen3-Next.

A matrix per head remembers what has been read (kernels/gated_delta_rule.py): a
cache of it does not grow with the text. Queries, keys and values first pass a
short convolution (kernels/short_conv.py); there are no positions.

Dims: B batch, T length, D model, K key heads, N value heads, H head dim, V head
dim of values (an H in parameters' names), W width of the convolution.
"""

from collections.abc import Callable, Mapping
import functools
import math
from typing import cast, TypedDict

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from model import config as model_config
from model import kv_cache
from model import linear
from model import norm as norm_lib
from model import sharding
from model.kernels import gated_delta_rule
from model.kernels import short_conv

# What softplus(decay_bias) and exp(decay_log) begin as, at random between.
_INIT_STEP = (1e-3, 0.1)
_INIT_RATE = (0.01, 16.0)


class Conv(TypedDict):
  """The last W - 1 tokens of each row as they entered the convolution."""

  q: Float[Array, "B W-1 K H"]
  k: Float[Array, "B W-1 K H"]
  v: Float[Array, "B W-1 N V"]


class State(TypedDict):
  """What is kept of a text, of the same size however long it is."""

  conv: Conv
  memory: Float[Array, "B N H V"]


# The same of many texts, in rows: "memory_BNHH", "q_conv_BWKH", "k_conv_BWKH"
# and "v_conv_BWNH".
Rows = dict[str, Array]


class GatedDeltaNet(nnx.Module):
  """Linear attention of one block."""

  def __init__(
    self,
    config: model_config.GatedDeltaNetConfig,
    *,
    dim: int,
    init_std: float,
    out_std: float,
    norm_eps: float,
    param_dtype: str,
    rngs: nnx.Rngs,
  ):
    """Args as config.

    Args:
      config: The mixer.
      dim: D.
      init_std: Of the weights.
      out_std: Of the projection back to D.
      norm_eps: Epsilon of the norm of the heads' outputs.
      param_dtype: Of the parameters.
      rngs: Randomness.
    """
    heads, key_heads = config.num_value_heads, config.num_key_heads
    key_dim, value_dim = config.key_head_dim, config.value_head_dim
    width = config.conv_size

    def normal(std, *shape):
      return nnx.Param(std * jax.random.normal(rngs(), shape, param_dtype))

    def uniform(low, high, *shape):
      return jax.random.uniform(rngs(), shape, minval=low, maxval=high)

    def conv(*shape):
      bound = width**-0.5
      weight = uniform(-bound, bound, *shape, width)
      return nnx.Param(weight.astype(param_dtype))

    self.q_DKH = normal(init_std, dim, key_heads, key_dim)
    self.k_DKH = normal(init_std, dim, key_heads, key_dim)
    self.v_DNH = normal(init_std, dim, heads, value_dim)
    self.gate_DNH = normal(init_std, dim, heads, value_dim)
    self.beta_DN = normal(init_std, dim, heads)
    self.decay_DN = normal(init_std, dim, heads)
    self.q_conv_KHW = conv(key_heads, key_dim)
    self.k_conv_KHW = conv(key_heads, key_dim)
    self.v_conv_NHW = conv(heads, value_dim)
    rate = uniform(*_INIT_RATE, heads)
    self.decay_log_N = nnx.Param(jnp.log(rate).astype(param_dtype))
    step = jnp.exp(uniform(*(math.log(x) for x in _INIT_STEP), heads))
    # The inverse of softplus.
    bias = step + jnp.log(-jnp.expm1(-step))
    self.decay_bias_N = nnx.Param(bias.astype(param_dtype))
    self.out_scale_H = nnx.Param(jnp.ones((value_dim,), param_dtype))
    self.o_NHD = normal(out_std, heads, value_dim, dim)
    self.config = config
    self.norm_eps = norm_eps

  def state(self, rows: int, slots: int, dtype: str) -> State:
    """An empty state; texts of any number of `slots` fit in."""
    del slots
    config = self.config
    before, key_dim = config.conv_size - 1, config.key_head_dim
    heads, value_dim = config.num_value_heads, config.value_head_dim
    keys = (rows, before, config.num_key_heads, key_dim)
    return {
      "conv": {
        "q": jnp.zeros(keys, dtype),
        "k": jnp.zeros(keys, dtype),
        "v": jnp.zeros((rows, before, heads, value_dim), dtype),
      },
      "memory": jnp.zeros((rows, heads, key_dim, value_dim), jnp.float32),
    }

  def pages(
    self,
    *,
    num_pages: Mapping[int, int],
    page_size: int,
    rows: int,
    page_dtype: str,
    row_dtype: str,
  ) -> Rows:
    """Empty states of so many texts: in rows, as they do not grow."""
    del num_pages, page_size, page_dtype
    return _to_rows(self.state(rows, 0, row_dtype))

  def __call__(
    self,
    x: Float[Array, "B T D"],
    *,
    norm: Callable[[Float[Array, "B T D"]], Float[Array, "B T D"]],
    span: kv_cache.Span,
    state: State | Rows | None = None,
  ) -> tuple[Float[Array, "B T D"], State | Rows | None]:
    """Linear attention over norm(x), within segments, never to later tokens.

    The norm is applied here, where it is recomputed. With a `state` the tokens
    go on from it, or from its rows that `span` names; the state after them is
    returned.
    """

    # Keeps x for the backward pass, not also norm(x).
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def project(x):
      normed = norm(x)
      return (
        linear.project("BTD,DKH->BTKH", normed, self.q_DKH[...]),
        linear.project("BTD,DKH->BTKH", normed, self.k_DKH[...]),
        linear.project("BTD,DNH->BTNH", normed, self.v_DNH[...]),
        linear.project("BTD,DNH->BTNH", normed, self.gate_DNH[...]),
        linear.project("BTD,DN->BTN", normed, self.beta_DN[...]),
        linear.project("BTD,DN->BTN", normed, self.decay_DN[...]),
      )

    rows: Rows | None = None
    if state is not None and span.places is not None:
      rows = cast(Rows, state)
      state = _from_rows(kv_cache.read_rows(rows, span=span))
    q, k, v, gate, beta, decay = project(x)
    whole = functools.partial(sharding.constrain, rules=_rules(self.config))
    q, k, v = whole(q, "BTKH"), whole(k, "BTKH"), whole(v, "BTNH")
    beta, decay = whole(beta, "BTN"), whole(decay, "BTN")
    gate = sharding.constrain(gate, "BTNH")
    beta = jax.nn.sigmoid(beta.astype(jnp.float32))
    step = decay.astype(jnp.float32) + self.decay_bias_N[...]
    rate = jnp.exp(self.decay_log_N[...].astype(jnp.float32))

    last = self.state(x.shape[0], 0, x.dtype.name) if state is None else state
    conv = last["conv"]
    before = _ids_before(span, 1)[:, 0]
    # What an earlier text left in a row that begins anew.
    memory = jnp.where(before[:, None, None, None] >= 0, last["memory"], 0)
    convolve = functools.partial(
      short_conv.convolve,
      segment_ids=span.segment_ids,
      before_segment_ids=_ids_before(span, self.config.conv_size - 1),
    )
    out, memory = gated_delta_rule.mix(
      convolve(q, self.q_conv_KHW[...], before=conv["q"]),
      convolve(k, self.k_conv_KHW[...], before=conv["k"]),
      convolve(v, self.v_conv_NHW[...], before=conv["v"]),
      log_decay_BTN=-rate * jax.nn.softplus(step),
      beta_BTN=beta,
      segment_ids=span.segment_ids,
      state_BNHV=whole(memory, "BNHH"),
      state_segment_ids=before,
    )
    out = self._gated_norm(sharding.constrain(out, "BTNH"), gate)
    out = linear.project("BTNH,NHD->BTD", out, self.o_NHD[...])
    out = sharding.constrain(out, "BTD")
    if state is None:
      return out, None
    num_new = jnp.sum(span.segment_ids > 0, axis=1)
    carry = functools.partial(short_conv.carry, num_new=num_new)
    new: State = {
      "conv": {
        "q": carry(q, conv["q"]),
        "k": carry(k, conv["k"]),
        "v": carry(v, conv["v"]),
      },
      "memory": memory,
    }
    if rows is None:
      return out, new
    return out, kv_cache.write_rows(rows, _to_rows(new), span=span)

  def _gated_norm(self, x, gate):
    """RMSNorm of each head's output, times the SiLU of its gate."""

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def normed(x, gate, scale):
      x = norm_lib.rms_norm(
        x.astype(jnp.float32), scale, self.norm_eps
      ) * jax.nn.silu(gate.astype(jnp.float32))
      return x.astype(gate.dtype)

    return normed(x, gate, self.out_scale_H[...])


def _rules(config: model_config.GatedDeltaNetConfig):
  """Where q, k and v lie: the sequence in one piece, as it is walked along."""
  shape = jax.sharding.get_abstract_mesh().shape
  shards = shape.get("tensor", 1) * shape.get(sharding.CONTEXT, 1)
  if config.num_key_heads % shards or config.num_value_heads % shards:
    return sharding.ACTIVATION_RULES | {"T": None}
  return sharding.WHOLE_SEQUENCE_RULES


def _ids_before(span: kv_cache.Span, num: int) -> Int[Array, "B num"]:
  """Segments of the `num` tokens before the first, -1 where there is none."""
  rows = span.segment_ids.shape[0]
  place = jnp.broadcast_to(span.start, (rows,))[:, None] + jnp.arange(-num, 0)
  if span.places is not None:
    return jnp.where(place >= 0, 1, -1)
  ids = jnp.take_along_axis(span.key_segment_ids, jnp.maximum(place, 0), axis=1)
  return jnp.where(place >= 0, ids, -1)


def _to_rows(state: State) -> Rows:
  """Under names that end in dims."""
  conv = state["conv"]
  return {
    "memory_BNHH": state["memory"],
    "q_conv_BWKH": conv["q"],
    "k_conv_BWKH": conv["k"],
    "v_conv_BWNH": conv["v"],
  }


def _from_rows(rows: Rows) -> State:
  return {
    "conv": {
      "q": rows["q_conv_BWKH"],
      "k": rows["k_conv_BWKH"],
      "v": rows["v_conv_BWNH"],
    },
    "memory": rows["memory_BNHH"],
  }
