"""OLMo 2: norms only after the sublayers, and over whole projections."""

from typing import Any

from model import config as model_config
from model.hf import config_json
from model.hf.families import family

_NORMS = {
  "post_attention_layernorm": "mixer_post_norm",
  "post_feedforward_layernorm": "feed_forward_post_norm",
}


def _read(reader: config_json.Reader) -> model_config.ModelConfig:
  reader.only("pretraining_tp", 1)
  max_seq_len = reader.get("max_position_embeddings")
  bias = reader.get("attention_bias", default=False)
  block = model_config.BlockConfig(
    mixer=model_config.AttentionConfig(
      **family.read_heads(reader),
      rope=reader.rope(max_seq_len=max_seq_len),
      qk_norm="projection",
      qkv_bias=bias,
      out_bias=bias,
    ),
    feed_forward=model_config.MlpConfig(
      dim=reader.get("intermediate_size"),
      activation=reader.activation("hidden_act"),
    ),
    norms="post",
  )
  blocks = [block] * reader.get("num_hidden_layers")
  return family.read_model(reader, blocks=blocks, eps_default=1e-5)


def _write(config: model_config.ModelConfig) -> dict[str, Any]:
  mixer = family.first(config, "mixer", model_config.AttentionConfig)
  mlp = family.first(config, "feed_forward", model_config.MlpConfig)
  return (
    family.write_model(config, "olmo2", "Olmo2ForCausalLM")
    | family.write_heads(config, mixer)
    | {
      "attention_bias": mixer.qkv_bias,
      "intermediate_size": mlp.dim,
      "hidden_act": config_json.write_activation(mlp.activation),
    }
  )


def _rules(config, block, layer) -> list[family.Rule]:
  del config
  return family.layer_rules(block, layer, norms=_NORMS)


OLMO2 = family.Family(
  model_type="olmo2",
  architecture="Olmo2ForCausalLM",
  read=_read,
  write=_write,
  top_rules=family.top_rules,
  layer_rules=_rules,
  defaults={"hidden_act": "silu"},
)
