"""GPT-2: learned positions, LayerNorm, biases, matrices stored [in, out]."""

from typing import Any

from model import config as model_config
from model.hf import config_json
from model.hf.families import family


def _read(reader: config_json.Reader) -> model_config.ModelConfig:
  reader.only("scale_attn_weights", True)
  reader.only("scale_attn_by_inverse_layer_idx", False)
  reader.only("add_cross_attention", False)
  reader.get("n_ctx", default=None)
  dim, num_heads = reader.get("n_embd"), reader.get("n_head")
  block = model_config.BlockConfig(
    mixer=model_config.AttentionConfig(
      num_heads=num_heads,
      num_kv_heads=num_heads,
      head_dim=dim // num_heads,
      rope=None,
      qkv_bias=True,
      out_bias=True,
    ),
    feed_forward=model_config.MlpConfig(
      dim=reader.get("n_inner", default=4 * dim),
      activation=reader.activation("activation_function"),
      gated=False,
      bias=True,
    ),
  )
  return model_config.ModelConfig(
    name="gpt2",
    vocab_size=reader.get("vocab_size"),
    dim=dim,
    groups=model_config.group_layers([block] * reader.get("n_layer")),
    tie_embeddings=reader.get("tie_word_embeddings", default=True),
    norm="layer",
    norm_eps=reader.get("layer_norm_epsilon", default=1e-5),
    max_seq_len=reader.get("n_positions"),
    learned_positions=True,
    init_std=reader.get("initializer_range", default=0.02),
  )


def _write(config: model_config.ModelConfig) -> dict[str, Any]:
  mixer = family.first(config, "mixer", model_config.AttentionConfig)
  mlp = family.first(config, "feed_forward", model_config.MlpConfig)
  activation = "gelu_new" if mlp.activation == "gelu_tanh" else mlp.activation
  return {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": config.vocab_size,
    "n_embd": config.dim,
    "n_head": mixer.num_heads,
    "n_inner": mlp.dim,
    "n_layer": config.num_layers,
    "n_positions": config.max_seq_len,
    "activation_function": activation,
    "layer_norm_epsilon": config.norm_eps,
    "initializer_range": config.init_std,
    "tie_word_embeddings": config.tie_embeddings,
  }


def _norm_rules(theirs: str, ours: str) -> list[family.Rule]:
  return [
    family.Rule(
      theirs=f"{theirs}.{their_part}",
      ours=(f"{ours}.{our_part}",),
      layout="flat",
    )
    for their_part, our_part in (("weight", "scale_D"), ("bias", "bias_D"))
  ]


def _top_rules(config: model_config.ModelConfig) -> list[family.Rule]:
  rules = [
    family.Rule(
      theirs="transformer.wte.weight", ours=("embed_VD",), layout="same"
    ),
    family.Rule(
      theirs="transformer.wpe.weight", ours=("position_PD",), layout="same"
    ),
    *_norm_rules("transformer.ln_f", "final_norm"),
  ]
  if not config.tie_embeddings:
    rules.append(family.Rule(theirs="lm_head.weight", ours=("head_DV",)))
  return rules


def _rules(config, block, layer) -> list[family.Rule]:
  del config, block
  prefix = f"transformer.h.{layer}."

  def matrix(theirs: str, *ours: str, inputs: int = 1) -> family.Rule:
    return family.Rule(
      theirs=prefix + theirs, ours=ours, layout="in_out", inputs=inputs
    )

  def bias(theirs: str, *ours: str) -> family.Rule:
    return family.Rule(theirs=prefix + theirs, ours=ours, layout="flat")

  return [
    *_norm_rules(f"{prefix}ln_1", "mixer_norm"),
    *_norm_rules(f"{prefix}ln_2", "feed_forward_norm"),
    matrix("attn.c_attn.weight", "mixer.q_DNH", "mixer.k_DKH", "mixer.v_DKH"),
    bias(
      "attn.c_attn.bias",
      "mixer.q_bias_NH",
      "mixer.k_bias_KH",
      "mixer.v_bias_KH",
    ),
    matrix("attn.c_proj.weight", "mixer.o_NHD", inputs=2),
    bias("attn.c_proj.bias", "mixer.o_bias_D"),
    matrix("mlp.c_fc.weight", "feed_forward.up_DF"),
    bias("mlp.c_fc.bias", "feed_forward.up_bias_F"),
    matrix("mlp.c_proj.weight", "feed_forward.down_FD"),
    bias("mlp.c_proj.bias", "feed_forward.down_bias_D"),
  ]


GPT2 = family.Family(
  model_type="gpt2",
  architecture="GPT2LMHeadModel",
  read=_read,
  write=_write,
  top_rules=_top_rules,
  layer_rules=_rules,
  ignored=(r"transformer\.h\.\d+\.attn\.(masked_)?bias",),
  defaults={"activation_function": "gelu_new"},
)
