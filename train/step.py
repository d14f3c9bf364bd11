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

from model import mtp
from model import sharding
from model import transformer
from train import balance as balance_lib
from train import ema as ema_lib
from train import loss as loss_lib
from train import qk_clip as qk_clip_lib
from train import schedule_free

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
_USUAL_BALANCE = balance_lib.BalanceConfig()
_NO_EMA = ema_lib.EmaConfig()


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["step", "params", "optimizer", "ema"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
  """All that the step reads and writes.

  Attributes:
    step: Number of updates made, int32.
    params: Nested dicts of parameters (model/transformer.py).
    optimizer: The optax state.
    ema: The parameters' moving average (ema.py); None: the run keeps none.
  """

  step: jax.Array
  params: Any
  optimizer: Any
  ema: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
  """How the loss is computed.

  Attributes:
    z_loss_weight: Of the squared log-normaliser (PaLM uses 1e-4).
    chunk_tokens: Tokens of a device whose logits are held at a time.
    mtp_loss_weight: Of multi-token prediction's loss (DeepSeek-V3's lambda,
      arXiv:2412.19437, 2.2: 0.3, later 0.1), in models that have its modules;
      0: it is not computed.
  """

  z_loss_weight: float = 0.0
  chunk_tokens: int = 1024
  mtp_loss_weight: float = 0.3

  def __post_init__(self):
    for name in ("z_loss_weight", "mtp_loss_weight"):
      if getattr(self, name) < 0:
        raise ValueError(
          f"loss.{name}={getattr(self, name)} must be 0 or more."
        )
    if self.chunk_tokens < 1:
      raise ValueError(
        f"loss.chunk_tokens={self.chunk_tokens} must be at least 1."
      )


def init_state(
  init_params: Callable[[], Any],
  optimizer: optax.GradientTransformation,
  ema: ema_lib.EmaConfig = _NO_EMA,
) -> TrainState:
  """A fresh state; jit it with out_shardings to make it in place."""
  params = init_params()
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    optimizer=optimizer.init(params),
    ema=None if ema.decay is None else params,
  )


def has_average(state: TrainState) -> bool:
  """Whether `result` is not the parameters that are trained."""
  return state.ema is not None or schedule_free.is_state(state.optimizer)


