"""GPT-OSS: attention sinks, biases everywhere, all experts in one tensor."""

from typing import Any

from model import config as model_config
from model.hf import config_json
from model.hf.families import family

# What its class assumes of a file without RoPE's keys.
_ROPE: dict[str, Any] = {
  "rope_type": "yarn",
  "factor": 32.0,
  "original_max_position_embeddings": 4096,
  "truncate": False,
}


def _read(reader: config_json.Reader) -> model_config.ModelConfig:
  reader.only("hidden_act", "silu")
  reader.only("swiglu_alpha", 1.702)
  reader.only("swiglu_limit", 7.0)
  # Older files say it twice.
  reader.get("experts_per_token", default=None)
  num_layers = reader.get("num_hidden_layers")
  max_seq_len = reader.get("max_position_embeddings")
  window = reader.get("sliding_window")
  default = [window if i % 2 == 0 else None for i in range(num_layers)]
  if reader.has("rope_parameters") or reader.has("rope_scaling"):
    rope = reader.rope(max_seq_len=max_seq_len, default_theta=150_000.0)
  else:
    rope = config_json.read_rope(
      _ROPE,
      where=reader.where,
      theta=reader.get("rope_theta", default=150_000.0),
      max_seq_len=max_seq_len,
    )
  bias = reader.get("attention_bias", default=True)
  blocks = [
    model_config.BlockConfig(
      mixer=model_config.AttentionConfig(
        **family.read_heads(reader),
        rope=rope,
        qkv_bias=bias,
        out_bias=bias,
        sinks=True,
        window=layer_window,
      ),
      feed_forward=model_config.MoeConfig(
        num_experts=reader.get("num_local_experts"),
        experts_per_token=reader.get("num_experts_per_tok"),
        dim=reader.get("intermediate_size"),
        activation="clamped_swiglu",
        bias=True,
        router=model_config.RouterConfig(
          score="softmax_after_topk", normalize=False, bias=True
        ),
      ),
    )
    for layer_window in reader.windows(num_layers, default)
  ]
  return family.read_model(reader, blocks=blocks, eps_default=1e-5)


def _write(config: model_config.ModelConfig) -> dict[str, Any]:
  mixer = family.first(config, "mixer", model_config.AttentionConfig)
  moe = family.first(config, "feed_forward", model_config.MoeConfig)
  windows = [getattr(block.mixer, "window", None) for block in config.layers]
  return (
    family.write_model(config, "gpt_oss", "GptOssForCausalLM")
    | family.write_heads(config, mixer)
    | {
      "attention_bias": mixer.qkv_bias,
      "sliding_window": next((w for w in windows if w is not None), 128),
      "layer_types": [
        "full_attention" if w is None else "sliding_attention" for w in windows
      ],
      "num_local_experts": moe.num_experts,
      "num_experts_per_tok": moe.experts_per_token,
      "experts_per_token": moe.experts_per_token,
      "intermediate_size": moe.dim,
      "hidden_act": "silu",
      "swiglu_limit": 7.0,
    }
  )


def _rules(config, block, layer) -> list[family.Rule]:
  del config
  prefix = f"model.layers.{layer}."
  router, experts = f"{prefix}mlp.router.", f"{prefix}mlp.experts."
  width = block.feed_forward.dim
  return [
    *family.norm_rules(prefix, family.PRE_NORMS),
    *family.attention_rules(f"{prefix}self_attn.", block.mixer),
    family.Rule(theirs=f"{router}weight", ours=("feed_forward.router_DE",)),
    family.Rule(
      theirs=f"{router}bias",
      ours=("feed_forward.router_bias_E",),
      layout="same",
    ),
    # Gate and up alternate.
    family.Rule(
      theirs=f"{experts}gate_up_proj",
      ours=("feed_forward.gate_EDF", "feed_forward.up_EDF"),
      layout="in_out",
      groups=width,
    ),
    family.Rule(
      theirs=f"{experts}gate_up_proj_bias",
      ours=("feed_forward.gate_bias_EF", "feed_forward.up_bias_EF"),
      layout="flat",
      groups=width,
    ),
    family.Rule(
      theirs=f"{experts}down_proj",
      ours=("feed_forward.down_EFD",),
      layout="in_out",
    ),
    family.Rule(
      theirs=f"{experts}down_proj_bias",
      ours=("feed_forward.down_bias_ED",),
      layout="same",
    ),
  ]


GPT_OSS = family.Family(
  model_type="gpt_oss",
  architecture="GptOssForCausalLM",
  read=_read,
  write=_write,
  top_rules=family.top_rules,
  layer_rules=_rules,
  defaults={
    "head_dim": 64,
    "num_experts_per_tok": 4,
    "num_key_value_heads": 8,
    "router_aux_loss_coef": 0.001,
    "sliding_window": 128,
  },
)
