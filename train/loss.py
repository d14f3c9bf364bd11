"""Next-token cross-entropy fused with the output head.

The logits of a batch are by far its largest array (tokens x vocabulary, in
float32). `cross_entropy` never holds them: it walks over the sequence in
chunks, and while a chunk's logits are at hand it also computes that chunk's
share of the gradients, so that the backward pass multiplies nothing again.
`reference` is the same in a few lines, with all logits at once.

Dims: B batch, T length, D model, V vocabulary; a chunk is a piece of T.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from model import sharding


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["loss", "nll", "z_loss", "weight"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class LossSums:
  """Sums over the tokens of a batch; divide by `weight` for means.

  Attributes:
    loss: nll + z_loss_weight * z_loss: what is differentiated.
    nll: Weighted negative log-likelihood of the targets, nats.
    z_loss: Weighted squared log-normaliser (PaLM, arXiv:2204.02311, 5).
    weight: Sum of the loss weights: the number of trained tokens.
  """

  loss: Float[Array, ""]
  nll: Float[Array, ""]
  z_loss: Float[Array, ""]
  weight: Float[Array, ""]


def reference(
  hidden: Float[Array, "B T D"],
  head: Float[Array, "D V"],
  targets: Int[Array, "B T"],
  weights: Float[Array, "B T"],
  *,
  z_loss_weight: float = 0.0,
  logit_softcap: float | None = None,
) -> LossSums:
  """The definition: all logits at once, in float32."""
  logits, log_z, hit = _log_normalizer(hidden, head, targets, logit_softcap)
  del logits
  nll = jnp.sum(weights * (log_z - hit))
  z_loss = jnp.sum(weights * jnp.square(log_z))
  return LossSums(
    loss=nll + z_loss_weight * z_loss,
    nll=nll,
    z_loss=z_loss,
    weight=jnp.sum(weights),
  )


def cross_entropy(
  hidden: Float[Array, "B T D"],
  head: Float[Array, "D V"],
  targets: Int[Array, "B T"],
  weights: Float[Array, "B T"],
  *,
  z_loss_weight: float = 0.0,
  logit_softcap: float | None = None,
  num_chunks: int,
) -> LossSums:
  """`reference` without ever holding more than 1 / num_chunks of the logits.

  Args:
    hidden: Final hidden states; their dtype is the matmul's.
    head: Output projection, in the dtype it is stored in.
    targets: Token ids to predict.
    weights: Share of each token in the loss; 0 for padding.
    z_loss_weight: Of `z_loss` in `loss`.
    logit_softcap: As ModelConfig.logit_softcap.
    num_chunks: Pieces of the sequence; must divide T (`choose_num_chunks`).

  Returns:
    Sums over all tokens. Only `loss` carries gradients (to `hidden`, `head`).
  """
  assert hidden.shape[1] % num_chunks == 0, (hidden.shape, num_chunks)
  loss, nll, z_loss = _fused(
    num_chunks, z_loss_weight, logit_softcap, hidden, head, targets, weights
  )
  return LossSums(
    loss=loss,
    nll=jax.lax.stop_gradient(nll),
    z_loss=jax.lax.stop_gradient(z_loss),
    weight=jnp.sum(weights),
  )


def choose_num_chunks(*, rows: int, seq_len: int, max_tokens: int) -> int:
  """The fewest equal pieces of a sequence with at most `max_tokens` each.

  Each piece adds to the head's gradient, D x V, once more: many small pieces
  cost more than the memory they save is worth.

  Args:
    rows: Sequences on one device.
    seq_len: T, to be divided.
    max_tokens: Of all rows together, in one piece; a piece of one position is
      the smallest, whatever this is.
  """
  return next(
    pieces
    for pieces in range(1, seq_len + 1)
    if seq_len % pieces == 0
    and (rows * seq_len <= max_tokens * pieces or pieces == seq_len)
  )


def _log_normalizer(x, head, targets, softcap):
  """Logits, their log-sum-exp and the target's logit, in float32."""
  logits = jnp.einsum(
    "BTD,DV->BTV",
    x,
    head.astype(x.dtype),
    preferred_element_type=jnp.float32,
  )
  logits = sharding.constrain(logits, "BTV")
  if softcap is not None:
    logits = softcap * jnp.tanh(logits / softcap)
  log_z = jax.nn.logsumexp(logits, axis=-1)
  hit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return logits, log_z, hit