def result(state: TrainState) -> Any:
  """The parameters to evaluate, sample from and serve: an average, if any."""
  if state.ema is not None:
    return state.ema
  if schedule_free.is_state(state.optimizer):
    return schedule_free.average(state.optimizer, state.params)
  return state.params


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["main", "ahead", "routers", "max_logits"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSums:
  """Sums of all that is trained on, over the tokens of a batch.

  Attributes:
    main: The next token's.
    ahead: Of each module of multi-token prediction, further tokens'.
    routers: What the routers of mixtures of experts did, by block.
    max_logits: Of each head of attention, by group and block (qk_clip.py): a
      maximum, not a sum. Empty unless measured.
  """

  main: loss_lib.LossSums
  ahead: tuple[loss_lib.LossSums, ...]
  routers: balance_lib.Stats
  max_logits: qk_clip_lib.Logits


def eval_sums(
  params: Any, batch: Batch, *, graphdef: nnx.GraphDef, config: LossConfig
) -> loss_lib.LossSums:
  """The sums of the next token's loss."""
  model = transformer.bind(graphdef, params)
  output = _call(model, batch, bounded=False)
  return _next_token_sums(model, output, batch, config)


def train_sums(
  params: Any,
  batch: Batch,
  *,
  graphdef: nnx.GraphDef,
  config: LossConfig,
  measure_logits: bool = False,
) -> TrainSums:
  """The sums of all losses of a training batch."""
  model = transformer.bind(graphdef, params)
  output = _call(model, batch, bounded=True, measure_logits=measure_logits)
  predictions: tuple[mtp.Prediction, ...] = ()
  ahead = []
  if config.mtp_loss_weight > 0:
    predictions = model.predict_ahead(
      output,
      batch["tokens"],
      positions=batch["positions"],
      segment_ids=batch["segment_ids"],
    )
    for places, prediction in enumerate(predictions, start=1):
      targets = mtp.ahead(batch["targets"], places)
      weights = ahead_weights(batch, places)
      ahead.append(
        _token_sums(model, prediction.hidden, targets, weights, config)
      )
  return TrainSums(
    main=_next_token_sums(model, output, batch, config),
    ahead=tuple(ahead),
    routers=balance_lib.collect(output, predictions),
    max_logits=output.max_logits,
  )


def ahead_weights(batch: Batch, places: int) -> jax.Array:
  """Loss weights of the targets `places` behind the next tokens [B, T].

  That is the weight such a target has as a next token; 0 where it lies in
  another segment.
  """
  weights = mtp.ahead(batch["loss_weights"], places)
  return jnp.where(mtp.has_ahead(batch["segment_ids"], places), weights, 0.0)


def _call(
  model: transformer.Transformer,
  batch: Batch,
  *,
  bounded: bool,
  measure_logits: bool = False,
) -> transformer.Output:
  return model(
    batch["tokens"],
    positions=batch["positions"],
    segment_ids=batch["segment_ids"],
    bounded=bounded,
    measure_logits=measure_logits,
  )


def _next_token_sums(model, output, batch, config):
  return _token_sums(
    model,
    output.hidden,
    batch["targets"],
    batch["loss_weights"],
    config,
    z_loss_weight=config.z_loss_weight,
  )


def _token_sums(
  model: transformer.Transformer,
  hidden: jax.Array,
  targets: jax.Array,
  weights: jax.Array,
  config: LossConfig,
  *,
  z_loss_weight: float = 0.0,
) -> loss_lib.LossSums:
  rows, seq_len = targets.shape
  pieces = sharding.num_context_shards()
  if seq_len % pieces:
    pieces = 1
  return loss_lib.cross_entropy(
    hidden,
    model.head(),
    targets,
    weights,
    z_loss_weight=z_loss_weight,
    logit_softcap=model.config.logit_softcap,
    num_chunks=loss_lib.choose_num_chunks(
      rows=-(-rows // sharding.num_batch_shards()),
      seq_len=seq_len // pieces,
      max_tokens=config.chunk_tokens,
    ),
  )


def gradients(
  params: Any,
  batch: Batch,
  *,
  graphdef: nnx.GraphDef,
  config: LossConfig,
  balance: balance_lib.BalanceConfig,
  accumulation: int,
  measure_logits: bool = False,
) -> tuple[Any, TrainSums]:
  """Gradients of the batch's mean loss per token, and its sums.

  The loss is the next token's; with multi-token prediction, also its weight
  times the mean over the modules of theirs; with mixtures of experts, also what
  balances them.

  With accumulation the batch goes through the model in A pieces. Each piece's
  summed losses are divided by the whole batch's tokens, so that pieces of
  unequal weight count by their tokens and the result does not depend on A.
  """
  total = _at_least_one(jnp.sum(batch["loss_weights"]))
  is_token = batch["segment_ids"] > 0
  num_sequences = jnp.sum(jnp.any(is_token, axis=1))

  def loss_fn(params, piece, whole=None):
    sums = train_sums(
      params,
      piece,
      graphdef=graphdef,
      config=config,
      measure_logits=measure_logits,
    )
    loss = sums.main.loss / total
    num_tokens = jnp.sum(piece["segment_ids"] > 0)
    loss += balance_lib.loss(
      sums.routers,
      balance,
      share=num_tokens / _at_least_one(jnp.sum(is_token)),
      num_sequences=num_sequences,
      whole=whole,
    )
    for places, module in enumerate(sums.ahead, start=1):
      module_total = _at_least_one(jnp.sum(ahead_weights(batch, places)))
      share = config.mtp_loss_weight / len(sums.ahead)
      loss += share * module.loss / module_total
    return loss, sums

  grad_fn = jax.grad(loss_fn, has_aux=True)
  if accumulation == 1:
    return grad_fn(params, batch)

  # Piece a takes every A-th row: rows stay on the device that holds them.
  pieces = jax.tree.map(
    lambda x: x.reshape(-1, accumulation, *x.shape[1:]).swapaxes(0, 1), batch
  )

  whole = None
  if balance.counts_first:
    whole = _sum_pieces(
      lambda piece: (
        train_sums(params, piece, graphdef=graphdef, config=config).routers
      ),
      pieces,
    )
  grads, sums = _sum_pieces(lambda piece: grad_fn(params, piece, whole), pieces)
  return jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params), sums


def _sum_pieces(function: Callable[[Batch], Any], pieces: Batch) -> Any:
  """The sum, leaf by leaf, of what `function` gives for each piece.

  Of TrainSums.max_logits it is the maximum; they are no less than 0.

  The carry is float32, and so is each sum with it: small pieces would be
  rounded away in bfloat16.
  """
  first = jax.tree.map(lambda x: x[0], pieces)
  shapes = jax.eval_shape(function, first)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)

  def add(path, total, x):
    if jax.tree_util.GetAttrKey("max_logits") in path:
      return jnp.maximum(total, x)
    return total + x

  def add_piece(carry, piece):
    return jax.tree_util.tree_map_with_path(add, carry, function(piece)), None

  return jax.lax.scan(add_piece, zeros, pieces)[0]


