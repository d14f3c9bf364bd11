"""Reads a Hugging Face config.json, in the style of transformers 4 or 5.

A `Reader` knows which keys were asked for. One that nobody asked for and that
is not known to leave the model's function alone is an error: a model that is
nearly imported is worse than one that is not.
"""

from collections.abc import Mapping
from typing import Any, Literal

from model import config as model_config

_REQUIRED: Any = object()

# Keys that do not change what the forward pass computes.
_HARMLESS = frozenset(
  """
  architectures model_type transformers_version torch_dtype dtype use_cache
  bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id
  decoder_start_token_id tokenizer_class auto_map _name_or_path
  _attn_implementation _attn_implementation_autoset _experts_implementation
  attn_implementation attention_dropout embd_pdrop resid_pdrop attn_pdrop
  summary_first_dropout hidden_dropout residual_dropout classifier_dropout
  router_aux_loss_coef aux_loss_alpha seq_aux output_router_logits
  router_jitter_noise router_z_loss_coef output_hidden_states
  output_attentions return_dict gradient_checkpointing use_flash_attn
  keys_to_ignore_at_inference summary_activation summary_proj_to_labels
  summary_type summary_use_proj task_specific_params id2label label2id
  num_labels problem_type chunk_size_feed_forward is_decoder ep_size
  reorder_and_upcast_attn cache_implementation initial_context_length
  num_nextn_predict_layers num_mtp_layers is_llama_config
  transformers.js_config _attn_implementation_internal neftune_noise_alpha
  unsloth_version unsloth_fixed finetuning_task prefix torchscript
  use_bfloat16 tf_legacy_loss tie_encoder_decoder tokenizer_name
  max_sequence_length max_length min_length max_new_tokens min_new_tokens
  do_sample early_stopping num_beams num_beam_groups diversity_penalty
  temperature top_k top_p typical_p repetition_penalty length_penalty
  no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
  num_return_sequences output_scores return_dict_in_generate
  forced_bos_token_id forced_eos_token_id remove_invalid_values
  exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
  """.split()  # noqa: SIM905
)

# Options of every class, of which any other value is not implemented.
_FIXED: dict[str, Any] = {
  "is_encoder_decoder": False,
  "add_cross_attention": False,
  "cross_attention_hidden_size": None,
  "pruned_heads": {},
}

_ACTIVATIONS: dict[str, model_config.Activation] = {
  "silu": "silu",
  "swish": "silu",
  "gelu": "gelu",
  "gelu_python": "gelu",
  "gelu_accurate": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
  "gelu_new": "gelu_tanh",
  "gelu_python_tanh": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
}


