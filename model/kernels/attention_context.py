"""Self-attention of a sequence that lies on the mesh axis `context`.

Each device has the queries of its shard and gathers the keys and values of all
(Llama 3, arXiv:2407.21783, 3.3.2): with grouped queries they are few, and one
collective can run beside the projection of the queries, where a ring would wait
for its neighbours once for each shard. The backward pass gathers them again,
and hands each shard the sum of its gradients. In zigzag order (zigzag.py) all
devices have the same work, with any implementation that skips what is not seen.

Dims: B batch, T length, N query heads, K key/value heads, H head dim of queries
and keys, V head dim of values.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from model import sharding
from model import target
from model import zigzag
from model.kernels import attention
from model.kernels import attention_layout
from model.kernels import attention_splash_context


def attend(
  q_BTNH: Float[Array, "B T N H"],
  k_BTKH: Float[Array, "B T K H"],
  v_BTKV: Float[Array, "B T K V"],
  *,
  segment_ids: Int[Array, "B T"],
  order: zigzag.Order = "natural",
  scale: float | None = None,
  window: int | None = None,
  softcap: float | None = None,
  sinks_N: Float[Array, "N"] | None = None,
  implementation: str = "auto",
) -> Float[Array, "B T N V"]:
  """attention.attend of tokens to themselves, on a mesh with `context` or not.

  Args:
    q_BTNH: Queries; so are the others as there.
    k_BTKH: Keys.
    v_BTKV: Values.
    segment_ids: Of the tokens, as they lie.
    order: How the tokens lie on the axis.
    scale: Factor of the scores.
    window: Keys that a query sees, itself included.
    softcap: Bound of the scores.
    sinks_N: One more score per head.
    implementation: Of a device's queries and all keys. `auto` is that of
      attention.attend, on TPUs splash where it can.

  Raises:
    ValueError: The implementation does not do what is asked of it.
  """
  options: dict[str, Any] = {
    "scale": q_BTNH.shape[-1] ** -0.5 if scale is None else scale,
    "window": window,
    "softcap": softcap,
  }
  length = q_BTNH.shape[1]
  num_shards = sharding.num_context_shards()
  if num_shards == 1 or length % num_shards:
    assert order == "natural"
    return attention.attend(
      q_BTNH,
      k_BTKH,
      v_BTKV,
      q_segment_ids=segment_ids,
      sinks_N=sinks_N,
      implementation=implementation,
      **options,
    )
  k_BTKH, v_BTKV, layout = attention_layout.split(q_BTNH, k_BTKH, v_BTKV)
  platform = target.platform()
  fits = attention_splash_context.fits(length, num_shards)
  if implementation == "splash" and not fits:
    unit = attention_splash_context.LANES * num_shards
    raise ValueError(
      f"attention implementation='splash' with mesh.context={num_shards} takes "
      f"lengths that are multiples of {unit}, not {length}; use 'auto'."
    )
  local: Any
  if implementation == "splash" or (
    implementation == "auto" and platform == "tpu" and fits
  ):
    kernel = attention_splash_context.make_kernel(
      zigzag.order_of(length, num_shards, order),
      num_heads=layout.num_local_heads,
      num_shards=num_shards,
      window=window,
      softcap=softcap,
      interpret=platform != "tpu",
    )
    kernel_specs = attention_splash_context.specs(kernel)
    local = functools.partial(
      _attend_splash, order=order, scale=options["scale"]
    )
  else:
    kernel, kernel_specs = None, None
    local = functools.partial(
      _attend_pieces,
      num_shards=num_shards,
      order=order,
      implementation=implementation,
      **options,
    )
  if platform != "gpu" and implementation != "dot_product":
    # Of what XLA's and cuDNN's kernels keep nothing has a name.
    local = jax.checkpoint(
      local,
      prevent_cse=False,
      policy=jax.checkpoint_policies.save_only_these_names(attention.RESIDUALS),
    )
  tokens = P(layout.rows, sharding.CONTEXT, layout.heads)
  keys = P(layout.rows, sharding.CONTEXT, layout.kv_heads)
  return jax.shard_map(
    local,
    in_specs=(
      kernel_specs,
      tokens,
      keys,
      keys,
      P(layout.rows, sharding.CONTEXT),
      P(layout.heads),
    ),
    out_specs=tokens,
    # Loops begin with constants, which it takes to be the same on all devices.
    check_vma=False,
  )(kernel, q_BTNH, k_BTKH, v_BTKV, segment_ids, sinks_N)


def _attend_pieces(
  kernel,
  q_BTNH,
  k_BTKH,
  v_BTKV,
  segment_ids,
  sinks_N,
  *,
  num_shards,
  order,
  implementation,
  **options,
):
  """One device's queries, chunk by chunk."""
  del kernel
  k, v, ids = (_gather(x, order) for x in (k_BTKH, v_BTKV, segment_ids))
  shard = jax.lax.axis_index(sharding.CONTEXT)
  numbers = [shard]
  if order == "zigzag":
    numbers = [shard, 2 * num_shards - 1 - shard]
  outs = []
  for number, q, q_ids in zip(
    numbers,
    jnp.split(q_BTNH, len(numbers), axis=1),
    jnp.split(segment_ids, len(numbers), axis=1),
    strict=True,
  ):
    outs.append(
      attention.attend(
        q,
        k,
        v,
        q_segment_ids=q_ids,
        k_segment_ids=ids,
        q_start=jnp.full((q.shape[0],), number * q.shape[1], jnp.int32),
        sinks_N=sinks_N,
        implementation=implementation,
        **options,
      )
    )
  return jnp.concatenate(outs, axis=1)


def _attend_splash(
  kernel, q_BTNH, k_BTKH, v_BTKV, segment_ids, sinks_N, *, order, scale
):
  """One device's queries at once: the kernel's mask knows where they stand."""
  k, v, ids = (_gather(x, order) for x in (k_BTKH, v_BTKV, segment_ids))
  return attention_splash_context.attend(
    kernel,
    (q_BTNH * scale).astype(q_BTNH.dtype),
    k,
    v,
    q_segment_ids=segment_ids,
    k_segment_ids=ids,
    sinks_N=sinks_N,
  )


def _gather(x: jax.Array, order: zigzag.Order) -> jax.Array:
  """All shards of the dim T of `x` [B, T, ...], in their own order."""
  if order == "natural":
    return jax.lax.all_gather(x, sharding.CONTEXT, axis=1, tiled=True)
  batch, length, *rest = x.shape
  x = x.reshape(batch, 2, length // 2, *rest)
  x = jax.lax.all_gather(x, sharding.CONTEXT, axis=1)
  # [B, shard, first or second chunk, ...]: the second ones lie backwards.
  x = jnp.concatenate([x[:, :, 0], x[:, ::-1, 1]], axis=1)
  return x.reshape(batch, -1, *rest)