def _at_least_one(total: jax.Array) -> jax.Array:
  """Keeps a batch without any trained token from dividing by 0."""
  return jnp.maximum(total, 1.0)


def make_train_step(
  *,
  graphdef: nnx.GraphDef,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  loss: LossConfig,
  balance: balance_lib.BalanceConfig = _USUAL_BALANCE,
  ema: ema_lib.EmaConfig = _NO_EMA,
  qk_clip: qk_clip_lib.Clip | None = None,
  accumulation: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """(state, batch) -> (state, metrics), to be jitted with `state` donated.

  Metrics are float32 scalars: `loss` (mean nll, nats per token), `z_loss`,
  `grad_norm` (before clipping), `param_norm`, `learning_rate`, `tokens`; with
  multi-token prediction `mtp_loss`, the mean over its modules of mean nll; with
  mixtures of experts those of `balance.metrics`, of which `router/load` is [E];
  with clipped attention logits those of `qk_clip.metrics`.
  """

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    grads, sums = gradients(
      state.params,
      batch,
      graphdef=graphdef,
      config=loss,
      balance=balance,
      accumulation=accumulation,
      measure_logits=qk_clip is not None,
    )
    weight = _at_least_one(sums.main.weight)
    updates, opt_state = optimizer.update(grads, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    params = balance_lib.update_biases(params, sums.routers, balance)
    clipped: Metrics = {}
    if qk_clip is not None:
      params, clipped = qk_clip(params, sums.max_logits)
    metrics: dict[str, Any] = {
      "loss": sums.main.nll / weight,
      "z_loss": sums.main.z_loss / weight,
      "grad_norm": optax.tree.norm(grads),
      "param_norm": optax.tree.norm(params),
      "learning_rate": schedule(state.step),
      "tokens": sums.main.weight,
    }
    if sums.ahead:
      metrics["mtp_loss"] = sum(
        module.nll / _at_least_one(module.weight) for module in sums.ahead
      ) / len(sums.ahead)
    metrics |= balance_lib.metrics(sums.routers) | clipped
    average = None
    if ema.decay is not None:
      average = ema_lib.update(
        state.ema, params, decay=ema_lib.decay_at(ema, state.step)
      )
    new_state = TrainState(
      step=state.step + 1, params=params, optimizer=opt_state, ema=average
    )
    return new_state, metrics

  return train_step


def make_eval_step(
  *, graphdef: nnx.GraphDef, loss: LossConfig
) -> Callable[[Any, Batch], loss_lib.LossSums]:
  """(params, batch) -> loss sums, without gradients."""
  return functools.partial(eval_sums, graphdef=graphdef, config=loss)
