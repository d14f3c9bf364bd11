"""Llama 2 and 3, Kanana-1.5, SmolLM2; and Mistral, which adds a window."""

from typing import Any

from model import config as model_config
from model.hf import config_json
from model.hf.families import family


def _read(reader: config_json.Reader) -> model_config.ModelConfig:
  reader.only("pretraining_tp", 1, 0)
  reader.only("rope_interleaved", False)
  max_seq_len = reader.get("max_position_embeddings")
  bias = reader.get("attention_bias", default=False)
  block = model_config.BlockConfig(
    mixer=model_config.AttentionConfig(
      **family.read_heads(reader),
      rope=reader.rope(max_seq_len=max_seq_len),
      qkv_bias=bias,
      out_bias=bias,
    ),
    feed_forward=model_config.MlpConfig(
      dim=reader.get("intermediate_size"),
      activation=reader.activation("hidden_act"),
      bias=reader.get("mlp_bias", default=False),
    ),
  )
  blocks = [block] * reader.get("num_hidden_layers")
  return family.read_model(reader, blocks=blocks)


def _write_shared(config: model_config.ModelConfig) -> dict[str, Any]:
  mixer = family.first(config, "mixer", model_config.AttentionConfig)
  mlp = family.first(config, "feed_forward", model_config.MlpConfig)
  if mixer.rope and isinstance(
    mixer.rope.scaling, model_config.LongRopeScaling
  ):
    raise ValueError("LongRoPE is Phi-3's.")
  return (
    family.write_model(config, "llama", "LlamaForCausalLM")
    | family.write_heads(config, mixer)
    | {
      "attention_bias": mixer.qkv_bias,
      "mlp_bias": mlp.bias,
      "intermediate_size": mlp.dim,
      "hidden_act": config_json.write_activation(mlp.activation),
    }
  )


def _write(config: model_config.ModelConfig) -> dict[str, Any]:
  keys = _write_shared(config)
  has_bias = keys["attention_bias"] or keys["mlp_bias"]
  if config.dim % keys["num_attention_heads"] and not has_bias:
    # Mistral's class, the same without biases, does not mind.
    raise ValueError(
      "Transformers 5 refuses a Llama whose hidden_size is no multiple of "
      "num_attention_heads."
    )
  return keys


def _read_mistral(reader: config_json.Reader) -> model_config.ModelConfig:
  max_seq_len = reader.get("max_position_embeddings")
  block = model_config.BlockConfig(
    mixer=model_config.AttentionConfig(
      **family.read_heads(reader),
      rope=reader.rope(max_seq_len=max_seq_len),
      window=reader.get("sliding_window", default=None),
    ),
    feed_forward=model_config.MlpConfig(
      dim=reader.get("intermediate_size"),
      activation=reader.activation("hidden_act"),
    ),
  )
  blocks = [block] * reader.get("num_hidden_layers")
  return family.read_model(reader, blocks=blocks)


def _write_mistral(config: model_config.ModelConfig) -> dict[str, Any]:
  mixer = family.first(config, "mixer", model_config.AttentionConfig)
  keys = _write_shared(config) | {
    "model_type": "mistral",
    "architectures": ["MistralForCausalLM"],
    "sliding_window": mixer.window,
  }
  del keys["attention_bias"], keys["mlp_bias"]
  return keys


def _rules(config, block, layer) -> list[family.Rule]:
  del config
  return family.layer_rules(block, layer, norms=family.PRE_NORMS)


LLAMA = family.Family(
  model_type="llama",
  architecture="LlamaForCausalLM",
  read=_read,
  write=_write,
  top_rules=family.top_rules,
  layer_rules=_rules,
  defaults={"hidden_act": "silu"},
)
MISTRAL = family.Family(
  model_type="mistral",
  architecture="MistralForCausalLM",
  read=_read_mistral,
  write=_write_mistral,
  top_rules=family.top_rules,
  layer_rules=_rules,
  defaults={
    "hidden_act": "silu",
    "num_key_value_heads": 8,
    "sliding_window": 4096,
  },
)
