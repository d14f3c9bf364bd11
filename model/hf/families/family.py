"""What a family of models is to the bridge, and what most of them share.

A family reads a config.json into a ModelConfig, writes one back, and says which
of its tensors are which parameters. Llama's names, here, are the base of nearly
all: a family passes what differs.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from model import config as model_config
from model.hf import config_json
from model.hf import name_map

Rule = name_map.Rule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
  """One architecture of Transformers.

  Attributes:
    model_type: Its name in config.json.
    architecture: Its class.
    read: config.json as a ModelConfig.
    write: The other way; the result is read again and compared, so it need not
      notice what it cannot say.
    top_rules: Names of what is outside the layers.
    layer_rules: Names of one layer, with its index filled in: (config, block,
      layer) -> rules.
    ignored: Patterns of the names of tensors that are no part of the model.
    defaults: What its class assumes where a key is absent, if that is not what
      `read` does; null is another thing.
  """

  model_type: str
  architecture: str
  read: Callable[[config_json.Reader], model_config.ModelConfig]
  write: Callable[[model_config.ModelConfig], dict[str, Any]]
  top_rules: Callable[[model_config.ModelConfig], list[Rule]]
  layer_rules: Callable[
    [model_config.ModelConfig, model_config.BlockConfig, int], list[Rule]
  ]
  ignored: tuple[str, ...] = ()
  defaults: dict[str, Any] = dataclasses.field(default_factory=dict)


# Where Llama's two norms of a layer stand.
PRE_NORMS = {
  "input_layernorm": "mixer_norm",
  "post_attention_layernorm": "feed_forward_norm",
}


def read_model(
  reader: config_json.Reader,
  *,
  blocks: list[model_config.BlockConfig],
  tie_default: bool = False,
  eps_default: float = 1e-6,
  **settings: Any,
) -> model_config.ModelConfig:
  """A model of these blocks, with the keys that all families have."""
  return model_config.ModelConfig(
    name=reader.get("model_type"),
    vocab_size=reader.get("vocab_size"),
    dim=reader.get("hidden_size"),
    groups=model_config.group_layers(blocks),
    tie_embeddings=reader.get("tie_word_embeddings", default=tie_default),
    norm_eps=reader.get("rms_norm_eps", default=eps_default),
    max_seq_len=reader.get("max_position_embeddings"),
    init_std=reader.get("initializer_range", default=0.02),
    **settings,
  )


def read_heads(reader: config_json.Reader) -> dict[str, Any]:
  """Numbers and size of attention heads, as AttentionConfig names them."""
  num_heads = reader.get("num_attention_heads")
  return {
    "num_heads": num_heads,
    "num_kv_heads": reader.get("num_key_value_heads", default=num_heads),
    "head_dim": reader.get(
      "head_dim", default=reader.get("hidden_size") // num_heads
    ),
  }


def write_model(
  config: model_config.ModelConfig, family_type: str, architecture: str
) -> dict[str, Any]:
  """The keys that `read_model` reads."""
  return {
    "architectures": [architecture],
    "model_type": family_type,
    "vocab_size": config.vocab_size,
    "hidden_size": config.dim,
    "num_hidden_layers": config.num_layers,
    "tie_word_embeddings": config.tie_embeddings,
    "rms_norm_eps": config.norm_eps,
    "max_position_embeddings": config.max_seq_len,
    "initializer_range": config.init_std,
    "use_cache": True,
  }


def write_heads(
  config: model_config.ModelConfig, mixer: model_config.AttentionConfig
) -> dict[str, Any]:
  """The keys that `read_heads` and `Reader.rope` read.

  Raises:
    ValueError: There is no RoPE.
  """
  if mixer.rope is None:
    raise ValueError(f"{config.name!r} has no RoPE.")
  return {
    "num_attention_heads": mixer.num_heads,
    "num_key_value_heads": mixer.num_kv_heads,
    "head_dim": mixer.head_dim,
  } | config_json.write_rope(mixer.rope, max_seq_len=config.max_seq_len)


def first[T](config: model_config.ModelConfig, part: str, kind: type[T]) -> T:
  """The first mixer or feed-forward of a kind.

  Raises:
    ValueError: No layer has one: the model is of another family.
  """
  for block in config.layers:
    value = getattr(block, part)
    if isinstance(value, kind):
      return value
  raise ValueError(f"{config.name!r} has no {kind.__name__}.")


def top_rules(config: model_config.ModelConfig) -> list[Rule]:
  """Embedding, final norm and head."""
  rules = [
    Rule(theirs="model.embed_tokens.weight", ours=("embed_VD",), layout="same"),
    Rule(
      theirs="model.norm.weight", ours=("final_norm.scale_D",), layout="flat"
    ),
  ]
  if not config.tie_embeddings:
    rules.append(Rule(theirs="lm_head.weight", ours=("head_DV",)))
  return rules


def norm_rules(prefix: str, norms: dict[str, str]) -> list[Rule]:
  """RMSNorms of a layer: their name -> ours."""
  return [
    Rule(
      theirs=f"{prefix}{theirs}.weight",
      ours=(f"{ours}.scale_D",),
      layout="flat",
    )
    for theirs, ours in norms.items()
  ]


def attention_rules(
  prefix: str, mixer: model_config.AttentionConfig
) -> list[Rule]:
  """Projections, biases and norms of attention, by what `mixer` has."""

  def flat(theirs: str, *ours: str) -> Rule:
    return Rule(
      theirs=prefix + theirs,
      ours=tuple(f"mixer.{name}" for name in ours),
      layout="flat",
    )

  rules = [
    Rule(theirs=f"{prefix}k_proj.weight", ours=("mixer.k_DKH",)),
    Rule(theirs=f"{prefix}v_proj.weight", ours=("mixer.v_DKH",)),
    Rule(theirs=f"{prefix}o_proj.weight", ours=("mixer.o_NHD",), inputs=2),
  ]
  query = Rule(theirs=f"{prefix}q_proj.weight", ours=("mixer.q_DNH",))
  if mixer.output_gate:
    query = dataclasses.replace(
      query,
      ours=("mixer.q_DNH", "mixer.gate_DNH"),
      groups=mixer.num_heads,
    )
  rules.append(query)
  if mixer.qkv_bias:
    query_bias = flat("q_proj.bias", "q_bias_NH")
    if mixer.output_gate:
      query_bias = dataclasses.replace(
        query_bias,
        ours=("mixer.q_bias_NH", "mixer.gate_bias_NH"),
        groups=mixer.num_heads,
      )
    rules += [
      query_bias,
      flat("k_proj.bias", "k_bias_KH"),
      flat("v_proj.bias", "v_bias_KH"),
    ]
  if mixer.out_bias:
    rules.append(flat("o_proj.bias", "o_bias_D"))
  if mixer.sinks:
    rules.append(flat("sinks", "sinks_N"))
  if mixer.qk_norm == "head":
    rules += [
      flat("q_norm.weight", "q_scale_H"),
      flat("k_norm.weight", "k_scale_H"),
    ]
  elif mixer.qk_norm == "projection":
    rules += [
      flat("q_norm.weight", "q_scale_NH"),
      flat("k_norm.weight", "k_scale_KH"),
    ]
  return rules


def mlp_rules(
  prefix: str,
  *,
  ours: str = "feed_forward.",
  bias: bool = False,
  experts: bool = False,
  names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> list[Rule]:
  """A gated MLP, or, with `{expert}` in `prefix`, each of many."""
  dims = ("EDF", "EDF", "EFD") if experts else ("DF", "DF", "FD")
  rules = [
    Rule(theirs=f"{prefix}{theirs}.weight", ours=(f"{ours}{part}_{letters}",))
    for theirs, part, letters in zip(
      names, ("gate", "up", "down"), dims, strict=True
    )
  ]
  if bias:
    rules += [
      Rule(
        theirs=f"{prefix}{theirs}.bias",
        ours=(f"{ours}{part}_bias_{letter}",),
        layout="flat",
      )
      for theirs, part, letter in zip(
        names, ("gate", "up", "down"), "FFD", strict=True
      )
    ]
  return rules


def moe_rules(
  prefix: str,
  moe: model_config.MoeConfig,
  *,
  shared: str = "shared_experts",
  bias: str = "gate.e_score_correction_bias",
) -> list[Rule]:
  """Router, experts apart, and the shared expert, in DeepSeek's names."""
  rules = [
    Rule(theirs=f"{prefix}gate.weight", ours=("feed_forward.router_DE",)),
    *mlp_rules(f"{prefix}experts.{{expert}}.", experts=True),
  ]
  if moe.router.selection_bias:
    rules.append(
      Rule(
        theirs=prefix + bias,
        ours=("feed_forward.selection_bias_E",),
        layout="same",
      )
    )
  if moe.shared_dim:
    rules += mlp_rules(f"{prefix}{shared}.", ours="feed_forward.shared.")
  if moe.shared_gate:
    rules.append(
      Rule(
        theirs=f"{prefix}{shared}_gate.weight",
        ours=("feed_forward.shared_gate_D",),
      )
    )
  return rules


def layer_rules(
  block: model_config.BlockConfig,
  layer: int,
  *,
  norms: dict[str, str],
) -> list[Rule]:
  """A layer in Llama's names: attention and an MLP or DeepSeek-like experts."""
  prefix = f"model.layers.{layer}."
  assert isinstance(block.mixer, model_config.AttentionConfig)
  rules = [
    *norm_rules(prefix, norms),
    *attention_rules(f"{prefix}self_attn.", block.mixer),
  ]
  if isinstance(block.feed_forward, model_config.MoeConfig):
    return rules + moe_rules(f"{prefix}mlp.", block.feed_forward)
  return rules + mlp_rules(f"{prefix}mlp.", bias=block.feed_forward.bias)
