"""Qwen3-Next: gated delta rule with attention in between, and experts."""

from typing import Any

from model import config as model_config
from model.hf import config_json
from model.hf.families import family


def _read(reader: config_json.Reader) -> model_config.ModelConfig:
  num_layers = reader.get("num_hidden_layers")
  max_seq_len = reader.get("max_position_embeddings")
  bias = reader.get("attention_bias", default=False)
  reader.only("use_sliding_window", False)
  interval = reader.get("full_attention_interval", default=4)
  kinds = reader.get(
    "layer_types",
    default=[
      "linear_attention" if (i + 1) % interval else "full_attention"
      for i in range(num_layers)
    ],
  )
  mixers: dict[str, model_config.Mixer] = {
    "full_attention": model_config.AttentionConfig(
      **family.read_heads(reader),
      # Its class rotates a quarter of a head unless the file says otherwise.
      rope=reader.rope(
        max_seq_len=max_seq_len, default_fraction=0.25, partial=True
      ),
      qk_norm="head",
      qkv_bias=bias,
      out_bias=bias,
      output_gate=True,
    ),
    "linear_attention": model_config.GatedDeltaNetConfig(
      num_key_heads=reader.get("linear_num_key_heads"),
      num_value_heads=reader.get("linear_num_value_heads"),
      key_head_dim=reader.get("linear_key_head_dim"),
      value_head_dim=reader.get("linear_value_head_dim"),
      conv_size=reader.get("linear_conv_kernel_dim", default=4),
    ),
  }
  unknown = sorted(set(kinds) - set(mixers))
  if unknown or len(kinds) != num_layers:
    raise ValueError(
      f"{reader.where}: layer_types={kinds!r} must have {num_layers} entries "
      f"out of {sorted(mixers)}."
    )
  if "linear_attention" in kinds:
    # Of the convolution, too, which has no other.
    reader.only("hidden_act", "silu", "swish")
  activation = reader.activation("hidden_act")
  step = reader.get("decoder_sparse_step", default=1)
  dense = reader.get("mlp_only_layers", default=[])
  num_experts = reader.get("num_experts", "num_local_experts")
  sparse = model_config.MoeConfig(
    num_experts=num_experts,
    experts_per_token=reader.get("num_experts_per_tok"),
    dim=reader.get("moe_intermediate_size"),
    activation=activation,
    shared_dim=reader.get("shared_expert_intermediate_size"),
    shared_gate=True,
    router=model_config.RouterConfig(
      normalize=reader.get("norm_topk_prob", default=True)
    ),
  )
  mlp = model_config.MlpConfig(
    dim=reader.get("intermediate_size", default=5120), activation=activation
  )
  blocks = [
    model_config.BlockConfig(
      mixer=mixers[kind],
      feed_forward=mlp if i in dense or (i + 1) % step else sparse,
    )
    for i, kind in enumerate(kinds)
  ]
  return family.read_model(reader, blocks=blocks, norm="rms_offset")


def _write(config: model_config.ModelConfig) -> dict[str, Any]:
  mixer = family.first(config, "mixer", model_config.AttentionConfig)
  delta = family.first(config, "mixer", model_config.GatedDeltaNetConfig)
  moe = family.first(config, "feed_forward", model_config.MoeConfig)
  dense = [
    (i, block.feed_forward.dim)
    for i, block in enumerate(config.layers)
    if isinstance(block.feed_forward, model_config.MlpConfig)
  ]
  if mixer.rope is None:
    raise ValueError(f"{config.name!r} has no RoPE.")
  return (
    family.write_model(config, "qwen3_next", "Qwen3NextForCausalLM")
    | family.write_heads(config, mixer)
    | {
      "partial_rotary_factor": mixer.rope.fraction,
      "attention_bias": mixer.qkv_bias,
      "layer_types": [
        "full_attention"
        if isinstance(block.mixer, model_config.AttentionConfig)
        else "linear_attention"
        for block in config.layers
      ],
      "linear_num_key_heads": delta.num_key_heads,
      "linear_num_value_heads": delta.num_value_heads,
      "linear_key_head_dim": delta.key_head_dim,
      "linear_value_head_dim": delta.value_head_dim,
      "linear_conv_kernel_dim": delta.conv_size,
      "num_experts": moe.num_experts,
      "num_experts_per_tok": moe.experts_per_token,
      "moe_intermediate_size": moe.dim,
      "shared_expert_intermediate_size": moe.shared_dim,
      "norm_topk_prob": moe.router.normalize,
      "mlp_only_layers": [i for i, _ in dense],
      "decoder_sparse_step": 1,
      "intermediate_size": dense[0][1] if dense else moe.dim,
      "hidden_act": config_json.write_activation(moe.activation),
    }
  )


def _delta_rules(
  prefix: str, mixer: model_config.GatedDeltaNetConfig
) -> list[family.Rule]:
  def rule(theirs: str, *ours: str, **layout: Any) -> family.Rule:
    names = tuple(f"mixer.{name}" for name in ours)
    return family.Rule(theirs=prefix + theirs, ours=names, **layout)

  heads = mixer.num_key_heads
  return [
    rule(
      "in_proj_qkvz.weight",
      "q_DKH",
      "k_DKH",
      "v_DNH",
      "gate_DNH",
      groups=heads,
    ),
    rule("in_proj_ba.weight", "beta_DN", "decay_DN", groups=heads),
    rule(
      "conv1d.weight",
      "q_conv_KHW",
      "k_conv_KHW",
      "v_conv_NHW",
      layout="depthwise",
    ),
    rule("A_log", "decay_log_N", layout="flat"),
    rule("dt_bias", "decay_bias_N", layout="flat"),
    rule("norm.weight", "out_scale_H", layout="flat"),
    rule("out_proj.weight", "o_NHD", inputs=2),
  ]


def _rules(config, block, layer) -> list[family.Rule]:
  del config
  prefix = f"model.layers.{layer}."
  rules = family.norm_rules(prefix, family.PRE_NORMS)
  if isinstance(block.mixer, model_config.AttentionConfig):
    rules += family.attention_rules(f"{prefix}self_attn.", block.mixer)
  else:
    rules += _delta_rules(f"{prefix}linear_attn.", block.mixer)
  if isinstance(block.feed_forward, model_config.MlpConfig):
    return rules + family.mlp_rules(f"{prefix}mlp.")
  return rules + family.moe_rules(
    f"{prefix}mlp.", block.feed_forward, shared="shared_expert"
  )


QWEN3_NEXT = family.Family(
  model_type="qwen3_next",
  architecture="Qwen3NextForCausalLM",
  read=_read,
  write=_write,
  top_rules=family.top_rules,
  layer_rules=_rules,
  ignored=(r"mtp\..*",),
  defaults={
    "head_dim": 256,
    "hidden_act": "silu",
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "num_experts_per_tok": 10,
    "num_key_value_heads": 2,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 512,
  },
)
