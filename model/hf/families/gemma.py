"""Gemma 2 and the text models of Gemma 3."""

from typing import Any

from model import config as model_config
from model.hf import config_json
from model.hf.families import family

_NORMS = {
  "input_layernorm": "mixer_norm",
  "post_attention_layernorm": "mixer_post_norm",
  "pre_feedforward_layernorm": "feed_forward_norm",
  "post_feedforward_layernorm": "feed_forward_post_norm",
}

# Of both classes, where a key is absent.
_DEFAULTS: dict[str, Any] = {
  "head_dim": 256,
  "num_key_value_heads": 4,
  "query_pre_attn_scalar": 256,
  "sliding_window": 4096,
}


def _read(
  reader: config_json.Reader,
  *,
  windows: list[int | None],
  ropes: list[model_config.RopeConfig],
  qk_norm: bool,
  softcap: float | None,
) -> model_config.ModelConfig:
  bias = reader.get("attention_bias", default=False)
  reader.only("use_bidirectional_attention", False)
  reader.get("hidden_act", default=None)
  activation = "gelu_tanh"
  if reader.get("hidden_activation", default=None) is not None:
    activation = reader.activation("hidden_activation")
  blocks = [
    model_config.BlockConfig(
      mixer=model_config.AttentionConfig(
        **family.read_heads(reader),
        rope=rope,
        qkv_bias=bias,
        out_bias=bias,
        window=window,
        softcap=softcap,
        scale=reader.get("query_pre_attn_scalar") ** -0.5,
        qk_norm="head" if qk_norm else "none",
      ),
      feed_forward=model_config.MlpConfig(
        dim=reader.get("intermediate_size"), activation=activation
      ),
      norms="sandwich",
    )
    for window, rope in zip(windows, ropes, strict=True)
  ]
  return family.read_model(
    reader,
    blocks=blocks,
    tie_default=True,
    norm="rms_offset",
    embed_scale=reader.get("hidden_size") ** 0.5,
    logit_softcap=reader.get("final_logit_softcapping", default=None),
  )


def _read_gemma2(reader: config_json.Reader) -> model_config.ModelConfig:
  num_layers = reader.get("num_hidden_layers")
  # Older files say it twice.
  window = reader.get("sliding_window", "sliding_window_size")
  default = [window if i % 2 == 0 else None for i in range(num_layers)]
  rope = reader.rope(max_seq_len=reader.get("max_position_embeddings"))
  return _read(
    reader,
    windows=reader.windows(num_layers, default),
    ropes=[rope] * num_layers,
    qk_norm=False,
    softcap=reader.get("attn_logit_softcapping", default=None),
  )


def _read_gemma3(reader: config_json.Reader) -> model_config.ModelConfig:
  num_layers = reader.get("num_hidden_layers")
  window = reader.get("sliding_window")
  period = reader.get(
    "sliding_window_pattern", "_sliding_window_pattern", default=6
  )
  default = [window if (i + 1) % period else None for i in range(num_layers)]
  windows = reader.windows(num_layers, default)
  max_seq_len = reader.get("max_position_embeddings")
  nested = reader.get("rope_parameters", default=None)
  local_theta = reader.get("rope_local_base_freq", default=10_000.0)
  kinds = {"full_attention", "sliding_attention"}
  if nested:
    unknown = sorted(set(nested) - kinds)
    if unknown:
      raise ValueError(
        f"{reader.where}: rope_parameters has {unknown}; only {sorted(kinds)}, "
        "each with keys of its own, are supported for this architecture."
      )
    whole, local = (
      config_json.read_rope(
        nested.get(kind) or {},
        where=reader.where,
        theta=theta,
        max_seq_len=max_seq_len,
      )
      for kind, theta in (
        ("full_attention", 1e6),
        ("sliding_attention", local_theta),
      )
    )
  else:
    whole = reader.rope(max_seq_len=max_seq_len, default_theta=1e6)
    local = model_config.RopeConfig(theta=float(local_theta))
  # It has the key, but Transformers does not bound scores there.
  reader.get("attn_logit_softcapping", default=None)
  return _read(
    reader,
    windows=windows,
    ropes=[whole if w is None else local for w in windows],
    qk_norm=True,
    softcap=None,
  )


def _write(config: model_config.ModelConfig) -> dict[str, Any]:
  mixers = [
    block.mixer
    for block in config.layers
    if isinstance(block.mixer, model_config.AttentionConfig)
  ]
  first = family.first(config, "mixer", model_config.AttentionConfig)
  whole = next((m for m in mixers if m.window is None), first)
  mlp = family.first(config, "feed_forward", model_config.MlpConfig)
  windows = [m.window for m in mixers if m.window is not None]
  scale = whole.scale or whole.head_dim**-0.5
  scalar = scale**-2
  return (
    family.write_model(config, "gemma2", "Gemma2ForCausalLM")
    | family.write_heads(config, whole)
    | {
      "attention_bias": whole.qkv_bias,
      "intermediate_size": mlp.dim,
      "hidden_activation": config_json.write_activation(mlp.activation),
      "query_pre_attn_scalar": (
        round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar
      ),
      "attn_logit_softcapping": whole.softcap,
      "final_logit_softcapping": config.logit_softcap,
      "sliding_window": windows[0] if windows else config.max_seq_len,
      "layer_types": [
        "full_attention" if m.window is None else "sliding_attention"
        for m in mixers
      ],
    }
  )


def _write_gemma3(config: model_config.ModelConfig) -> dict[str, Any]:
  keys = _write(config) | {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
  }
  for block in config.layers:
    rope = getattr(block.mixer, "rope", None)
    if getattr(block.mixer, "window", None) and rope is not None:
      keys["rope_local_base_freq"] = rope.theta
  return keys


def _rules(config, block, layer) -> list[family.Rule]:
  del config
  return family.layer_rules(block, layer, norms=_NORMS)


GEMMA2 = family.Family(
  model_type="gemma2",
  architecture="Gemma2ForCausalLM",
  read=_read_gemma2,
  write=_write,
  top_rules=family.top_rules,
  layer_rules=_rules,
  defaults=_DEFAULTS
  | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
)
GEMMA3 = family.Family(
  model_type="gemma3_text",
  architecture="Gemma3ForCausalLM",
  read=_read_gemma3,
  write=_write_gemma3,
  top_rules=family.top_rules,
  layer_rules=_rules,
  defaults=_DEFAULTS,
)
