"""One training step: a pure function of (state, batch).

Dims: B batch, T length, A gradient-accumulation pieces.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from model import sharding
from model import transformer
from train import loss as loss_lib

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["step", "params", "optimizer"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
  """All that the step reads and writes.

  Attributes:
    step: Number of updates made, int32.
    params: Nested dicts of parameters (model/transformer.py).
    optimizer: The optax state.
  """

  step: jax.Array
  params: Any
  optimizer: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
  """How the loss is computed.

  Attributes:
    z_loss_weight: Of the squared log-normaliser (PaLM uses 1e-4).
    chunk_tokens: Tokens of a device whose logits are held at a time.
  """

  z_loss_weight: float = 0.0
  chunk_tokens: int = 1024

  def __post_init__(self):
    if self.z_loss_weight < 0:
      raise ValueError(
        f"loss.z_loss_weight={self.z_loss_weight} must be 0 or more."
      )
    if self.chunk_tokens < 1:
      raise ValueError(
        f"loss.chunk_tokens={self.chunk_tokens} must be at least 1."
      )


def init_state(
  init_params: Callable[[], Any], optimizer: optax.GradientTransformation
) -> TrainState:
  """A fresh state; jit it with out_shardings to make it in place."""
  params = init_params()
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    optimizer=optimizer.init(params),
  )


def batch_loss(
  params: Any, batch: Batch, *, graphdef: nnx.GraphDef, config: LossConfig
) -> loss_lib.LossSums:
  """The loss sums of a batch."""
  model = transformer.bind(graphdef, params)
  hidden = model(
    batch["tokens"],
    positions=batch["positions"],
    segment_ids=batch["segment_ids"],
  )
  rows, seq_len = batch["tokens"].shape
  return loss_lib.cross_entropy(
    hidden,
    model.head(),
    batch["targets"],
    batch["loss_weights"],
    z_loss_weight=config.z_loss_weight,
    num_chunks=loss_lib.choose_num_chunks(
      rows=-(-rows // sharding.num_batch_shards()),
      seq_len=seq_len,
      max_tokens=config.chunk_tokens,
    ),
  )


def gradients(
  params: Any,
  batch: Batch,
  *,
  graphdef: nnx.GraphDef,
  config: LossConfig,
  accumulation: int,
) -> tuple[Any, loss_lib.LossSums]:
  """Gradients of the batch's mean loss per token, and its sums.

  With accumulation the batch goes through the model in A pieces. Each piece's
  summed loss is divided by the whole batch's tokens, so that pieces of unequal
  weight count by their tokens and the result does not depend on A.
  """
  total = jnp.maximum(jnp.sum(batch["loss_weights"]), 1.0)

  def loss_fn(params, piece):
    sums = batch_loss(params, piece, graphdef=graphdef, config=config)
    return sums.loss / total, sums

  grad_fn = jax.grad(loss_fn, has_aux=True)
  if accumulation == 1:
    return grad_fn(params, batch)

  def add_piece(carry, piece):
    # In float32: small pieces would be rounded away in bfloat16.
    return jax.tree.map(lambda c, g: c + g, carry, grad_fn(params, piece)), None

  # Piece a takes every A-th row: rows stay on the device that holds them.
  pieces = jax.tree.map(
    lambda x: x.reshape(-1, accumulation, *x.shape[1:]).swapaxes(0, 1), batch
  )
  first = jax.tree.map(lambda x: x[0], pieces)
  shapes = jax.eval_shape(grad_fn, params, first)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
  (grads, sums), _ = jax.lax.scan(add_piece, zeros, pieces)
  return jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params), sums


def make_train_step(
  *,
  graphdef: nnx.GraphDef,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  loss: LossConfig,
  accumulation: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """(state, batch) -> (state, metrics), to be jitted with `state` donated.

  Metrics are float32 scalars: `loss` (mean nll, nats per token), `z_loss`,
  `grad_norm` (before clipping), `param_norm`, `learning_rate`, `tokens`.
  """

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    grads, sums = gradients(
      state.params,
      batch,
      graphdef=graphdef,
      config=loss,
      accumulation=accumulation,
    )
    weight = jnp.maximum(sums.weight, 1.0)
    updates, opt_state = optimizer.update(grads, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics: dict[str, Any] = {
      "loss": sums.nll / weight,
      "z_loss": sums.z_loss / weight,
      "grad_norm": optax.tree.norm(grads),
      "param_norm": optax.tree.norm(params),
      "learning_rate": schedule(state.step),
      "tokens": sums.weight,
    }
    new_state = TrainState(
      step=state.step + 1, params=params, optimizer=opt_state
    )
    return new_state, metrics

  return train_step


def make_eval_step(
  *, graphdef: nnx.GraphDef, loss: LossConfig
) -> Callable[[Any, Batch], loss_lib.LossSums]:
  """(params, batch) -> loss sums, without gradients."""
  return functools.partial(batch_loss, graphdef=graphdef, config=loss)
