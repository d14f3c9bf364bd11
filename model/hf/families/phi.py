"""Phi-3: Llama with fused projections, LongRoPE and a window."""

from typing import Any

from model import config as model_config
from model.hf import config_json
from model.hf.families import family


def _read(reader: config_json.Reader) -> model_config.ModelConfig:
  max_seq_len = reader.get("max_position_embeddings")
  reader.only("attention_bias", False)
  reader.only("mlp_bias", False)
  # Phi-4-mini says so.
  reader.only("lm_head_bias", False)
  reader.only("full_attn_mod", 1)
  reader.only("interpolate_factor", 1)
  block = model_config.BlockConfig(
    mixer=model_config.AttentionConfig(
      **family.read_heads(reader),
      rope=reader.rope(max_seq_len=max_seq_len, partial=True),
      window=reader.get("sliding_window", default=None),
    ),
    feed_forward=model_config.MlpConfig(
      dim=reader.get("intermediate_size"),
      activation=reader.activation("hidden_act"),
    ),
  )
  blocks = [block] * reader.get("num_hidden_layers")
  return family.read_model(reader, blocks=blocks, eps_default=1e-5)


def _write(config: model_config.ModelConfig) -> dict[str, Any]:
  mixer = family.first(config, "mixer", model_config.AttentionConfig)
  mlp = family.first(config, "feed_forward", model_config.MlpConfig)
  keys = (
    family.write_model(config, "phi3", "Phi3ForCausalLM")
    | family.write_heads(config, mixer)
    | {
      "sliding_window": mixer.window,
      "intermediate_size": mlp.dim,
      "hidden_act": config_json.write_activation(mlp.activation),
    }
  )
  # Its class has one that a small vocabulary has not.
  keys["pad_token_id"] = None
  keys.setdefault("original_max_position_embeddings", config.max_seq_len)
  if keys["rope_scaling"] is not None:
    # The one name that every version of this class reads.
    keys["rope_scaling"].pop("rope_type")
  return keys


def _rules(config, block, layer) -> list[family.Rule]:
  del config, block
  prefix = f"model.layers.{layer}."
  return [
    *family.norm_rules(prefix, family.PRE_NORMS),
    family.Rule(
      theirs=f"{prefix}self_attn.qkv_proj.weight",
      ours=("mixer.q_DNH", "mixer.k_DKH", "mixer.v_DKH"),
    ),
    family.Rule(
      theirs=f"{prefix}self_attn.o_proj.weight",
      ours=("mixer.o_NHD",),
      inputs=2,
    ),
    family.Rule(
      theirs=f"{prefix}mlp.gate_up_proj.weight",
      ours=("feed_forward.gate_DF", "feed_forward.up_DF"),
    ),
    family.Rule(
      theirs=f"{prefix}mlp.down_proj.weight", ours=("feed_forward.down_FD",)
    ),
  ]


PHI3 = family.Family(
  model_type="phi3",
  architecture="Phi3ForCausalLM",
  read=_read,
  write=_write,
  top_rules=family.top_rules,
  layer_rules=_rules,
  defaults={
    "hidden_act": "silu",
    "original_max_position_embeddings": 4096,
  },
)
