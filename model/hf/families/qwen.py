"""Qwen2 and 2.5, Qwen3, Qwen3-MoE."""

from typing import Any, Literal

from model import config as model_config
from model.hf import config_json
from model.hf.families import family


def _windows(
  reader: config_json.Reader, num_layers: int, *, has_experts: bool
) -> list[int | None]:
  """Upper layers slide, if any do; with experts, all of them.

  Transformers looks at neither `max_window_layers` nor `layer_types` there.
  """
  window = reader.get("sliding_window", default=None)
  first_sliding = reader.get("max_window_layers", default=28)
  # Said again by newer files; without `use_sliding_window` it says nothing.
  reader.get("layer_types", default=None)
  if not reader.get("use_sliding_window", default=False):
    return [None] * num_layers
  if has_experts:
    return [window] * num_layers
  default = [window if i >= first_sliding else None for i in range(num_layers)]
  return reader.windows(num_layers, default)


def _read(
  reader: config_json.Reader,
  *,
  qkv_bias: bool,
  out_bias: bool,
  qk_norm: Literal["none", "head"],
  has_experts: bool = False,
) -> model_config.ModelConfig:
  num_layers = reader.get("num_hidden_layers")
  reader.only("use_mrope", False)
  rope = reader.rope(max_seq_len=reader.get("max_position_embeddings"))
  windows = _windows(reader, num_layers, has_experts=has_experts)
  moe_layers = [False] * num_layers
  if has_experts:
    moe_layers = _moe_layers(reader, num_layers)
  blocks = []
  for window, is_moe in zip(windows, moe_layers, strict=True):
    mixer = model_config.AttentionConfig(
      **family.read_heads(reader),
      rope=rope,
      qkv_bias=qkv_bias,
      out_bias=out_bias,
      qk_norm=qk_norm,
      window=window,
    )
    feed_forward: model_config.FeedForward
    if is_moe:
      feed_forward = model_config.MoeConfig(
        num_experts=reader.get("num_experts", "num_local_experts"),
        experts_per_token=reader.get("num_experts_per_tok"),
        dim=reader.get("moe_intermediate_size"),
        activation=reader.activation("hidden_act"),
        router=model_config.RouterConfig(
          normalize=reader.get("norm_topk_prob", default=False)
        ),
      )
    else:
      feed_forward = model_config.MlpConfig(
        dim=reader.get("intermediate_size"),
        activation=reader.activation("hidden_act"),
      )
    blocks.append(
      model_config.BlockConfig(mixer=mixer, feed_forward=feed_forward)
    )
  return family.read_model(reader, blocks=blocks)


def _moe_layers(reader: config_json.Reader, num_layers: int) -> list[bool]:
  """Which layers have experts."""
  reader.get("intermediate_size", default=None)
  step = reader.get("decoder_sparse_step", default=1)
  dense = reader.get("mlp_only_layers", default=[])
  return [i not in dense and (i + 1) % step == 0 for i in range(num_layers)]


def _read_qwen2(reader: config_json.Reader) -> model_config.ModelConfig:
  return _read(reader, qkv_bias=True, out_bias=False, qk_norm="none")


def _read_qwen3(reader: config_json.Reader) -> model_config.ModelConfig:
  bias = reader.get("attention_bias", default=False)
  return _read(reader, qkv_bias=bias, out_bias=bias, qk_norm="head")


def _read_qwen3_moe(reader: config_json.Reader) -> model_config.ModelConfig:
  bias = reader.get("attention_bias", default=False)
  return _read(
    reader, qkv_bias=bias, out_bias=bias, qk_norm="head", has_experts=True
  )


def _write_qwen2(config: model_config.ModelConfig) -> dict[str, Any]:
  mixer = family.first(config, "mixer", model_config.AttentionConfig)
  mlp = family.first(config, "feed_forward", model_config.MlpConfig)
  return (
    family.write_model(config, "qwen2", "Qwen2ForCausalLM")
    | family.write_heads(config, mixer)
    | _write_windows(config)
    | {
      "intermediate_size": mlp.dim,
      "hidden_act": config_json.write_activation(mlp.activation),
    }
  )


def _write_windows(config: model_config.ModelConfig) -> dict[str, Any]:
  windows = [getattr(b.mixer, "window", None) for b in config.layers]
  slides = [w for w in windows if w is not None]
  keys: dict[str, Any] = {
    "use_sliding_window": bool(slides),
    "sliding_window": slides[0] if slides else None,
    "max_window_layers": windows.index(slides[0]) if slides else len(windows),
  }
  return keys


def _write_qwen3(config: model_config.ModelConfig) -> dict[str, Any]:
  mixer = family.first(config, "mixer", model_config.AttentionConfig)
  return _write_qwen2(config) | {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": mixer.qkv_bias,
  }


def _write_qwen3_moe(config: model_config.ModelConfig) -> dict[str, Any]:
  mixer = family.first(config, "mixer", model_config.AttentionConfig)
  moe = family.first(config, "feed_forward", model_config.MoeConfig)
  dense = [
    (i, block.feed_forward)
    for i, block in enumerate(config.layers)
    if isinstance(block.feed_forward, model_config.MlpConfig)
  ]
  return (
    family.write_model(config, "qwen3_moe", "Qwen3MoeForCausalLM")
    | family.write_heads(config, mixer)
    | _write_windows(config)
    | {
      "attention_bias": mixer.qkv_bias,
      "intermediate_size": dense[0][1].dim if dense else moe.dim,
      "moe_intermediate_size": moe.dim,
      "num_experts": moe.num_experts,
      "num_experts_per_tok": moe.experts_per_token,
      "norm_topk_prob": moe.router.normalize,
      "mlp_only_layers": [i for i, _ in dense],
      "decoder_sparse_step": 1,
      "hidden_act": config_json.write_activation(moe.activation),
    }
  )


def _rules(config, block, layer) -> list[family.Rule]:
  del config
  return family.layer_rules(block, layer, norms=family.PRE_NORMS)


QWEN2 = family.Family(
  model_type="qwen2",
  architecture="Qwen2ForCausalLM",
  read=_read_qwen2,
  write=_write_qwen2,
  top_rules=family.top_rules,
  layer_rules=_rules,
  defaults={"hidden_act": "silu", "sliding_window": 4096},
)
QWEN3 = family.Family(
  model_type="qwen3",
  architecture="Qwen3ForCausalLM",
  read=_read_qwen3,
  write=_write_qwen3,
  top_rules=family.top_rules,
  layer_rules=_rules,
  defaults={
    "head_dim": 128,
    "hidden_act": "silu",
    "sliding_window": 4096,
  },
)
QWEN3_MOE = family.Family(
  model_type="qwen3_moe",
  architecture="Qwen3MoeForCausalLM",
  read=_read_qwen3_moe,
  write=_write_qwen3_moe,
  top_rules=family.top_rules,
  layer_rules=_rules,
  defaults={
    "hidden_act": "silu",
    "num_experts_per_tok": 8,
    "num_key_value_heads": 4,
    "router_aux_loss_coef": 0.001,
    "sliding_window": 4096,
  },
)