class Reader:
  """The keys of a config.json, each to be asked for once or more."""

  def __init__(self, values: Mapping[str, Any], *, where: str = "config.json"):
    self._values = dict(values)
    self._asked: set[str] = set()
    self.where = where

  def get(self, *keys: str, default: Any = _REQUIRED) -> Any:
    """The value of the first of `keys` that is there and not null.

    Raises:
      ValueError: None is, and there is no default.
    """
    self._asked.update(keys)
    for key in keys:
      if self._values.get(key) is not None:
        return self._values[key]
    if default is _REQUIRED:
      raise ValueError(
        f"{self.where} has no {' or '.join(map(repr, keys))}, which "
        f"model_type={self._values.get('model_type')!r} needs."
      )
    return default

  def has(self, key: str) -> bool:
    """Whether the key is there, with null or without."""
    self._asked.add(key)
    return key in self._values

  def only(self, key: str, *allowed: Any) -> None:
    """An option of which only some values are implemented.

    Raises:
      ValueError: It has another.
    """
    value = self.get(key, default=allowed[0])
    if value not in allowed:
      shown = " or ".join(map(repr, allowed))
      raise ValueError(
        f"{self.where}: {key}={value!r} is not supported; only {shown} is."
      )

  def activation(self, *keys: str) -> model_config.Activation:
    """A nonlinearity by its name in Transformers."""
    name = self.get(*keys)
    if name not in _ACTIVATIONS:
      raise ValueError(
        f"{self.where}: {keys[0]}={name!r} is not supported; only "
        f"{', '.join(_ACTIVATIONS)} are."
      )
    return _ACTIVATIONS[name]

  def rope(
    self,
    *,
    max_seq_len: int,
    default_theta: float = 10_000.0,
    default_fraction: float = 1.0,
    partial: bool = False,
    pairing: Literal["halves", "interleaved"] = "halves",
  ) -> model_config.RopeConfig:
    """The rotary embedding, from either style's keys.

    Args:
      max_seq_len: The context, for factors that are told by it.
      default_theta: If the file does not say.
      default_fraction: Rotated share of a head, if the file does not say.
      partial: Whether the class rotates less than a head. Of the others,
        Transformers 5 rotates all of it whatever the file says, and 4 fails.
      pairing: Of the weights.

    Raises:
      ValueError: A key or a type is not understood.
    """
    new = self.get("rope_parameters", default=None)
    old = self.get("rope_scaling", default=None)
    theta = self.get("rope_theta", default=default_theta)
    fraction = self.get("partial_rotary_factor", default=default_fraction)
    original = self.get("original_max_position_embeddings", default=None)
    rope = read_rope(
      # With both, Transformers takes the older.
      dict(old or new or {}),
      where=self.where,
      theta=theta,
      fraction=fraction,
      original=original,
      max_seq_len=max_seq_len,
      pairing=pairing,
    )
    if rope.fraction != 1.0 and not partial:
      raise ValueError(
        f"{self.where}: partial_rotary_factor={rope.fraction} is not supported "
        f"for model_type={self._values.get('model_type')!r}, of which "
        "Transformers rotates whole heads; only 1 is."
      )
    return rope

  def windows(self, num_layers: int, default: list[int | None]) -> list[Any]:
    """Each layer's window: by `layer_types`, or by the family's own rule."""
    types = self.get("layer_types", default=None)
    if types is None:
      return default
    if len(types) != num_layers:
      raise ValueError(
        f"{self.where}: layer_types has {len(types)} entries for {num_layers} "
        "layers."
      )
    known = {"sliding_attention", "full_attention"}
    unknown = sorted(set(types) - known)
    if unknown:
      raise ValueError(
        f"{self.where}: layer_types has {unknown}; only {sorted(known)} are "
        "supported for this architecture."
      )
    return [
      self.get("sliding_window") if kind == "sliding_attention" else None
      for kind in types
    ]

  def finish(self) -> None:
    """Checks that every key was asked for or is known to be harmless.

    Raises:
      ValueError: Lists all that are not, with their values.
    """
    for key, value in _FIXED.items():
      self.only(key, value)
    unknown = {
      key: value
      for key, value in self._values.items()
      if key not in self._asked and key not in _HARMLESS and value is not None
    }
    if unknown:
      shown = ", ".join(f"{k}={v!r}" for k, v in sorted(unknown.items()))
      raise ValueError(
        f"{self.where}: not understood: {shown}. Each may change what the "
        "model computes; remove those that are known not to."
      )


