"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, 2.1).

A token is remembered as one latent vector, from which the keys and values of
all heads are projected up, and one rotated key that all heads share. There are
two ways to compute the same scores and values:

  unabsorbed  Keys and values of every head are made from the latents, then
              attended to as ever. Cheap for each pair of tokens.
  absorbed    k_up is moved to the queries, v_up behind the attention: heads
              attend to the latents themselves, as if to one wide key/value
              head. Cheap for each token that is only looked at.

Without a cache the first is taken. With one, the cheaper (`prefers_absorbed`):
decoding absorbs, a long prefill does not.

Dims: B batch, T query length, S key length, D model, N heads, C rank of keys
and values (the latent), R rank of queries, H features of a head: of a query and
key nope_head_dim + rope_head_dim, in that order, of a value value_head_dim.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any, Literal

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

Form = Literal["auto", "absorbed", "unabsorbed"]
# "latent" [B, S, C] and "rope_key" [B, S, H]; in pages both in one key of C + H
# features, "key_PSH", and of int8 the scales of the two parts, "key_scale_PSM"
# with M = 2.
State = dict[str, Array]


class Mla(nnx.Module):
  """Causal self-attention of one block."""

  def __init__(
    self,
    config: model_config.MlaConfig,
    *,
    dim: int,
    init_std: float,
    out_std: float,
    param_dtype: str,
    implementation: str,
    rngs: nnx.Rngs,
    form: Form = "auto",
  ):
    """Args as config.

    Args:
      config: The mixer.
      dim: D.
      init_std: Of the weights.
      out_std: Of the projection back to D.
      param_dtype: Of the parameters.
      implementation: Of kernels/attention.py.
      rngs: Randomness.
      form: How to compute; `auto` chooses as the module says.
    """
    heads, rank = config.num_heads, config.kv_rank
    nope, rotated = config.nope_head_dim, config.rope_head_dim

    def normal(std, *shape):
      return nnx.Param(std * jax.random.normal(rngs(), shape, param_dtype))

    def ones(*shape):
      return nnx.Param(jnp.ones(shape, param_dtype))

    if config.q_rank is None:
      self.q_DNH = normal(init_std, dim, heads, nope + rotated)
    else:
      self.q_down_DR = normal(init_std, dim, config.q_rank)
      self.q_norm_scale_R = ones(config.q_rank)
      self.q_up_RNH = normal(init_std, config.q_rank, heads, nope + rotated)
    self.latent_DC = normal(init_std, dim, rank)
    self.latent_scale_C = ones(rank)
    self.rope_key_DH = normal(init_std, dim, rotated)
    self.k_up_CNH = normal(init_std, rank, heads, nope)
    self.v_up_CNH = normal(init_std, rank, heads, config.value_head_dim)
    self.o_NHD = normal(out_std, heads, config.value_head_dim, dim)
    self.config = config
    self.implementation = implementation
    self.form = form

  def state(self, rows: int, slots: int, dtype: str) -> State:
    """An empty cache of latents and rotated keys."""
    return {
      "latent": jnp.zeros((rows, slots, self.config.kv_rank), dtype),
      "rope_key": jnp.zeros((rows, slots, self.config.rope_head_dim), dtype),
    }

  def pages(
    self,
    *,
    num_pages: Mapping[int, int],
    page_size: int,
    rows: int,
    page_dtype: str,
    row_dtype: str,
  ) -> State:
    """Empty pages of latents and rotated keys."""
    del rows, row_dtype
    config = self.config
    shape = (num_pages[kv_cache.NO_WINDOW], page_size)
    width = config.kv_rank + config.rope_head_dim
    state = {"key_PSH": jnp.zeros((*shape, width), page_dtype)}
    if page_dtype == "int8":
      state["key_scale_PSM"] = jnp.zeros((*shape, 2), jnp.float32)
    return state

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
    q_nope, q_rope, latent, rope_key = self._project(x, norm, span)
    if state is not None and span.places is not None:
      out, state = self._attend_pages(
        q_nope, q_rope, latent, rope_key, span, state
      )
      out = linear.project("BTNH,NHD->BTD", out, self.o_NHD[...])
      return sharding.constrain(out, "BTD"), state
    has_cache = state is not None
    if state is not None:
      state = {
        "latent": kv_cache.write(state["latent"], latent, span.start),
        "rope_key": kv_cache.write(state["rope_key"], rope_key, span.start),
      }
      latent = state["latent"].astype(x.dtype)
      rope_key = state["rope_key"].astype(x.dtype)
    elif span.measures_logits:
      state = self._max_logits(q_nope, q_rope, latent, rope_key, span)
    absorbed = self.form == "absorbed"
    if self.form == "auto" and has_cache:
      absorbed = prefers_absorbed(
        self.config, num_queries=x.shape[1], num_keys=latent.shape[1]
      )
    attend = self._attend_absorbed if absorbed else self._attend_unabsorbed
    out = attend(q_nope, q_rope, latent, rope_key, span, has_cache=has_cache)
    out = linear.project("BTNH,NHD->BTD", out, self.o_NHD[...])
    return sharding.constrain(out, "BTD"), state

  def _project(self, x, norm, span):
    """Queries, without and with rotation; latents and rotated keys.

    Each of the two pieces begins with a norm, which is cheap to recompute, and
    ends with matmuls: the backward pass repeats no matmul and needs no copy of
    what was normed.
    """
    config = self.config
    cos_sin = rope.angles(
      config.rope,
      span.positions,
      config.rope_head_dim,
      valid=span.segment_ids > 0,
      length=span.length,
    )

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def down(x):
      normed = norm(x)
      if config.q_rank is None:
        q = linear.project("BTD,DNH->BTNH", normed, self.q_DNH[...])
      else:
        q = linear.project("BTD,DR->BTR", normed, self.q_down_DR[...])
      latent = linear.project("BSD,DC->BSC", normed, self.latent_DC[...])
      rope_key = linear.project("BSD,DH->BSH", normed, self.rope_key_DH[...])
      return q, latent, rope_key

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def up(q):
      q = norm_lib.rms_norm(q, self.q_norm_scale_R[...], config.latent_norm_eps)
      return linear.project("BTR,RNH->BTNH", q, self.q_up_RNH[...])

    q, latent, rope_key = down(x)
    if config.q_rank is not None:
      q = up(q)
    q = sharding.constrain(q, "BTNH")
    q_nope, q_rope = jnp.split(q, [config.nope_head_dim], axis=-1)
    q_rope = rope.rotate(q_rope, *cos_sin, config.rope.pairing)
    # One head, until it meets the queries.
    rope_key = rope.rotate(rope_key[:, :, None], *cos_sin, config.rope.pairing)[
      :, :, 0
    ]
    latent = norm_lib.rms_norm(
      latent, self.latent_scale_C[...], config.latent_norm_eps
    )
    return q_nope, q_rope, latent, sharding.constrain(rope_key, "BTH")

  def _attend_unabsorbed(
    self, q_nope, q_rope, latent, rope_key, span, *, has_cache
  ):
    """Keys and values of every head are made."""
    # Without a cache keys lie as queries do.
    seq = "S" if has_cache else "T"
    latent = sharding.constrain(latent, f"B{seq}C")
    k_nope = linear.project("BSC,CNH->BSNH", latent, self.k_up_CNH[...])
    v = linear.project("BSC,CNH->BSNH", latent, self.v_up_CNH[...])
    k_rope = jnp.broadcast_to(
      rope_key[:, :, None], (*k_nope.shape[:3], rope_key.shape[-1])
    )
    q = jnp.concatenate([q_nope, q_rope], axis=-1)
    k = jnp.concatenate([k_nope, k_rope], axis=-1)
    return self._attend(
      sharding.constrain(q, "BTNH"),
      sharding.constrain(k, f"B{seq}NH"),
      sharding.constrain(v, f"B{seq}NH"),
      span,
      has_cache=has_cache,
    )

  def _max_logits(self, q_nope, q_rope, latent, rope_key, span):
    """The state that a `Span` which measures asks for.

    The keys are those of `_attend_unabsorbed`, which the compiler makes once.
    """
    latent = sharding.constrain(latent, "BTC")
    k_nope = linear.project("BSC,CNH->BSNH", latent, self.k_up_CNH[...])
    k_rope = jnp.broadcast_to(
      rope_key[:, :, None], (*k_nope.shape[:3], rope_key.shape[-1])
    )
    q = jnp.concatenate([q_nope, q_rope], axis=-1)
    k = jnp.concatenate([k_nope, k_rope], axis=-1)
    return {
      "max_logit_N": attention_logits.largest(
        sharding.constrain(q, "BTNH"),
        sharding.constrain(k, "BTNH"),
        segment_ids=span.segment_ids,
        order=span.order,
        scale=self.config.scale,
      )
    }

  def _attend_absorbed(
    self, q_nope, q_rope, latent, rope_key, span, *, has_cache
  ):
    """The latents are keys and values of one head that all queries share."""
    latent = sharding.constrain(latent, "BSC")
    k = jnp.concatenate([latent, rope_key], axis=-1)
    out = self._attend(
      self._absorb(q_nope, q_rope),
      k[:, :, None],
      latent[:, :, None],
      span,
      has_cache=has_cache,
    )
    return linear.project("BTNC,CNH->BTNH", out, self.v_up_CNH[...])

  def _absorb(self, q_nope, q_rope):
    """Queries to latents and rotated keys."""
    q_latent = linear.project("BTNH,CNH->BTNC", q_nope, self.k_up_CNH[...])
    return jnp.concatenate([q_latent, q_rope], axis=-1)

  def _attend_pages(self, q_nope, q_rope, latent, rope_key, span, state):
    """Over the pages of each row's text.

    The unabsorbed form gathers all that the tables name: it is taken where
    making keys and values of all heads out of it costs more anyway.
    """
    rank = self.config.kv_rank
    if "key_scale_PSM" in state:
      parts = [kv_cache.quantize(part) for part in (latent, rope_key)]
      key = jnp.concatenate([part for part, _ in parts], axis=-1)
      scales = jnp.stack([scale for _, scale in parts], axis=-1)
      new = {"key_PSH": key, "key_scale_PSM": scales}
    else:
      key = jnp.concatenate([latent, rope_key.astype(latent.dtype)], axis=-1)
      new = {"key_PSH": key}
    state = kv_cache.write_pages(state, new, span=span)
    pages, scale_pages = state["key_PSH"], state.get("key_scale_PSM")
    table = span.places.table(None)
    num_keys = table.shape[1] * pages.shape[1]
    absorbed = self.form == "absorbed" or (
      self.form == "auto"
      and prefers_absorbed(
        self.config, num_queries=latent.shape[1], num_keys=num_keys
      )
    )
    if absorbed:
      out = attention_paged.attend(
        self._absorb(q_nope, q_rope),
        pages,
        None,
        table_BP=table,
        start_B=span.start,
        q_segment_ids=span.segment_ids,
        scale=self.config.scale,
        value_dim=rank,
        k_scales=scale_pages,
        implementation=self.implementation,
      )
      out = sharding.constrain(out, "BTNC")
      out = linear.project("BTNC,CNH->BTNH", out, self.v_up_CNH[...])
      return out, state
    key = attention_paged.gather(
      pages, table, scale_pages, value_dim=rank, dtype=latent.dtype
    )[:, :, 0]
    num_new = jnp.sum(span.segment_ids > 0, axis=1)
    is_key = jnp.arange(num_keys) < (span.start + num_new)[:, None]
    # Of what was left in a page by another text nothing is looked at.
    key = jnp.where(is_key[..., None], key, 0)
    out = self._attend_unabsorbed(
      q_nope,
      q_rope,
      key[..., :rank],
      key[..., rank:],
      dataclasses.replace(span, key_segment_ids=is_key.astype(jnp.int32)),
      has_cache=True,
    )
    return out, state

  def _attend(self, q, k, v, span, *, has_cache):
    options: dict[str, Any] = {
      "scale": self.config.scale,
      "implementation": self.implementation,
    }
    if not has_cache:
      out = attention_context.attend(
        q, k, v, segment_ids=span.segment_ids, order=span.order, **options
      )
      return sharding.constrain(out, "BTNH")
    out = kernel.attend(
      q,
      k,
      v,
      q_segment_ids=span.segment_ids,
      k_segment_ids=span.key_segment_ids,
      q_start=span.start,
      **options,
    )
    return sharding.constrain(out, "BTNH")


def prefers_absorbed(
  config: model_config.MlaConfig, *, num_queries: int, num_keys: int
) -> bool:
  """Whether absorbing takes fewer multiplications, all pairs T x S computed.

  Of one head, with H_n, H_r and H_v features without and with rotation and of
  a value:

    unabsorbed  S C (H_n + H_v) for keys and values, T S (H_n + H_r + H_v)
    absorbed    T C (H_n + H_v) for queries and output, T S (2 C + H_r)

  For DeepSeek-V3 (C 512, H_n = H_v 128) and many keys: up to 170 queries.
  """
  up = config.kv_rank * (config.nope_head_dim + config.value_head_dim)
  pairs = num_queries * num_keys
  head = config.nope_head_dim + config.rope_head_dim + config.value_head_dim
  unabsorbed = num_keys * up + pairs * head
  absorbed = num_queries * up + pairs * (
    2 * config.kv_rank + config.rope_head_dim
  )
  return absorbed < unabsorbed