def _split(num_chunks, *arrays):
  """[B, T, ...] -> [chunks, B, T / chunks, ...], for a scan over chunks.

  A chunk has as much of every piece that the mesh cuts the sequence in.
  """
  pieces = _num_pieces(arrays[0].shape[1], num_chunks)

  def split(x):
    batch, length, *rest = x.shape
    x = x.reshape(batch, pieces, num_chunks, -1, *rest)
    x = jnp.moveaxis(x, 2, 0)
    x = x.reshape(num_chunks, batch, length // num_chunks, *rest)
    return _constrain_chunks(x)

  return tuple(split(x) for x in arrays)


def _join(x):
  """`_split` undone."""
  num_chunks, batch, length, *rest = x.shape
  pieces = _num_pieces(num_chunks * length, num_chunks)
  x = _constrain_chunks(x).reshape(num_chunks, batch, pieces, -1, *rest)
  x = jnp.moveaxis(x, 0, 2).reshape(batch, num_chunks * length, *rest)
  return sharding.constrain(x, "BTD")


def _num_pieces(length, num_chunks):
  """Shards of the sequence, if chunks can have an equal part of each."""
  shards = sharding.num_context_shards()
  return 1 if length % (shards * num_chunks) else shards


def _constrain_chunks(x):
  return sharding.constrain(x, "LBTD"[: x.ndim])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _fused(num_chunks, z_loss_weight, softcap, hidden, head, targets, weights):
  """(loss, nll, z_loss) sums; without gradients, none are computed."""

  def chunk(sums, args):
    x, y, w = args
    _, log_z, hit = _log_normalizer(x, head, y, softcap)
    nll, z_loss = sums
    nll += jnp.sum(w * (log_z - hit))
    return (nll, z_loss + jnp.sum(w * jnp.square(log_z))), None

  (nll, z_loss), _ = jax.lax.scan(
    chunk, (0.0, 0.0), _split(num_chunks, hidden, targets, weights)
  )
  return nll + z_loss_weight * z_loss, nll, z_loss


def _fused_forward(
  num_chunks, z_loss_weight, softcap, hidden, head, targets, weights
):
  """The sums, and as residuals d loss / d hidden and d loss / d head.

  d nll / d logits = p - onehot(target), d log_z^2 / d logits = 2 log_z p.
  With y = cap tanh(x / cap), dy / dx = 1 - (y / cap)^2.
  """

  def chunk(carry, args):
    x, y, w = args
    nll, z_loss, d_head = carry
    logits, log_z, hit = _log_normalizer(x, head, y, softcap)
    nll += jnp.sum(w * (log_z - hit))
    z_loss += jnp.sum(w * jnp.square(log_z))
    p = jnp.exp(logits - log_z[..., None])
    scale = w * (1.0 + 2.0 * z_loss_weight * log_z)
    is_target = jnp.arange(logits.shape[-1]) == y[..., None]
    d_logits = scale[..., None] * p - jnp.where(is_target, w[..., None], 0.0)
    if softcap is not None:
      d_logits *= 1.0 - jnp.square(logits / softcap)
    d_logits = d_logits.astype(x.dtype)
    d_x = jnp.einsum("BTV,DV->BTD", d_logits, head.astype(x.dtype))
    d_head += jnp.einsum(
      "BTD,BTV->DV", x, d_logits, preferred_element_type=jnp.float32
    )
    return (nll, z_loss, sharding.constrain_param(d_head, "head_DV")), d_x

  # Sharded as the head is, or each device would hold all of it.
  zeros = sharding.constrain_param(
    jnp.zeros(head.shape, jnp.float32), "head_DV"
  )
  zeros = (0.0, 0.0, zeros)
  (nll, z_loss, d_head), d_x = jax.lax.scan(
    chunk, zeros, _split(num_chunks, hidden, targets, weights)
  )
  d_hidden = _join(d_x)
  sums = (nll + z_loss_weight * z_loss, nll, z_loss)
  return sums, (d_hidden, d_head.astype(head.dtype))


def _fused_backward(num_chunks, z_loss_weight, softcap, residuals, cotangents):
  """Scales what the forward pass computed; targets and weights have none."""
  del num_chunks, z_loss_weight, softcap
  d_hidden, d_head = residuals
  d_loss = cotangents[0]
  return (
    (d_loss * d_hidden).astype(d_hidden.dtype),
    (d_loss * d_head).astype(d_head.dtype),
    None,
    None,
  )


_fused.defvjp(_fused_forward, _fused_backward)
