"""DeepSeek-V2 and V3, and Kanana-2: latent attention and many small experts."""

from collections.abc import Callable
from typing import Any

from model import config as model_config
from model.hf import config_json
from model.hf.families import family


def _read(
  reader: config_json.Reader,
  *,
  pairing: Callable[[config_json.Reader], Any],
  router: Callable[[config_json.Reader], model_config.RouterConfig],
) -> model_config.ModelConfig:
  reader.only("attention_bias", False)
  reader.only("mlp_bias", False)
  reader.only("pretraining_tp", 1)
  reader.only("moe_layer_freq", 1)
  # Sums and copies of other keys.
  for key in ("head_dim", "qk_head_dim", "num_key_value_heads"):
    reader.get(key, default=None)
  max_seq_len = reader.get("max_position_embeddings")
  mixer = model_config.MlaConfig(
    num_heads=reader.get("num_attention_heads"),
    kv_rank=reader.get("kv_lora_rank"),
    nope_head_dim=reader.get("qk_nope_head_dim"),
    rope_head_dim=reader.get("qk_rope_head_dim"),
    value_head_dim=reader.get("v_head_dim"),
    q_rank=reader.get("q_lora_rank", default=None),
    rope=reader.rope(max_seq_len=max_seq_len, pairing=pairing(reader)),
  )
  activation = reader.activation("hidden_act")
  expert_dim = reader.get("moe_intermediate_size")
  dense = model_config.BlockConfig(
    mixer=mixer,
    feed_forward=model_config.MlpConfig(
      dim=reader.get("intermediate_size"), activation=activation
    ),
  )
  sparse = model_config.BlockConfig(
    mixer=mixer,
    feed_forward=model_config.MoeConfig(
      num_experts=reader.get("n_routed_experts"),
      experts_per_token=reader.get("num_experts_per_tok"),
      dim=expert_dim,
      activation=activation,
      shared_dim=expert_dim * reader.get("n_shared_experts", default=0),
      router=router(reader),
    ),
  )
  num_layers = reader.get("num_hidden_layers")
  num_dense = min(reader.get("first_k_dense_replace", default=0), num_layers)
  num_sparse = num_layers - num_dense
  return family.read_model(
    reader, blocks=[dense] * num_dense + [sparse] * num_sparse
  )


def _router_v2(reader: config_json.Reader) -> model_config.RouterConfig:
  reader.only("scoring_func", "softmax")
  reader.only("topk_method", "greedy", "group_limited_greedy")
  grouped = reader.get("topk_method", default="greedy") != "greedy"
  groups = reader.get("n_group", default=1)
  taken = reader.get("topk_group", default=1)
  # Transformers does not normalise, whatever this says.
  reader.get("norm_topk_prob", default=False)
  return model_config.RouterConfig(
    normalize=False,
    scale=reader.get("routed_scaling_factor", default=1.0),
    num_groups=groups if grouped else 1,
    groups_per_token=taken if grouped else 1,
  )


def _router_v3(reader: config_json.Reader) -> model_config.RouterConfig:
  reader.only("scoring_func", "sigmoid")
  reader.only("topk_method", "noaux_tc")
  return model_config.RouterConfig(
    score="sigmoid",
    normalize=reader.get("norm_topk_prob", default=True),
    scale=reader.get("routed_scaling_factor", default=2.5),
    num_groups=reader.get("n_group", default=8),
    groups_per_token=reader.get("topk_group", default=4),
    group_score="top2_sum",
    selection_bias=True,
  )


def _read_v2(reader: config_json.Reader) -> model_config.ModelConfig:
  return _read(reader, pairing=lambda _: "interleaved", router=_router_v2)


def _read_v3(reader: config_json.Reader) -> model_config.ModelConfig:
  def pairing(reader):
    interleave = reader.get("rope_interleave", default=True)
    return "interleaved" if interleave else "halves"

  return _read(reader, pairing=pairing, router=_router_v3)


