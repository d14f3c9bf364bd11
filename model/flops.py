"""Parameters, FLOPs and cache bytes: the one source for MFU and planning.

Model FLOPs follow PaLM's appendix B (arXiv:2204.02311): a multiply-add is two,
the backward pass costs twice the forward, recomputation does not count, the
embedding lookup is free, and causal attention counts the half that it needs.
Elementwise work (norms, softmax, routing's sort) is not counted.

Everything is read off the model itself, built without memory; only the mixers'
work between tokens, which no parameter shows, has formulas here.

Dims: T length, D model, N query heads, H head dim, V vocabulary, E experts,
P positions, L layers.
"""

from collections.abc import Iterator
import dataclasses
import functools
import math
from typing import Any

import jax

from model import config as model_config
from model import sharding
from model import transformer


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParameterCount:
  """Numbers of parameters.

  Attributes:
    total: All that are stored.
    active: Those that one token makes use of in decoding: without the experts
      that it does not go to and without multi-token prediction.
    embedding: The embedding table.
    matmul: Those that each token is multiplied with, the output head (a tied
      embedding too) among them; vectors (norm scales, biases) are not.
    mtp: Modules of multi-token prediction, in `total` and nowhere else.
  """

  total: int
  active: int
  embedding: int
  matmul: int
  mtp: int


@functools.lru_cache(maxsize=256)
def count_parameters(config: model_config.ModelConfig) -> ParameterCount:
  """Counts the parameters of the model that `config` would build."""
  leaves = _leaves(config)
  main = [leaf for leaf in leaves if not leaf.is_mtp]
  return ParameterCount(
    total=sum(leaf.size for leaf in leaves),
    active=sum(leaf.active for leaf in main),
    embedding=config.vocab_size * config.dim,
    matmul=sum(leaf.active for leaf in main if leaf.is_multiplied),
    mtp=sum(leaf.size for leaf in leaves if leaf.is_mtp),
  )


def forward_per_token(
  config: model_config.ModelConfig, *, seq_len: int
) -> float:
  """FLOPs of the forward pass for one token of a causal sequence.

  Multi-token prediction is left out: it is for training.

  Args:
    config: The model.
    seq_len: T; a token sees T / 2 keys on average, fewer with a window.
  """
  mixing = sum(mixing_per_token(block, seq_len) for block in config.layers)
  return 2 * count_parameters(config).matmul + mixing


def train_per_token(config: model_config.ModelConfig, *, seq_len: int) -> float:
  """FLOPs of forward and backward pass for one token: 3 times forward.

  A module of multi-token prediction costs its own parameters, its block's
  mixing, and the output head once more.
  """
  forward = forward_per_token(config, seq_len=seq_len)
  if config.mtp is not None:
    own = sum(leaf.active for leaf in _leaves(config) if leaf.is_mtp_multiplied)
    head = config.vocab_size * config.dim
    mixing = mixing_per_token(config.mtp.block, seq_len)
    forward += 2 * own + config.mtp.num_modules * (2 * head + mixing)
  return 3 * forward


def mixing_per_token(block: model_config.BlockConfig, seq_len: int) -> float:
  """FLOPs by which one token sees the others, projections left out.

  Attention multiplies its query with each visible key and the weight with each
  value. The gated delta rule reads, corrects and reads again a state of fixed
  size, whatever the length (as a recurrence; chunked forms do more).
  """
  mixer = block.mixer
  match mixer:
    case model_config.AttentionConfig():
      per_key = 4 * mixer.num_heads * mixer.head_dim
      return per_key * mean_visible_keys(seq_len, mixer.window)
    case model_config.MlaConfig():
      head_dim = mixer.nope_head_dim + mixer.rope_head_dim
      per_key = 2 * mixer.num_heads * (head_dim + mixer.value_head_dim)
      return per_key * mean_visible_keys(seq_len)
    case model_config.GatedDeltaNetConfig():
      state = mixer.key_head_dim * mixer.value_head_dim
      return 6 * mixer.num_value_heads * state


def mean_visible_keys(seq_len: int, window: int | None = None) -> float:
  """How many keys a token sees, averaged over a causal sequence.

  T / 2, and w - w^2 / 2T with a window of w < T keys: the integral of
  min(t, w) over T, as the half of T x T is that of t.
  """
  reach = seq_len if window is None else min(window, seq_len)
  return reach - reach * reach / (2 * seq_len)


def cache_bytes(
  config: model_config.ModelConfig,
  *,
  context: int,
  dtype: str = "bfloat16",
) -> int:
  """Bytes that one text of `context` tokens needs in the mixers' states.

  Attention layers with a window need no more than the window's tokens; states
  of linear attention are of one size whatever the context.

  Args:
    config: The model.
    context: Tokens so far.
    dtype: Of what the cache keeps per token.
  """
  graphdef, params = transformer.abstract(
    config, model_config.ExecutionConfig()
  )
  model = transformer.bind(graphdef, params)
  total = 0
  for i, group in enumerate(config.groups):
    for j, block in enumerate(group.pattern):
      mixer = getattr(getattr(model, f"group_{i}"), f"block_{j}").mixer
      window = getattr(block.mixer, "window", None)
      slots = context if window is None else min(window, context)
      state = jax.eval_shape(functools.partial(mixer.state, 1, slots, dtype))
      total += group.repeats * sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)
      )
  return total


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Leaf:
  """A parameter: how many numbers, how many a token uses, and where."""

  size: int
  active: int
  is_multiplied: bool
  is_mtp: bool

  @property
  def is_mtp_multiplied(self) -> bool:
    return self.is_mtp and self.is_multiplied


@functools.lru_cache(maxsize=256)
def _leaves(config: model_config.ModelConfig) -> tuple[_Leaf, ...]:
  _, shapes = transformer.abstract(config, model_config.ExecutionConfig())
  return tuple(_describe(config, shapes))


def _describe(
  config: model_config.ModelConfig, shapes: dict[str, Any]
) -> Iterator[_Leaf]:
  for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
    names = [str(key.key) for key in path]
    dims = sharding.param_dims(names[-1])
    size = math.prod(leaf.shape)
    active = size
    if dims.startswith("E") and len(dims) > 1:
      feed_forward = _block(config, names).feed_forward
      assert isinstance(feed_forward, model_config.MoeConfig), names
      active = size * feed_forward.experts_per_token // feed_forward.num_experts
    is_table = dims.startswith(("V", "P"))
    is_head = is_table and dims[0] == "V" and config.tie_embeddings
    yield _Leaf(
      size=size,
      active=active,
      is_multiplied=sharding.is_matrix(names[-1]) and (is_head or not is_table),
      is_mtp=names[0].startswith("mtp_"),
    )


def _block(
  config: model_config.ModelConfig, names: list[str]
) -> model_config.BlockConfig:
  """The block that a parameter's path leads through."""
  if config.mtp is not None and names[0].startswith("mtp_"):
    return config.mtp.block
  group, block = (int(name.rpartition("_")[2]) for name in names[:2])
  return config.groups[group].pattern[block]
