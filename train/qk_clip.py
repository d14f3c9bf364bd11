"""MuonClip's qk-clip: attention logits are kept from growing without bound.

Kimi K2 (arXiv:2507.20534, 2.1). The step measures the largest logit of each
head. Where it exceeds a threshold, the weights of the head's queries and keys
are scaled down after the update, so that it would have been the threshold; no
other head changes.

With grouped queries a key head is shared: it is scaled for the query head of
its group that needs most, and the others' queries take it back. In multi-head
latent attention the rotated key is shared by all heads: it stays, and the
rotated part of the query carries the whole factor.

Dims: L layers, N query heads, K key/value heads, G = N/K, H head dim.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from model import config as model_config

_CLIPPED = (model_config.AttentionConfig, model_config.MlaConfig)
# By group and block, stacked over layers.
Logits = dict[str, dict[str, Float[Array, "L N"]]]
# (parameters, largest logits) -> (parameters, metrics).
Clip = Callable[[Any, Logits], tuple[Any, dict[str, jax.Array]]]


def check_model(model: model_config.ModelConfig, *, has_mtp: bool) -> None:
  """Refuses what cannot be clipped.

  Args:
    model: The model.
    has_mtp: Whether modules of multi-token prediction are trained too.

  Raises:
    ValueError: Says why.
  """
  mixers = [block.mixer for block in model.layers]
  if not any(isinstance(m, _CLIPPED) for m in mixers):
    raise ValueError(
      f"optimizer.qk_clip is set, but {model.name} has no attention; leave it "
      "unset."
    )
  norms = {getattr(mixer, "qk_norm", "none") for mixer in mixers} - {"none"}
  if norms:
    raise ValueError(
      f"optimizer.qk_clip is set, but {model.name} has qk_norm="
      f"{norms.pop()!r}, which undoes every scale of the weights and bounds "
      "the logits itself; leave it unset."
    )
  if has_mtp:
    raise ValueError(
      f"optimizer.qk_clip is set, but the modules of multi-token prediction of "
      f"{model.name} are not clipped; set loss.mtp_loss_weight to 0, or leave "
      "it unset."
    )


def make(
  model: model_config.ModelConfig, *, threshold: float | None
) -> Clip | None:
  """What the step does after its update; None without a threshold."""
  if threshold is None:
    return None

  def apply(params, logits):
    clipped = clip(params, logits, model, threshold=threshold)
    return clipped, metrics(logits, threshold=threshold)

  return apply


def clip(
  params: Any,
  logits: Logits,
  model: model_config.ModelConfig,
  *,
  threshold: float,
) -> Any:
  """`params` with the weights of heads above the threshold scaled down."""
  params = dict(params)
  for group, blocks in logits.items():
    patterns = model.groups[int(group.removeprefix("group_"))].pattern
    params[group] = dict(params[group])
    for block, largest_LN in blocks.items():
      mixer = patterns[int(block.removeprefix("block_"))].mixer
      factor_LN = threshold / jnp.maximum(largest_LN, threshold)
      of_block = params[group][block]
      params[group][block] = of_block | {
        "mixer": _clip_mixer(of_block["mixer"], factor_LN, mixer)
      }
  return params


def metrics(logits: Logits, *, threshold: float) -> dict[str, jax.Array]:
  """`qk_clip/max_logit`, of all heads, and `qk_clip/heads`, how many exceed."""
  all_heads = jnp.concatenate([x.reshape(-1) for x in jax.tree.leaves(logits)])
  return {
    "qk_clip/max_logit": jnp.max(all_heads),
    "qk_clip/heads": jnp.sum((all_heads > threshold).astype(jnp.float32)),
  }


def _clip_mixer(weights, factor_LN, mixer):
  """A mixer's weights, stacked over L, with each head's logits so scaled."""
  if isinstance(mixer, model_config.MlaConfig):
    query = "q_DNH" if mixer.q_rank is None else "q_up_RNH"
    nope = jnp.arange(mixer.nope_head_dim + mixer.rope_head_dim)
    nope = nope < mixer.nope_head_dim
    root_LN1 = jnp.sqrt(factor_LN)[..., None]
    by_feature = jnp.where(nope, root_LN1, factor_LN[..., None])
    scales = {query: by_feature[:, None], "k_up_CNH": root_LN1[:, None]}
  else:
    heads = (factor_LN.shape[0], mixer.num_kv_heads, -1)
    factor_LKG = factor_LN.reshape(heads)
    root_LK = jnp.sqrt(jnp.min(factor_LKG, axis=-1))
    query_LN1 = (factor_LKG / root_LK[..., None]).reshape(factor_LN.shape)
    query_LN1, key_LK1 = query_LN1[..., None], root_LK[..., None]
    scales = {"q_DNH": query_LN1[:, None], "k_DKH": key_LK1[:, None]}
    if mixer.qkv_bias:
      scales |= {"q_bias_NH": query_LN1, "k_bias_KH": key_LK1}
  return weights | {
    name: (weights[name] * scale).astype(weights[name].dtype)
    for name, scale in scales.items()
  }
