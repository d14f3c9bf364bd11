"""From gradients to updates: optax, put together by the config."""

import dataclasses
import fnmatch
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from model import sharding
from train import int8_moments
from train import muon
from train import schedule_free


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupConfig:
  """Parameters with a rate or a decay of their own.

  Attributes:
    names: Patterns of dotted names, such as `*.router_DE` or `embed_VD`; `*`
      stands for anything.
    rate: Factor of the learning rate; 0 keeps them as they are.
    weight_decay: Instead of the optimizer's; unset: that.
  """

  names: tuple[str, ...]
  rate: float = 1.0
  weight_decay: float | None = None

  def __post_init__(self):
    if not self.names:
      raise ValueError("optimizer.groups: names is empty; give patterns.")
    for name in ("rate", "weight_decay"):
      value = getattr(self, name)
      if value is not None and not 0 <= value < math.inf:
        raise ValueError(
          f"optimizer.groups{list(self.names)}.{name}={value} must be 0 or"
          " more."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MuonConfig:
  """See muon.py.

  Attributes:
    momentum: Its decay.
    method: Which polynomials orthogonalize.
    num_steps: How many.
    rms: Size of an update's numbers; 0.2 is about AdamW's, so that its learning
      rates and decay hold.
    dtype: In which it is computed.
  """

  momentum: float = 0.95
  method: Literal["newton_schulz", "polar_express"] = "newton_schulz"
  num_steps: int = 5
  rms: float = 0.2
  dtype: Literal["bfloat16", "float32"] = "bfloat16"

  def __post_init__(self):
    if not 0 <= self.momentum < 1:
      raise ValueError(
        f"optimizer.muon.momentum={self.momentum} must be in [0, 1)."
      )
    if self.num_steps < 1:
      raise ValueError(
        f"optimizer.muon.num_steps={self.num_steps} must be at least 1."
      )
    if not self.rms > 0:
      raise ValueError(f"optimizer.muon.rms={self.rms} must be positive.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
  """How parameters follow their gradients.

    adamw:     arXiv:1711.05101.
    adafactor: The second moment by rows and columns, no first one unless
               `b1` > 0, steps clipped to a root mean square of 1
               (arXiv:1804.04235); rates are AdamW's, not relative to weights.
    lion:      The sign of the momentum (arXiv:2302.06675); rates a third to a
               tenth of AdamW's, decay as much larger.
    muon:      Matrices by Muon, all else by AdamW.
    schedule_free: AdamW with an average of the parameters instead of a first
               moment and of a decaying rate (schedule_free.py).

  Attributes:
    kind: One of the above.
    b1: Decay of the first moment; of lion, of what is stepped along; of
      schedule_free, how near to the average gradients are taken.
    b2: Decay of the second moment; of lion, of the momentum.
    eps: Added to the root of the second moment.
    weight_decay: Decoupled, times the learning rate.
    decay: Which parameters decay: `matrices` leaves out norm scales and
      biases, `all` does not.
    clip_norm: Gradients are scaled down to this global norm; unset: never.
    first_moment_dtype: In which momentum is kept; bfloat16 saves 2 bytes of a
      parameter, int8 almost 3 of a matrix' (int8_moments.py).
    second_moment_dtype: In which adamw's is kept; int8 saves almost 3 bytes.
    qk_clip: MuonClip (qk_clip.py): where an attention logit exceeds this, the
      head's query and key weights are scaled down after the update; unset:
      never. Kimi K2 takes 100.
    muon: Of that kind.
    groups: Of parameters that are treated otherwise; the first that names one
      has it.
  """

  kind: Literal["adamw", "adafactor", "lion", "muon", "schedule_free"] = "adamw"
  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.1
  decay: Literal["matrices", "all"] = "matrices"
  clip_norm: float | None = 1.0
  first_moment_dtype: Literal["float32", "bfloat16", "int8"] = "float32"
  second_moment_dtype: Literal["float32", "int8"] = "float32"
  qk_clip: float | None = None
  muon: MuonConfig = MuonConfig()
  groups: tuple[GroupConfig, ...] = ()

  def __post_init__(self):
    if self.kind != "muon" and self.muon != MuonConfig():
      raise ValueError(
        f"optimizer.muon is set, but optimizer.kind={self.kind!r}; set it to "
        "'muon', or leave the settings of Muon out."
      )
    for name in ("b1", "b2"):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(
          f"optimizer.{name}={getattr(self, name)} must be in [0, 1)."
        )
    if self.second_moment_dtype != "float32" and self.kind != "adamw":
      raise ValueError(
        f"optimizer.second_moment_dtype={self.second_moment_dtype!r} with "
        f"optimizer.kind={self.kind!r}: only adamw keeps a second moment of "
        "matrices that can be smaller; set it to 'float32', or the kind to "
        "'adamw'."
      )
    if self.kind == "schedule_free":
      self._check_schedule_free()
    for name in ("eps", "clip_norm", "qk_clip"):
      value = getattr(self, name)
      if value is not None and not value > 0:
        raise ValueError(f"optimizer.{name}={value} must be positive.")
    if self.weight_decay < 0:
      raise ValueError(
        f"optimizer.weight_decay={self.weight_decay} must be 0 or more."
      )

  def _check_schedule_free(self) -> None:
    given = "with optimizer.kind='schedule_free'"
    if self.b1 == 0:
      raise ValueError(
        f"optimizer.b1=0 {given}, which takes gradients at its average; 0.9 "
        "is usual."
      )
    if self.first_moment_dtype != "float32":
      raise ValueError(
        f"optimizer.first_moment_dtype={self.first_moment_dtype!r} {given}, "
        "which has no first moment; set it to 'float32'."
      )
    if self.qk_clip is not None:
      raise ValueError(
        f"optimizer.qk_clip={self.qk_clip} {given}: its average would not "
        "follow the clipped weights; leave qk_clip unset, or set the kind to "
        "'adamw' or 'muon'."
      )
    for group in self.groups:
      if group.rate == 0:
        raise ValueError(
          f"optimizer.groups{list(group.names)}.rate=0 {given}, which moves "
          "every parameter by its rounding; set the kind to 'adamw' to keep "
          "some as they are."
        )


def make(
  config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """Clip, step, decay, learning rate: in this order.

  Its `init` raises a ValueError if a group names no parameter.
  """
  steps = _steps(config, schedule)
  if config.kind == "schedule_free":
    return schedule_free.wrap(steps, schedule, b1=config.b1)
  return steps


def _steps(
  config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
  clip = (
    optax.identity()
    if config.clip_norm is None
    else optax.clip_by_global_norm(config.clip_norm)
  )
  parts = [
    clip,
    _scale_in_8_bits(config),
    optax.add_decayed_weights(
      config.weight_decay, mask=functools.partial(_decays, config=config)
    ),
  ]
  if config.groups:
    parts.append(_groups(config))
  return optax.chain(*parts, optax.scale_by_learning_rate(schedule))


def _scale_in_8_bits(config: OptimizerConfig) -> optax.GradientTransformation:
  """`_scale`, where asked for with moments in 8 bits."""
  first = config.first_moment_dtype == "int8"
  second = config.second_moment_dtype == "int8"
  if not first and not second:
    return _scale(config)
  if first:
    config = dataclasses.replace(config, first_moment_dtype="float32")
  return int8_moments.wrap(_scale(config), first=first, second=second)


def _scale(config: OptimizerConfig) -> optax.GradientTransformation:
  """Gradients to steps of a learning rate of 1."""
  first = jnp.dtype(config.first_moment_dtype)
  if config.kind == "schedule_free":
    return optax.scale_by_rms(
      decay=config.b2,
      eps=config.eps,
      eps_in_sqrt=False,
      bias_correction=True,
    )
  if config.kind == "lion":
    return optax.scale_by_lion(b1=config.b1, b2=config.b2, mu_dtype=first)
  if config.kind == "adafactor":
    return optax.chain(
      optax.scale_by_factored_rms(decay_rate=0.8, epsilon=1e-30),
      optax.clip_by_block_rms(1.0),
      optax.ema(config.b1, debias=False, accumulator_dtype=first)
      if config.b1
      else optax.identity(),
    )
  adam = optax.scale_by_adam(
    b1=config.b1, b2=config.b2, eps=config.eps, mu_dtype=first
  )
  if config.kind == "adamw":
    return adam
  matrices = muon.scale_by_muon(
    momentum=config.muon.momentum,
    steps=muon.coefficients(config.muon.method, config.muon.num_steps),
    rms=config.muon.rms,
    dtype=config.muon.dtype,
    momentum_dtype=first,
  )

  def labels(params):
    return _by_name(params, lambda name: muon.applies(name.split(".")[-1]))

  return optax.partition({True: matrices, False: adam}, labels)


def _groups(config: OptimizerConfig) -> optax.GradientTransformation:
  """Decay and rates of the groups."""

  def init(params):
    names = list(sharding.named_leaves(params))
    for group in config.groups:
      for pattern in group.names:
        if not fnmatch.filter(names, pattern):
          raise ValueError(
            f"optimizer.groups has {pattern!r}, which names no parameter; "
            f"there are {', '.join(names)}."
          )
    return optax.EmptyState()

  def update(updates, state, params=None):
    decay = decays(params, which=config.decay)

    def one(path, x, param, decays):
      group = _group_of(_dotted(path), config)
      if group is None:
        return x
      if group.weight_decay is not None and decays:
        x += group.weight_decay * param
      return group.rate * x

    updates = jax.tree_util.tree_map_with_path(one, updates, params, decay)
    return updates, state

  return optax.GradientTransformation(init, update)


def _group_of(name: str, config: OptimizerConfig) -> GroupConfig | None:
  for group in config.groups:
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in group.names):
      return group
  return None


def _decays(params: Any, *, config: OptimizerConfig) -> Any:
  """True for parameters that have the optimizer's own decay."""

  def has_own(name):
    group = _group_of(name, config)
    return group is not None and group.weight_decay is not None

  return jax.tree.map(
    lambda decays, own: decays and not own,
    decays(params, which=config.decay),
    _by_name(params, has_own),
  )


def _by_name(params: Any, function) -> Any:
  return jax.tree_util.tree_map_with_path(
    lambda path, _: function(_dotted(path)), params
  )


def _dotted(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator=".")


def decays(params: Any, *, which: str) -> Any:
  """True for parameters that decay, by OptimizerConfig.decay.

  A parameter's name says what it is: the stacked norm scales [L, D] are
  two-dimensional as arrays, and vectors all the same. A router's selection bias
  never decays: it is no weight of the loss (balance.py).
  """

  def one(path, leaf):
    del leaf
    name = str(path[-1].key)
    if name.startswith("selection_bias"):
      return False
    return which == "all" or sharding.is_matrix(name)

  return jax.tree_util.tree_map_with_path(one, params)