def _write(config: model_config.ModelConfig) -> dict[str, Any]:
  mixer = family.first(config, "mixer", model_config.MlaConfig)
  moe = family.first(config, "feed_forward", model_config.MoeConfig)
  dense = [
    block.feed_forward
    for block in config.layers
    if isinstance(block.feed_forward, model_config.MlpConfig)
  ]
  return (
    family.write_model(config, "", "")
    | config_json.write_rope(mixer.rope, max_seq_len=config.max_seq_len)
    | {
      "attention_bias": False,
      "num_attention_heads": mixer.num_heads,
      "num_key_value_heads": mixer.num_heads,
      "kv_lora_rank": mixer.kv_rank,
      "q_lora_rank": mixer.q_rank,
      "qk_nope_head_dim": mixer.nope_head_dim,
      "qk_rope_head_dim": mixer.rope_head_dim,
      "v_head_dim": mixer.value_head_dim,
      "hidden_act": config_json.write_activation(moe.activation),
      "intermediate_size": dense[0].dim if dense else moe.dim,
      "first_k_dense_replace": len(dense),
      "moe_layer_freq": 1,
      "n_routed_experts": moe.num_experts,
      "num_experts_per_tok": moe.experts_per_token,
      "moe_intermediate_size": moe.dim,
      "n_shared_experts": moe.shared_dim // moe.dim,
      "norm_topk_prob": moe.router.normalize,
      "routed_scaling_factor": moe.router.scale,
      "n_group": moe.router.num_groups,
      "topk_group": moe.router.groups_per_token,
    }
  )


def _write_v2(config: model_config.ModelConfig) -> dict[str, Any]:
  moe = family.first(config, "feed_forward", model_config.MoeConfig)
  grouped = moe.router.num_groups > 1
  return _write(config) | {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "scoring_func": "softmax",
    "topk_method": "group_limited_greedy" if grouped else "greedy",
  }


def _write_v3(config: model_config.ModelConfig) -> dict[str, Any]:
  mixer = family.first(config, "mixer", model_config.MlaConfig)
  return _write(config) | {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "rope_interleave": mixer.rope.pairing == "interleaved",
  }


def _rules(config, block, layer) -> list[family.Rule]:
  del config
  prefix = f"model.layers.{layer}."
  mixer = block.mixer
  attention = f"{prefix}self_attn."
  rules = [
    *family.norm_rules(prefix, family.PRE_NORMS),
    family.Rule(
      theirs=f"{attention}kv_a_proj_with_mqa.weight",
      ours=("mixer.latent_DC", "mixer.rope_key_DH"),
    ),
    family.Rule(
      theirs=f"{attention}kv_a_layernorm.weight",
      ours=("mixer.latent_scale_C",),
      layout="flat",
    ),
    family.Rule(
      theirs=f"{attention}kv_b_proj.weight",
      ours=("mixer.k_up_CNH", "mixer.v_up_CNH"),
      groups=mixer.num_heads,
    ),
    family.Rule(
      theirs=f"{attention}o_proj.weight", ours=("mixer.o_NHD",), inputs=2
    ),
  ]
  if mixer.q_rank is None:
    rules.append(
      family.Rule(theirs=f"{attention}q_proj.weight", ours=("mixer.q_DNH",))
    )
  else:
    rules += [
      family.Rule(
        theirs=f"{attention}q_a_proj.weight", ours=("mixer.q_down_DR",)
      ),
      family.Rule(
        theirs=f"{attention}q_a_layernorm.weight",
        ours=("mixer.q_norm_scale_R",),
        layout="flat",
      ),
      family.Rule(
        theirs=f"{attention}q_b_proj.weight", ours=("mixer.q_up_RNH",)
      ),
    ]
  if isinstance(block.feed_forward, model_config.MoeConfig):
    return rules + family.moe_rules(f"{prefix}mlp.", block.feed_forward)
  return rules + family.mlp_rules(f"{prefix}mlp.")


DEEPSEEK_V2 = family.Family(
  model_type="deepseek_v2",
  architecture="DeepseekV2ForCausalLM",
  read=_read_v2,
  write=_write_v2,
  top_rules=family.top_rules,
  layer_rules=_rules,
  defaults={
    "hidden_act": "silu",
    "n_shared_experts": 2,
    "q_lora_rank": 1536,
  },
)
DEEPSEEK_V3 = family.Family(
  model_type="deepseek_v3",
  architecture="DeepseekV3ForCausalLM",
  read=_read_v3,
  write=_write_v3,
  top_rules=family.top_rules,
  layer_rules=_rules,
  defaults={
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "n_shared_experts": 1,
    "q_lora_rank": 1536,
  },
)
