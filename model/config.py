"""What a model is (`ModelConfig`) and how it is computed (`ExecutionConfig`).

`ModelConfig` is the model's identity: it is stored in every checkpoint and two
models with equal configs have parameters of equal names and shapes and compute
the same function. `ExecutionConfig` may differ from run to run: precision,
rematerialisation, which implementation of a kernel.

Long, for it is the one list of all that a model can be.

A block's mixer and feed-forward, and RoPE's scaling, are unions of dataclasses:
a new kind is a new dataclass here, a module that computes it, and one branch in
transformer.py. `KIND` names a dataclass in files (schema.py).

Dims: D model, N query heads, K key/value heads, H head dim, F feed-forward,
E experts, L layers, V vocabulary.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import ClassVar, Literal

Activation = Literal["silu", "gelu", "gelu_tanh"]


def _check(condition: bool, message: str) -> None:
  if not condition:
    raise ValueError(message)


def _check_positive(config, *names: str) -> None:
  for name in names:
    value = getattr(config, name)
    _check(
      value > 0, f"{type(config).__name__}.{name}={value} must be positive."
    )


def _check_positive_if_set(config, *names: str) -> None:
  _check_positive(config, *(n for n in names if getattr(config, n) is not None))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearScaling:
  """Every position is divided by `factor` (arXiv:2306.15595)."""

  KIND: ClassVar[str] = "linear"
  factor: float

  def __post_init__(self):
    _check_positive(self, "factor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
  """Llama 3.1's frequency scaling of RoPE (HF `rope_type` "llama3").

  Wavelengths longer than the original context over `low_freq_factor` are
  stretched by `factor`, those shorter than it over `high_freq_factor` are kept,
  and those between are blended.
  """

  KIND: ClassVar[str] = "llama3"
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
class YarnScaling:
  """YaRN (arXiv:2309.00071): a ramp between kept and stretched frequencies.

  Attributes:
    factor: By how much the context grew.
    original_max_seq_len: The context before.
    beta_fast: Rotations over the original context from which a pair is kept.
    beta_slow: Rotations up to which a pair is stretched by `factor`.
    truncate: The ramp's ends are rounded to whole pairs.
    mscale: DeepSeek's m: if both m and m_all are given, cosine and sine are
      multiplied by (0.1 m ln(factor) + 1) / (0.1 m_all ln(factor) + 1).
    mscale_all_dim: DeepSeek's m_all; MLA multiplies its softmax scale by the
      square of the denominator.
    attention_factor: Of cosine and sine; unset: as above, or without m and
      m_all 0.1 ln(factor) + 1.
  """

  KIND: ClassVar[str] = "yarn"
  factor: float
  original_max_seq_len: int
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  truncate: bool = True
  mscale: float | None = None
  mscale_all_dim: float | None = None
  attention_factor: float | None = None

  def __post_init__(self):
    _check_positive(
      self, "factor", "original_max_seq_len", "beta_fast", "beta_slow"
    )

  @property
  def rotation_scale(self) -> float:
    """What cosine and sine are multiplied with."""
    if self.attention_factor is not None:
      return self.attention_factor
    if self.mscale and self.mscale_all_dim:
      return self._mscale(self.mscale) / self._mscale(self.mscale_all_dim)
    return self._mscale(1.0)

  @property
  def latent_softmax_scale(self) -> float:
    """MLA's additional factor of the attention scores."""
    return self._mscale(self.mscale_all_dim or 0.0) ** 2

  def _mscale(self, weight: float) -> float:
    return 0.1 * weight * math.log(self.factor) + 1 if self.factor > 1 else 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongRopeScaling:
  """LongRoPE (arXiv:2402.13753): each pair is stretched by a factor of its own.

  Attributes:
    short_factor: Divides each pair's frequency while every position of a batch
      lies within the original context.
    long_factor: The same as soon as one does not.
    original_max_seq_len: The context before.
    factor: By how much it grew.
    attention_factor: Of cosine and sine; unset: sqrt(1 + ln f / ln original).
  """

  KIND: ClassVar[str] = "longrope"
  short_factor: tuple[float, ...]
  long_factor: tuple[float, ...]
  original_max_seq_len: int
  factor: float
  attention_factor: float | None = None

  def __post_init__(self):
    _check_positive(self, "factor", "original_max_seq_len")
    _check(
      len(self.short_factor) == len(self.long_factor),
      f"LongRopeScaling.short_factor has {len(self.short_factor)} numbers, "
      f"long_factor {len(self.long_factor)}; both need one for each pair.",
    )

  @property
  def rotation_scale(self) -> float:
    """What cosine and sine are multiplied with."""
    if self.attention_factor is not None:
      return self.attention_factor
    if self.factor <= 1:
      return 1.0
    growth = math.log(self.factor) / math.log(self.original_max_seq_len)
    return math.sqrt(1 + growth)


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeConfig:
  """Rotary position embedding (RoFormer, arXiv:2104.09864).

  Attributes:
    theta: Base of the wavelengths.
    scaling: How frequencies were changed for a longer context.
    fraction: Share of the head dim that rotates, its first features.
    pairing: Which features make a pair: `halves` (i, i + H/2), as Llama's
      weights are stored, or `interleaved` (2i, 2i + 1), as DeepSeek's are.
  """

  theta: float = 10_000.0
  scaling: RopeScaling | None = None
  fraction: float = 1.0
  pairing: Literal["halves", "interleaved"] = "halves"

  def __post_init__(self):
    _check_positive(self, "theta", "fraction")
    _check(
      self.fraction <= 1,
      f"RopeConfig.fraction={self.fraction} must be at most 1.",
    )

  def num_rotated(self, head_dim: int) -> int:
    """How many of a head's features rotate.

    Raises:
      ValueError: The number is odd, or the scaling's factors do not fit it.
    """
    rotated = int(head_dim * self.fraction)
    _check(
      rotated % 2 == 0 and rotated > 0,
      f"RopeConfig.fraction={self.fraction} of head_dim={head_dim} is {rotated}"
      " features; the number must be even and above 0: they rotate in pairs.",
    )
    if isinstance(self.scaling, LongRopeScaling):
      num_factors = len(self.scaling.short_factor)
      _check(
        num_factors == rotated // 2,
        f"LongRopeScaling.short_factor has {num_factors} numbers, but "
        f"{rotated // 2} pairs of features rotate (head_dim={head_dim}).",
      )
    return rotated


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionConfig:
  """Grouped-query attention (arXiv:2305.13245): N query heads share K heads.

  Attributes:
    num_heads: N.
    num_kv_heads: K.
    head_dim: H.
    rope: Rotary positions; unset: none.
    qkv_bias: Queries, keys, values and the output gate have biases (Qwen2).
    out_bias: The output projection has one.
    qk_norm: RMSNorm of queries and keys before RoPE: of each `head` (Qwen3),
      or of the whole `projection` (OLMo 2).
    window: A token sees itself and window - 1 tokens before it; unset: all.
    softcap: Scores become softcap * tanh(score / softcap) (Gemma 2).
    sinks: A learned logit per head takes part in the softmax (GPT-OSS).
    scale: Of the scores; unset: H ** -0.5.
    output_gate: Each head's output is multiplied by the sigmoid of a projection
      of the input (Qwen3-Next).
  """

  KIND: ClassVar[str] = "attention"
  num_heads: int
  num_kv_heads: int
  head_dim: int
  rope: RopeConfig | None = RopeConfig()
  qkv_bias: bool = False
  out_bias: bool = False
  qk_norm: Literal["none", "head", "projection"] = "none"
  window: int | None = None
  softcap: float | None = None
  sinks: bool = False
  scale: float | None = None
  output_gate: bool = False

  def __post_init__(self):
    _check_positive(self, "num_heads", "num_kv_heads", "head_dim")
    _check_positive_if_set(self, "window", "softcap", "scale")
    _check(
      self.num_heads % self.num_kv_heads == 0,
      f"AttentionConfig.num_heads={self.num_heads} must be a multiple of "
      f"num_kv_heads={self.num_kv_heads}: every group of query heads shares "
      "one key/value head.",
    )
    if self.rope is not None:
      self.rope.num_rotated(self.head_dim)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MlaConfig:
  """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434).

  Keys and values of all heads are projected up from one latent vector per
  token; one rotated key is shared by all heads.

  Attributes:
    num_heads: N.
    kv_rank: Width of the latent.
    nope_head_dim: Features of a head's query and key that do not rotate.
    rope_head_dim: Those that do.
    value_head_dim: Features of a head's value.
    q_rank: Width of the queries' own latent; unset: projected directly.
    rope: Rotary positions.
    latent_norm_eps: Epsilon of the norms of both latents.
  """

  KIND: ClassVar[str] = "mla"
  num_heads: int
  kv_rank: int
  nope_head_dim: int
  rope_head_dim: int
  value_head_dim: int
  q_rank: int | None = None
  rope: RopeConfig = RopeConfig(pairing="interleaved")
  latent_norm_eps: float = 1e-6

  def __post_init__(self):
    _check_positive(
      self, "num_heads", "kv_rank", "nope_head_dim", "rope_head_dim"
    )
    _check_positive(self, "value_head_dim", "latent_norm_eps")
    _check_positive_if_set(self, "q_rank")
    self.rope.num_rotated(self.rope_head_dim)

  @property
  def scale(self) -> float:
    """Of the scores."""
    scale = (self.nope_head_dim + self.rope_head_dim) ** -0.5
    if isinstance(self.rope.scaling, YarnScaling):
      scale *= self.rope.scaling.latent_softmax_scale
    return scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class GatedDeltaNetConfig:
  """Linear attention by the gated delta rule (arXiv:2412.06464; Qwen3-Next).

  Attributes:
    num_key_heads: K; queries have as many.
    num_value_heads: N, a multiple of K.
    key_head_dim: Features of a key, rows of a head's state.
    value_head_dim: Features of a value, columns of it.
    conv_size: Tokens that the causal convolution before it sees.
  """

  KIND: ClassVar[str] = "gated_delta_net"
  num_key_heads: int
  num_value_heads: int
  key_head_dim: int
  value_head_dim: int
  conv_size: int = 4

  def __post_init__(self):
    _check_positive(self, "num_key_heads", "num_value_heads", "key_head_dim")
    _check_positive(self, "value_head_dim", "conv_size")
    _check(
      self.num_value_heads % self.num_key_heads == 0,
      f"GatedDeltaNetConfig.num_value_heads={self.num_value_heads} must be a "
      f"multiple of num_key_heads={self.num_key_heads}.",
    )


