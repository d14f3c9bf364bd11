"""Grouped-query attention (arXiv:2305.13245) with rotary positions.

Dims: B batch, T query length, S key length, D model, N query heads,
K key/value heads, H head dim.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from model import config as model_config
from model import kv_cache
from model import linear
from model import norm as norm_lib
from model import rope
from model import sharding
from model.kernels import attention as kernel
from model.kernels import attention_context
from model.kernels import attention_logits
from model.kernels import attention_paged

# "k" and "v" [B, S, K, H]; in pages "k_PKSH" and "v_PKSH", and of int8 the
# scales "k_scale_PKS" and "v_scale_PKS", all without the K if it is 1.
State = dict[str, Array]


class Attention(nnx.Module):
  """Causal self-attention of one block."""

  def __init__(
    self,
    config: model_config.AttentionConfig,
    *,
    dim: int,
    init_std: float,
    out_std: float,
    norm_eps: float,
    norm_offset: float,
    param_dtype: str,
    implementation: str,
    rngs: nnx.Rngs,
  ):
    """Args as config.

    Args:
      config: The mixer.
      dim: D.
      init_std: Of the weights.
      out_std: Of the projection back to D.
      norm_eps: Epsilon of the norms of queries and keys.
      norm_offset: What they add to their scales.
      param_dtype: Of the parameters.
      implementation: Of kernels/attention.py.
      rngs: Randomness.
    """
    heads, kv_heads = config.num_heads, config.num_kv_heads
    head_dim = config.head_dim

    def normal(std, *shape):
      return nnx.Param(std * jax.random.normal(rngs(), shape, param_dtype))

    def full(value, *shape):
      return nnx.Param(jnp.full(shape, value, param_dtype))

    self.q_DNH = normal(init_std, dim, heads, head_dim)
    self.k_DKH = normal(init_std, dim, kv_heads, head_dim)
    self.v_DKH = normal(init_std, dim, kv_heads, head_dim)
    self.o_NHD = normal(out_std, heads, head_dim, dim)
    if config.output_gate:
      self.gate_DNH = normal(init_std, dim, heads, head_dim)
    if config.qkv_bias:
      self.q_bias_NH = full(0.0, heads, head_dim)
      self.k_bias_KH = full(0.0, kv_heads, head_dim)
      self.v_bias_KH = full(0.0, kv_heads, head_dim)
      if config.output_gate:
        self.gate_bias_NH = full(0.0, heads, head_dim)
    if config.out_bias:
      self.o_bias_D = full(0.0, dim)
    if config.sinks:
      self.sinks_N = full(0.0, heads)
    if config.qk_norm == "head":
      self.q_scale_H = full(1.0 - norm_offset, head_dim)
      self.k_scale_H = full(1.0 - norm_offset, head_dim)
    elif config.qk_norm == "projection":
      self.q_scale_NH = full(1.0 - norm_offset, heads, head_dim)
      self.k_scale_KH = full(1.0 - norm_offset, kv_heads, head_dim)
    self.config = config
    self.norm_eps = norm_eps
    self.norm_offset = norm_offset
    self.implementation = implementation

  def state(self, rows: int, slots: int, dtype: str) -> State:
    """An empty cache of keys and values."""
    shape = (rows, slots, self.config.num_kv_heads, self.config.head_dim)
    return {"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)}

  def pages(
    self,
    *,
    num_pages: Mapping[int, int],
    page_size: int,
    rows: int,
    page_dtype: str,
    row_dtype: str,
  ) -> State:
    """Empty pages of keys and values."""
    del rows, row_dtype
    config = self.config
    num = num_pages[config.window or kv_cache.NO_WINDOW]
    heads = () if config.num_kv_heads == 1 else (config.num_kv_heads,)
    shape = (num, *heads, page_size)
    state = {
      f"{name}_{self._page_dims}H": jnp.zeros(
        (*shape, config.head_dim), page_dtype
      )
      for name in "kv"
    }
    if page_dtype == "int8":
      for name in "kv":
        state[f"{name}_scale_{self._page_dims}"] = jnp.zeros(shape, jnp.float32)
    return state

  @property
  def _page_dims(self) -> str:
    """Letters of a page's dims, features left out."""
    return "PS" if self.config.num_kv_heads == 1 else "PKS"

  def __call__(
    self,
    x: Float[Array, "B T D"],
    *,
    norm: Callable[[Float[Array, "B T D"]], Float[Array, "B T D"]],
    span: kv_cache.Span,
    state: State | None = None,
  ) -> tuple[Float[Array, "B T D"], State | None]:
    """Attention over norm(x), within segments and never to later tokens.

    The norm is applied here, where it is recomputed. With a `state` the tokens
    also see those in the cache, or in the pages that `span` names; the state
    with theirs added is returned.
    """
    config = self.config
    cos_sin = None
    if config.rope is not None:
      cos_sin = rope.angles(
        config.rope,
        span.positions,
        config.head_dim,
        valid=span.segment_ids > 0,
        length=span.length,
      )

    def place(q, k):
      if config.rope is None or cos_sin is None:
        return q, k
      pairing = config.rope.pairing
      return rope.rotate(q, *cos_sin, pairing), rope.rotate(
        k, *cos_sin, pairing
      )

    # Keeps x for the backward pass, not also norm(x).
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def project(x):
      normed = norm(x)
      q = linear.project("BTD,DNH->BTNH", normed, self.q_DNH[...])
      k = linear.project("BSD,DKH->BSKH", normed, self.k_DKH[...])
      v = linear.project("BSD,DKH->BSKH", normed, self.v_DKH[...])
      if config.qkv_bias:
        q += self.q_bias_NH[...].astype(q.dtype)
        k += self.k_bias_KH[...].astype(k.dtype)
        v += self.v_bias_KH[...].astype(v.dtype)
      if config.qk_norm == "none":
        q, k = place(q, k)
      if not config.output_gate:
        return q, k, v, None
      gate = linear.project("BTD,DNH->BTNH", normed, self.gate_DNH[...])
      if config.qkv_bias:
        gate += self.gate_bias_NH[...].astype(gate.dtype)
      return q, k, v, gate

    q, k, v, gate = project(x)
    if config.qk_norm != "none":
      # Outside: a norm's gradient needs its input, which would have to be
      # projected again.
      q, k = place(*self._norm_heads(q, k))
    k = sharding.constrain(k, "BTKH")
    v = sharding.constrain(v, "BTKH")
    q = sharding.constrain(q, "BTNH")
    if state is not None and span.places is not None:
      out, state = self._attend_pages(q, k, v, span, state)
    else:
      out, state = self._attend(q, k, v, span, state)
    out = sharding.constrain(out, "BTNH")

    # The backward pass recomputes the product with the gate, no matmul.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def project_out(out, gate):
      if gate is not None:
        out *= jax.nn.sigmoid(gate.astype(jnp.float32)).astype(out.dtype)
      return linear.project("BTNH,NHD->BTD", out, self.o_NHD[...])

    out = project_out(out, gate)
    if config.out_bias:
      out += self.o_bias_D[...].astype(out.dtype)
    return sharding.constrain(out, "BTD"), state

  def _attend(self, q, k, v, span, state):
    """Over the tokens themselves, or all slots of a cache."""
    options: dict[str, Any] = {
      "scale": self.config.scale,
      "window": self.config.window,
      "softcap": self.config.softcap,
      "sinks_N": self.sinks_N[...] if self.config.sinks else None,
      "implementation": self.implementation,
    }
    if state is None:
      out = attention_context.attend(
        q, k, v, segment_ids=span.segment_ids, order=span.order, **options
      )
      if not span.measures_logits:
        return out, None
      scale = self.config.scale
      return out, {
        "max_logit_N": attention_logits.largest(
          q,
          k,
          segment_ids=span.segment_ids,
          order=span.order,
          scale=self.config.head_dim**-0.5 if scale is None else scale,
          window=self.config.window,
        )
      }
    state = {
      "k": kv_cache.write(state["k"], k, span.start),
      "v": kv_cache.write(state["v"], v, span.start),
    }
    out = kernel.attend(
      q,
      state["k"].astype(q.dtype),
      state["v"].astype(q.dtype),
      q_segment_ids=span.segment_ids,
      k_segment_ids=span.key_segment_ids,
      q_start=span.start,
      **options,
    )
    return out, state

  def _attend_pages(self, q, k, v, span, state):
    """Over the pages of each row's text."""
    config = self.config
    dims = self._page_dims
    key, value = f"k_{dims}H", f"v_{dims}H"
    key_scale, value_scale = f"k_scale_{dims}", f"v_scale_{dims}"
    if config.num_kv_heads == 1:
      k, v = jnp.squeeze(k, 2), jnp.squeeze(v, 2)
    new = {key: k, value: v}
    if key_scale in state:
      new[key], new[key_scale] = kv_cache.quantize(k)
      new[value], new[value_scale] = kv_cache.quantize(v)
    state = kv_cache.write_pages(state, new, span=span, window=config.window)
    out = attention_paged.attend(
      q,
      state[key],
      state[value],
      table_BP=span.places.table(config.window),
      start_B=span.start,
      q_segment_ids=span.segment_ids,
      scale=config.head_dim**-0.5 if config.scale is None else config.scale,
      window=config.window,
      softcap=config.softcap,
      sinks_N=self.sinks_N[...] if config.sinks else None,
      k_scales=state.get(key_scale),
      v_scales=state.get(value_scale),
      implementation=self.implementation,
    )
    return out, state

  def _norm_heads(self, q, k):
    """Queries and keys, normed as `qk_norm` says."""

    def normed(x, scale):
      flat = x.reshape(*x.shape[:2], -1) if scale.ndim == 2 else x
      out = norm_lib.rms_norm(
        flat, scale.reshape(-1), self.norm_eps, self.norm_offset
      )
      return out.reshape(x.shape)

    match self.config.qk_norm:
      case "head":
        return normed(q, self.q_scale_H[...]), normed(k, self.k_scale_H[...])
      case _:
        return normed(q, self.q_scale_NH[...]), normed(k, self.k_scale_KH[...])
