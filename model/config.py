"""What a model is (`ModelConfig`) and how it is computed (`ExecutionConfig`).

`ModelConfig` is the model's identity: it is stored in every checkpoint and two
models with equal configs have parameters of equal names and shapes and compute
the same function. `ExecutionConfig` may differ from run to run: precision,
rematerialisation, which attention implementation.

Dims: D model, N query heads, K key/value heads, H head dim, F feed-forward,
L layers, V vocabulary.
"""

import dataclasses
from typing import Literal


def _check(condition: bool, message: str) -> None:
  if not condition:
    raise ValueError(message)


def _check_positive(config, *names: str) -> None:
  for name in names:
    value = getattr(config, name)
    _check(
      value > 0, f"{type(config).__name__}.{name}={value} must be positive."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
  """Llama 3.1's frequency scaling of RoPE (HF `rope_type` "llama3").

  Wavelengths longer than the original context over `low_freq_factor` are
  stretched by `factor`, those shorter than it over `high_freq_factor` are kept,
  and those between are blended.
  """

  factor: float
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_max_seq_len: int = 8192

  def __post_init__(self):
    _check_positive(self, "factor", "low_freq_factor", "original_max_seq_len")
    _check(
      self.high_freq_factor > self.low_freq_factor,
      f"Llama3Scaling.high_freq_factor={self.high_freq_factor} must be above "
      f"low_freq_factor={self.low_freq_factor}.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeConfig:
  """Rotary position embedding (RoFormer, arXiv:2104.09864)."""

  theta: float = 10_000.0
  scaling: Llama3Scaling | None = None

  def __post_init__(self):
    _check_positive(self, "theta")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionConfig:
  """Grouped-query attention (arXiv:2305.13245): N query heads share K heads."""

  num_heads: int
  num_kv_heads: int
  head_dim: int
  rope: RopeConfig = RopeConfig()

  def __post_init__(self):
    _check_positive(self, "num_heads", "num_kv_heads", "head_dim")
    _check(
      self.num_heads % self.num_kv_heads == 0,
      f"AttentionConfig.num_heads={self.num_heads} must be a multiple of "
      f"num_kv_heads={self.num_kv_heads}: every group of query heads shares "
      "one key/value head.",
    )
    _check(
      self.head_dim % 2 == 0,
      f"AttentionConfig.head_dim={self.head_dim} must be even: RoPE rotates "
      "pairs of features.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MlpConfig:
  """Gated MLP (arXiv:2002.05202): down(silu(gate(x)) * up(x)), width F."""

  dim: int

  def __post_init__(self):
    _check_positive(self, "dim")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
  """One decoder block: a mixer over positions, then a feed-forward."""

  mixer: AttentionConfig
  feed_forward: MlpConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerGroup:
  """`pattern`, repeated `repeats` times and scanned over."""

  pattern: tuple[BlockConfig, ...]
  repeats: int

  def __post_init__(self):
    _check_positive(self, "repeats")
    _check(len(self.pattern) > 0, "LayerGroup.pattern must name a block.")

  @property
  def num_layers(self) -> int:
    return len(self.pattern) * self.repeats


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """A decoder-only transformer.

  Attributes:
    name: What people call it; not used by any code path.
    vocab_size: V, rows of the embedding.
    dim: D, width of the residual stream.
    groups: The layers, first to last.
    tie_embeddings: The output head is the transposed embedding.
    norm_eps: Epsilon of every RMSNorm.
    max_seq_len: Longest sequence the positions are meant for.
    init_std: Standard deviation of the initial weights; projections back into
      the residual stream are divided by sqrt(2 L) (GPT-2).
  """

  name: str
  vocab_size: int
  dim: int
  groups: tuple[LayerGroup, ...]
  tie_embeddings: bool
  norm_eps: float = 1e-5
  max_seq_len: int = 8192
  init_std: float = 0.02

  def __post_init__(self):
    _check_positive(
      self, "vocab_size", "dim", "norm_eps", "max_seq_len", "init_std"
    )
    _check(len(self.groups) > 0, "ModelConfig.groups must name a layer group.")

  @property
  def num_layers(self) -> int:
    return sum(group.num_layers for group in self.groups)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
  """How a model is computed; no choice here changes the function computed.

  Attributes:
    compute_dtype: Dtype of activations and of weights as they enter a matmul.
      Norms, softmax and loss are float32 whatever this is.
    param_dtype: Dtype in which parameters are stored and updated.
    remat: What the backward pass computes again. `none`: no matmul (norms,
      activation functions and attention scores are, being cheaper to redo
      than to store); `full`: every block from its input.
    attention: Which implementation; `auto` is `blockwise`
      (kernels/attention.py).
  """

  compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
  param_dtype: Literal["float32", "bfloat16"] = "float32"
  remat: Literal["none", "full"] = "none"
  attention: Literal["auto", "reference", "blockwise", "dot_product"] = "auto"


def dense(
  *,
  name: str,
  vocab_size: int,
  dim: int,
  num_layers: int,
  num_heads: int,
  num_kv_heads: int,
  head_dim: int,
  mlp_dim: int,
  tie_embeddings: bool,
  rope: RopeConfig = RopeConfig(),
  norm_eps: float = 1e-5,
  max_seq_len: int = 8192,
  init_std: float = 0.02,
) -> ModelConfig:
  """A dense model of equal blocks: what Llama and Kanana-1.5 are."""
  block = BlockConfig(
    mixer=AttentionConfig(
      num_heads=num_heads,
      num_kv_heads=num_kv_heads,
      head_dim=head_dim,
      rope=rope,
    ),
    feed_forward=MlpConfig(dim=mlp_dim),
  )
  return ModelConfig(
    name=name,
    vocab_size=vocab_size,
    dim=dim,
    groups=(LayerGroup(pattern=(block,), repeats=num_layers),),
    tie_embeddings=tie_embeddings,
    norm_eps=norm_eps,
    max_seq_len=max_seq_len,
    init_std=init_std,
  )