Mixer = AttentionConfig | MlaConfig | GatedDeltaNetConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class MlpConfig:
  """Gated MLP (arXiv:2002.05202): down(activation(gate(x)) * up(x)), width F.

  Attributes:
    dim: F.
    activation: Its nonlinearity; `gelu_tanh` is GELU's tanh approximation.
    gated: Without a gate: down(activation(up(x))) (GPT-2).
    bias: Every projection has a bias.
  """

  KIND: ClassVar[str] = "mlp"
  dim: int
  activation: Activation = "silu"
  gated: bool = True
  bias: bool = False

  def __post_init__(self):
    _check_positive(self, "dim")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RouterConfig:
  """Which experts a token goes to, and how much each counts.

  Attributes:
    score: What the logits become: `softmax` over all experts, `sigmoid` of
      each (DeepSeek-V3), or `softmax_after_topk`, over the chosen (GPT-OSS).
    normalize: The chosen experts' weights sum to 1 before `scale`.
    scale: Of the weights.
    num_groups: Experts lie in so many equal groups.
    groups_per_token: A token's experts are chosen from its best groups.
    group_score: A group is as good as its best expert (`max`, DeepSeek-V2), or
      as its two best together (`top2_sum`, DeepSeek-V3).
    selection_bias: A bias of the scores for choosing only. No gradient reaches
      it; the train step moves it to balance the load (arXiv:2408.15664).
    bias: The router's projection has a bias (GPT-OSS).
  """

  score: Literal["softmax", "sigmoid", "softmax_after_topk"] = "softmax"
  normalize: bool = True
  scale: float = 1.0
  num_groups: int = 1
  groups_per_token: int = 1
  group_score: Literal["max", "top2_sum"] = "max"
  selection_bias: bool = False
  bias: bool = False

  def __post_init__(self):
    _check_positive(self, "scale", "num_groups", "groups_per_token")
    _check(
      self.groups_per_token <= self.num_groups,
      f"RouterConfig.groups_per_token={self.groups_per_token} exceeds "
      f"num_groups={self.num_groups}.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoeConfig:
  """Mixture of experts: a token's feed-forward is a few of many small MLPs.

  Attributes:
    num_experts: E.
    experts_per_token: How many of them a token goes to.
    dim: F of one expert.
    router: How they are chosen.
    activation: The experts' nonlinearity; `clamped_swiglu` is GPT-OSS's
      (up + 1) * gate * sigmoid(1.702 gate), gate and up clamped at 7.
    bias: The experts' projections have biases.
    shared_dim: F of an MLP that every token goes to; 0: there is none.
    shared_gate: Its output is multiplied by the sigmoid of a projection.
    capacity_factor: An expert takes at most this times its even share of the
      tokens and drops the rest, in training only; unset: none is dropped.
  """

  KIND: ClassVar[str] = "moe"
  num_experts: int
  experts_per_token: int
  dim: int
  router: RouterConfig = RouterConfig()
  activation: Literal["silu", "gelu", "gelu_tanh", "clamped_swiglu"] = "silu"
  bias: bool = False
  shared_dim: int = 0
  shared_gate: bool = False
  capacity_factor: float | None = None

  def __post_init__(self):
    _check_positive(self, "num_experts", "experts_per_token", "dim")
    _check_positive_if_set(self, "capacity_factor")
    _check(
      self.shared_dim >= 0,
      f"MoeConfig.shared_dim={self.shared_dim} must be 0 or more.",
    )
    _check(
      self.shared_dim == 0 or self.activation != "clamped_swiglu",
      f"MoeConfig.shared_dim={self.shared_dim}: a shared expert has no "
      "clamped_swiglu; set it to 0 or choose another activation.",
    )
    _check(
      self.shared_dim > 0 or not self.shared_gate,
      "MoeConfig.shared_gate=True needs a shared expert: set shared_dim.",
    )
    groups, taken = self.router.num_groups, self.router.groups_per_token
    _check(
      self.num_experts % groups == 0,
      f"MoeConfig.num_experts={self.num_experts} must be a multiple of "
      f"router.num_groups={groups}.",
    )
    choice = self.num_experts // groups * taken
    _check(
      self.experts_per_token <= choice,
      f"MoeConfig.experts_per_token={self.experts_per_token} exceeds the "
      f"{choice} experts that a token can choose from.",
    )


FeedForward = MlpConfig | MoeConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
  """One decoder block: a mixer over positions, then a feed-forward.

  Attributes:
    mixer: How tokens see each other.
    feed_forward: What is done to each.
    norms: Where norms stand: before each of the two (`pre`), after (`post`,
      OLMo 2), or both (`sandwich`, Gemma 2).
  """

  mixer: Mixer
  feed_forward: FeedForward
  norms: Literal["pre", "post", "sandwich"] = "pre"


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


def group_layers(
  blocks: Sequence[BlockConfig], *, period: int | None = None
) -> tuple[LayerGroup, ...]:
  """The layers of a model, listed first to last, as groups to scan over.

  Args:
    blocks: One for each layer.
    period: Length of the pattern that repeats (2 where every other layer
      differs); unset: that up to 8 with which the fewest blocks are compiled. A
      pattern is looked for from the first layer on, and again after the last
      layer that fits it.
  """
  if period is None:
    options = [group_layers(blocks, period=p) for p in range(1, 9)]
    return min(options, key=lambda o: sum(len(g.pattern) for g in o))
  groups: list[LayerGroup] = []
  rest = tuple(blocks)
  while rest:
    pattern = rest[: min(period, len(rest))]
    # A run of equal layers, or one that does not repeat, is a group of its own.
    if len(set(pattern)) == 1 or rest[period : 2 * period] != pattern:
      pattern = pattern[:1]
    size = len(pattern)
    repeats = 1
    while rest[repeats * size : (repeats + 1) * size] == pattern:
      repeats += 1
    groups.append(LayerGroup(pattern=pattern, repeats=repeats))
    rest = rest[repeats * size :]
  return tuple(groups)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MtpConfig:
  """Multi-token prediction (DeepSeek-V3, arXiv:2412.19437, 2.2).

  A head for training: module d predicts, from the hidden state of a position
  and the embedding of the token d places on, the token after that one.

  Attributes:
    block: The decoder block of each module.
    num_modules: How many further tokens are predicted.
  """

  block: BlockConfig
  num_modules: int = 1

  def __post_init__(self):
    _check_positive(self, "num_modules")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """A decoder-only transformer.

  Attributes:
    name: What people call it; not used by any code path.
    vocab_size: V, rows of the embedding.
    dim: D, width of the residual stream.
    groups: The layers, first to last.
    tie_embeddings: The output head is the transposed embedding.
    norm: RMSNorm; `rms_offset` multiplies by 1 + scale (Gemma), `layer` is
      LayerNorm with a bias (GPT-2).
    norm_eps: Epsilon of every norm.
    max_seq_len: Longest sequence the positions are meant for.
    learned_positions: A table of max_seq_len vectors is added to the embedding.
    embed_scale: Of the embedding (Gemma: sqrt(D)).
    logit_softcap: Logits become softcap * tanh(logit / softcap) (Gemma 2).
    mtp: Multi-token prediction head; unset: none.
    init_std: Standard deviation of the initial weights; projections back into
      the residual stream are divided by sqrt(2 L) (GPT-2).
  """

  name: str
  vocab_size: int
  dim: int
  groups: tuple[LayerGroup, ...]
  tie_embeddings: bool
  norm: Literal["rms", "rms_offset", "layer"] = "rms"
  norm_eps: float = 1e-5
  max_seq_len: int = 8192
  learned_positions: bool = False
  embed_scale: float = 1.0
  logit_softcap: float | None = None
  mtp: MtpConfig | None = None
  init_std: float = 0.02

  def __post_init__(self):
    _check_positive(
      self, "vocab_size", "dim", "norm_eps", "max_seq_len", "init_std"
    )
    _check_positive(self, "embed_scale")
    _check_positive_if_set(self, "logit_softcap")
    _check(len(self.groups) > 0, "ModelConfig.groups must name a layer group.")

  @property
  def num_layers(self) -> int:
    return sum(group.num_layers for group in self.groups)

  @property
  def layers(self) -> tuple[BlockConfig, ...]:
    """The block of each layer, first to last."""
    return tuple(
      block
      for group in self.groups
      for _ in range(group.repeats)
      for block in group.pattern
    )


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
    attention: Which implementation; `auto` chooses by platform
      (kernels/attention.py).
    experts: Which grouped matmul; likewise (kernels/grouped_mlp.py).
    expert_exchange: How tokens reach experts on other devices: all are gathered
      there (`gather`), or each is sent (`all_to_all`); likewise (moe.py).
  """

  compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
  param_dtype: Literal["float32", "bfloat16"] = "float32"
  remat: Literal["none", "full"] = "none"
  attention: Literal[
    "auto", "reference", "blockwise", "dot_product", "splash"
  ] = "auto"
  experts: Literal["auto", "reference", "blocks", "ragged"] = "auto"
  expert_exchange: Literal["auto", "gather", "all_to_all"] = "auto"


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
