"""Causal attention inside segments: one interface, several implementations.

Query t of row b stands at index q_start[b] + t of the keys' dim. It sees the
keys of its own segment up to its index: all, or the last `window` of them. A
query that sees none gets 0, and no gradient. Softmax is in float32, the output
in the queries' dtype.

`reference` is the definition; the others equal it in value and gradient
(attention_test.py). What each does:

                sinks  softcap  window        V != H   q_start, other keys
  reference      yes    yes     masks          yes      yes
  blockwise      yes    yes     skips blocks   yes      yes
  dot_product    yes¹   no      masks          yes²     yes
  splash         yes    yes     skips blocks   yes      no: self-attention only

  ¹ rounded to the queries' dtype   ² padded to the wider

  reference      All T x S scores at once, kept for the backward pass.
  blockwise      A loop over blocks with a running softmax; memory grows with
                 T + S, the upper triangle is not computed.
  dot_product    jax.nn.dot_product_attention: cuDNN on a GPU that has it for
                 such operands (16 bits, head dims up to 256), else XLA, with
                 all scores at once.
  splash         JAX's Pallas kernel for TPU, under shard_map where there is a
                 mesh; interpreted, slowly, elsewhere.
  auto           TPU: splash; blockwise where it is not self-attention.
                 GPU: dot_product where cuDNN takes it; else blockwise.
                 CPU: blockwise.

Dims: B batch, T query length, S key length, N query heads, K key/value heads,
G = N/K, H head dim of queries and keys, V head dim of values.
"""

from jaxtyping import Array, Float, Int

from model import target
from model.kernels import attention_blockwise
from model.kernels import attention_dot_product
from model.kernels import attention_reference
from model.kernels import attention_splash

# What implementations of this tree, and splash, keep for the backward pass has
# this name for jax.checkpoint's policies.
RESIDUALS = attention_blockwise.RESIDUALS

_IMPLEMENTATIONS = (
  "auto",
  "reference",
  "blockwise",
  "dot_product",
  "splash",
)


def attend(
  q_BTNH: Float[Array, "B T N H"],
  k_BSKH: Float[Array, "B S K H"],
  v_BSKV: Float[Array, "B S K V"],
  *,
  q_segment_ids: Int[Array, "B T"],
  k_segment_ids: Int[Array, "B S"] | None = None,
  q_start: Int[Array, "B"] | int = 0,
  scale: float | None = None,
  window: int | None = None,
  softcap: float | None = None,
  sinks_N: Float[Array, "N"] | None = None,
  implementation: str = "auto",
) -> Float[Array, "B T N V"]:
  """softmax(q k^T * scale) v over the keys that each query sees.

  Args:
    q_BTNH: Queries, rotated.
    k_BSKH: Keys, rotated.
    v_BSKV: Values; V may differ from H (multi-head latent attention).
    q_segment_ids: Tokens attend only within equal ids.
    k_segment_ids: Those of the keys, where keys are not the queries' tokens (a
      cache). Empty slots of a cache have an id that no query has.
    q_start: Index in S of each row's first query.
    scale: Factor of the scores; None: H ** -0.5.
    window: How many keys a query sees, itself included; None: all.
    softcap: Scores become softcap * tanh(score / softcap); Gemma 2
      (arXiv:2408.00118).
    sinks_N: One more score per head, of a key without a value: weights then sum
      to less than 1 (GPT-OSS; attention sinks, arXiv:2309.17453).
    implementation: See the table above.

  Returns:
    Attention output in the dtype of `q_BTNH`.

  Raises:
    ValueError: The implementation does not do what is asked of it.
  """
  num_queries, num_keys = q_BTNH.shape[1], k_BSKH.shape[1]
  if implementation not in _IMPLEMENTATIONS:
    raise ValueError(
      f"attention implementation={implementation!r} is none of "
      f"{', '.join(_IMPLEMENTATIONS)}."
    )
  if window is not None and window < 1:
    raise ValueError(
      f"attention window={window} must be at least 1 (the query's own key), or "
      "None for no window."
    )
  if softcap is not None and softcap <= 0:
    raise ValueError(
      f"attention softcap={softcap} must be positive, or None for no cap."
    )
  if k_segment_ids is None and num_queries != num_keys:
    raise ValueError(
      f"attention of {num_queries} queries to {num_keys} keys needs "
      "k_segment_ids: one id for each key."
    )
  is_self = k_segment_ids is None and isinstance(q_start, int) and q_start == 0
  if k_segment_ids is None:
    k_segment_ids = q_segment_ids
  if scale is None:
    scale = q_BTNH.shape[-1] ** -0.5
  platform = target.platform()
  cudnn = attention_dot_product.has_cudnn(
    q_BTNH, v_BSKV, sinks=sinks_N is not None, platform=platform
  )
  if implementation == "auto":
    if platform == "tpu" and is_self:
      implementation = "splash"
    elif cudnn and softcap is None:
      implementation = "dot_product"
    else:
      implementation = "blockwise"

  if implementation == "splash":
    if not is_self:
      raise ValueError(
        "attention implementation='splash' cannot do k_segment_ids or q_start "
        "(keys of a cache); use 'auto', 'blockwise', 'dot_product' or "
        "'reference'."
      )
    return attention_splash.attend(
      q_BTNH,
      k_BSKH,
      v_BSKV,
      segment_ids=q_segment_ids,
      scale=scale,
      window=window,
      softcap=softcap,
      sinks_N=sinks_N,
      interpret=platform != "tpu",
    )
  if implementation == "dot_product":
    if softcap is not None:
      raise ValueError(
        f"attention implementation='dot_product' cannot do softcap={softcap}; "
        "use 'auto', 'blockwise', 'splash' or 'reference'."
      )
    return attention_dot_product.attend(
      q_BTNH,
      k_BSKH,
      v_BSKV,
      q_segment_ids=q_segment_ids,
      k_segment_ids=k_segment_ids,
      q_start=q_start,
      scale=scale,
      window=window,
      sinks_N=sinks_N,
      backend="cudnn" if cudnn else "xla",
    )
  if implementation == "blockwise":
    return attention_blockwise.attend(
      q_BTNH,
      k_BSKH,
      v_BSKV,
      q_segment_ids=q_segment_ids,
      k_segment_ids=k_segment_ids,
      q_start=q_start,
      scale=scale,
      window=window,
      softcap=softcap,
      sinks_N=sinks_N,
      platform=platform,
    )
  return attention_reference.attend(
    q_BTNH,
    k_BSKH,
    v_BSKV,
    q_segment_ids=q_segment_ids,
    k_segment_ids=k_segment_ids,
    q_start=q_start,
    scale=scale,
    window=window,
    softcap=softcap,
    sinks_N=sinks_N,
  )
