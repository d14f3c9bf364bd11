"""Mixtral, and Kanana-MoE: Mistral's attention, and experts."""

from typing import Any

from model import config as model_config
from model.hf import config_json
from model.hf.families import family


def _read(reader: config_json.Reader) -> model_config.ModelConfig:
  max_seq_len = reader.get("max_position_embeddings")
  block = model_config.BlockConfig(
    mixer=model_config.AttentionConfig(
      **family.read_heads(reader),
      rope=reader.rope(max_seq_len=max_seq_len, default_theta=1e6),
      window=reader.get("sliding_window", default=None),
    ),
    feed_forward=model_config.MoeConfig(
      num_experts=reader.get("num_local_experts"),
      experts_per_token=reader.get("num_experts_per_tok"),
      dim=reader.get("intermediate_size"),
      activation=reader.activation("hidden_act"),
    ),
  )
  blocks = [block] * reader.get("num_hidden_layers")
  return family.read_model(reader, blocks=blocks, eps_default=1e-5)


def _write(config: model_config.ModelConfig) -> dict[str, Any]:
  mixer = family.first(config, "mixer", model_config.AttentionConfig)
  moe = family.first(config, "feed_forward", model_config.MoeConfig)
  return (
    family.write_model(config, "mixtral", "MixtralForCausalLM")
    | family.write_heads(config, mixer)
    | {
      "sliding_window": mixer.window,
      "num_local_experts": moe.num_experts,
      "num_experts_per_tok": moe.experts_per_token,
      "intermediate_size": moe.dim,
      "hidden_act": config_json.write_activation(moe.activation),
    }
  )


def _rules(config, block, layer) -> list[family.Rule]:
  del config
  prefix = f"model.layers.{layer}."
  moe = f"{prefix}block_sparse_moe."
  return [
    *family.norm_rules(prefix, family.PRE_NORMS),
    *family.attention_rules(f"{prefix}self_attn.", block.mixer),
    family.Rule(theirs=f"{moe}gate.weight", ours=("feed_forward.router_DE",)),
    *family.mlp_rules(
      f"{moe}experts.{{expert}}.", experts=True, names=("w1", "w3", "w2")
    ),
  ]


MIXTRAL = family.Family(
  model_type="mixtral",
  architecture="MixtralForCausalLM",
  read=_read,
  write=_write,
  top_rules=family.top_rules,
  layer_rules=_rules,
  defaults={
    "hidden_act": "silu",
    "num_experts_per_tok": 2,
    "num_key_value_heads": 8,
    "router_aux_loss_coef": 0.001,
  },
)
