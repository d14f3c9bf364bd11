"""OLMoE: 64 small experts; queries and keys normed over whole projections."""

from typing import Any

from model import config as model_config
from model.hf import config_json
from model.hf.families import family


def _read(reader: config_json.Reader) -> model_config.ModelConfig:
  reader.only("clip_qkv", None)
  bias = reader.get("attention_bias", default=False)
  block = model_config.BlockConfig(
    mixer=model_config.AttentionConfig(
      **family.read_heads(reader),
      rope=reader.rope(max_seq_len=reader.get("max_position_embeddings")),
      qk_norm="projection",
      qkv_bias=bias,
      out_bias=bias,
    ),
    feed_forward=model_config.MoeConfig(
      num_experts=reader.get("num_experts", "num_local_experts"),
      experts_per_token=reader.get("num_experts_per_tok"),
      dim=reader.get("intermediate_size"),
      activation=reader.activation("hidden_act"),
      router=model_config.RouterConfig(
        normalize=reader.get("norm_topk_prob", default=False)
      ),
    ),
  )
  blocks = [block] * reader.get("num_hidden_layers")
  return family.read_model(reader, blocks=blocks, eps_default=1e-5)


def _write(config: model_config.ModelConfig) -> dict[str, Any]:
  mixer = family.first(config, "mixer", model_config.AttentionConfig)
  moe = family.first(config, "feed_forward", model_config.MoeConfig)
  return (
    family.write_model(config, "olmoe", "OlmoeForCausalLM")
    | family.write_heads(config, mixer)
    | {
      "attention_bias": mixer.qkv_bias,
      "num_experts": moe.num_experts,
      "num_experts_per_tok": moe.experts_per_token,
      "intermediate_size": moe.dim,
      "norm_topk_prob": moe.router.normalize,
      "hidden_act": config_json.write_activation(moe.activation),
    }
  )


def _rules(config, block, layer) -> list[family.Rule]:
  del config
  return family.layer_rules(block, layer, norms=family.PRE_NORMS)


OLMOE = family.Family(
  model_type="olmoe",
  architecture="OlmoeForCausalLM",
  read=_read,
  write=_write,
  top_rules=family.top_rules,
  layer_rules=_rules,
  defaults={
    "hidden_act": "silu",
    "num_experts_per_tok": 8,
    "router_aux_loss_coef": 0.01,
  },
)