def read_rope(
  values: dict[str, Any],
  *,
  where: str,
  theta: float,
  max_seq_len: int,
  fraction: float = 1.0,
  original: int | None = None,
  pairing: Literal["halves", "interleaved"] = "halves",
) -> model_config.RopeConfig:
  """RopeConfig of a `rope_parameters` or `rope_scaling` mapping.

  Args:
    values: The mapping; empty for plain RoPE.
    where: For error messages.
    theta: If the mapping does not say.
    max_seq_len: The context, for factors that are told by it.
    fraction: Rotated share of a head, if the mapping does not say.
    original: The context before scaling; unset: the mapping's, or all of it.
    pairing: Of the weights.

  Raises:
    ValueError: A key or a type is not understood.
  """
  values = {k: v for k, v in values.items() if v is not None}
  old_kind = values.pop("type", "default")
  kind = values.pop("rope_type", old_kind)
  theta = values.pop("rope_theta", theta)
  fraction = values.pop("partial_rotary_factor", fraction)
  # What stands outside of the mapping goes first, as in Transformers.
  inner = values.pop("original_max_position_embeddings", max_seq_len)
  before = int(original or inner)

  def required(key: str) -> Any:
    if key not in values:
      raise ValueError(f"{where}: rope_type={kind!r} needs {key!r}.")
    return values.pop(key)

  scaling: model_config.RopeScaling | None
  match kind:
    case "default":
      scaling = None
    case "linear":
      scaling = model_config.LinearScaling(factor=float(required("factor")))
    case "llama3":
      scaling = model_config.Llama3Scaling(
        factor=float(required("factor")),
        low_freq_factor=float(required("low_freq_factor")),
        high_freq_factor=float(required("high_freq_factor")),
        original_max_seq_len=before,
      )
    case "yarn":
      scaling = model_config.YarnScaling(
        factor=float(values.pop("factor", max_seq_len / before)),
        original_max_seq_len=before,
        # 0 stands for the default, as it does in Transformers.
        beta_fast=float(values.pop("beta_fast", 0) or 32.0),
        beta_slow=float(values.pop("beta_slow", 0) or 1.0),
        truncate=bool(values.pop("truncate", True)),
        mscale=_float(values.pop("mscale", None)),
        mscale_all_dim=_float(values.pop("mscale_all_dim", None)),
        attention_factor=_float(values.pop("attention_factor", None)),
      )
    case "longrope" | "su":
      scaling = model_config.LongRopeScaling(
        short_factor=tuple(map(float, required("short_factor"))),
        long_factor=tuple(map(float, required("long_factor"))),
        original_max_seq_len=before,
        factor=float(values.pop("factor", max_seq_len / before)),
        attention_factor=_float(values.pop("attention_factor", None)),
      )
    case _:
      raise ValueError(
        f"{where}: rope_type={kind!r} is not supported; only default, linear, "
        "llama3, yarn and longrope are."
      )
  if values:
    raise ValueError(
      f"{where}: keys of rope_type={kind!r} not understood: {values}."
    )
  return model_config.RopeConfig(
    theta=float(theta),
    scaling=scaling,
    fraction=float(fraction),
    pairing=pairing,
  )


def _float(value: Any) -> float | None:
  return None if value is None else float(value)


def write_rope(
  rope: model_config.RopeConfig, *, max_seq_len: int
) -> dict[str, Any]:
  """The keys that `Reader.rope` reads, in the style that 4 and 5 both read."""
  keys: dict[str, Any] = {"rope_theta": rope.theta, "rope_scaling": None}
  if rope.fraction != 1.0:
    keys["partial_rotary_factor"] = rope.fraction
  scaling = rope.scaling
  match scaling:
    case model_config.LinearScaling():
      values = {"rope_type": "linear", "factor": scaling.factor}
    case model_config.Llama3Scaling():
      values = {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_seq_len,
      }
    case model_config.YarnScaling():
      optional = {
        "mscale": scaling.mscale,
        "mscale_all_dim": scaling.mscale_all_dim,
        "attention_factor": scaling.attention_factor,
        "truncate": None if scaling.truncate else False,
      }
      values = {
        "rope_type": "yarn",
        "type": "yarn",
        "factor": scaling.factor,
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
        "original_max_position_embeddings": scaling.original_max_seq_len,
      } | {k: v for k, v in optional.items() if v is not None}
    case model_config.LongRopeScaling():
      values: dict[str, Any] = {
        "rope_type": "longrope",
        "type": "longrope",
        "short_factor": list(scaling.short_factor),
        "long_factor": list(scaling.long_factor),
      }
      # Only where needed: version 4 wants no further keys.
      if scaling.factor != max_seq_len / scaling.original_max_seq_len:
        values["factor"] = scaling.factor
      if scaling.attention_factor is not None:
        values["attention_factor"] = scaling.attention_factor
      keys["original_max_position_embeddings"] = scaling.original_max_seq_len
    case None:
      return keys
  return keys | {"rope_scaling": values}


def write_activation(activation: str) -> str:
  """A nonlinearity's name in Transformers."""
  return {"gelu_tanh": "gelu_pytorch_tanh"}.get(activation, activation)
