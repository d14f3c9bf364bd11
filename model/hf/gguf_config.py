"""What a GGUF file's model is, in the words of a Hugging Face config.json.

The names of tensors and metadata are llama.cpp's; the config and the names it
leads to are those that `transformers` saves for the same model. Metadata that
this does not know could change numbers, so it is refused.
"""

import collections.abc
import dataclasses
import math
from typing import Any

import numpy as np

from model.hf import gguf_header

_GLOBAL = {
  "token_embd.weight": "model.embed_tokens.weight",
  "output_norm.weight": "model.norm.weight",
}
_HEAD = {"output.weight": "lm_head.weight"}
# llama.cpp's name in a layer -> Hugging Face's.
_LAYER = {
  "attn_norm.weight": "input_layernorm.weight",
  "attn_q.weight": "self_attn.q_proj.weight",
  "attn_k.weight": "self_attn.k_proj.weight",
  "attn_v.weight": "self_attn.v_proj.weight",
  "attn_output.weight": "self_attn.o_proj.weight",
  "ffn_norm.weight": "post_attention_layernorm.weight",
  "ffn_gate.weight": "mlp.gate_proj.weight",
  "ffn_up.weight": "mlp.up_proj.weight",
  "ffn_down.weight": "mlp.down_proj.weight",
}
_QKV_BIAS = {
  "attn_q.bias": "self_attn.q_proj.bias",
  "attn_k.bias": "self_attn.k_proj.bias",
  "attn_v.bias": "self_attn.v_proj.bias",
}
_ATTENTION_BIAS = {**_QKV_BIAS, "attn_output.bias": "self_attn.o_proj.bias"}
_MLP_BIAS = {
  "ffn_gate.bias": "mlp.gate_proj.bias",
  "ffn_up.bias": "mlp.up_proj.bias",
  "ffn_down.bias": "mlp.down_proj.bias",
}
_QK_NORM = {
  "attn_q_norm.weight": "self_attn.q_norm.weight",
  "attn_k_norm.weight": "self_attn.k_norm.weight",
}
# RoPE's frequencies are divided by these; Llama 3.1's scaling is stored so.
_ROPE_FACTORS = "rope_freqs.weight"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Architecture:
  """What llama.cpp's name of an architecture stands for.

  Attributes:
    class_name: of transformers.
    layer: tensors that every layer has.
    options: field of the config -> tensors that every layer has if it is true.
    permuted: whether the rows of q and k are in the order of interleaved RoPE.
    fixed: further fields of the config.
  """

  class_name: str
  layer: dict[str, str]
  options: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
  permuted: bool = False
  fixed: dict[str, Any] = dataclasses.field(default_factory=dict)


_ARCHITECTURES = {
  "llama": _Architecture(
    class_name="LlamaForCausalLM",
    layer=_LAYER,
    options={"attention_bias": _ATTENTION_BIAS, "mlp_bias": _MLP_BIAS},
    permuted=True,
  ),
  "qwen2": _Architecture(
    class_name="Qwen2ForCausalLM",
    layer=_LAYER | _QKV_BIAS,
    fixed={"use_sliding_window": False},
  ),
  "qwen3": _Architecture(
    class_name="Qwen3ForCausalLM",
    layer=_LAYER | _QK_NORM,
    options={"attention_bias": _ATTENTION_BIAS},
    fixed={"use_sliding_window": False},
  ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """A GGUF file's model.

  Attributes:
    config: as config.json has it, without the dtype.
    names: llama.cpp's name -> Hugging Face's, of every tensor to be read.
    num_permuted_heads: Hugging Face's name -> how many heads the rows of a
      tensor are, for those whose rows are permuted within each head.
  """

  config: dict[str, Any]
  names: dict[str, str]
  num_permuted_heads: dict[str, int]


def model_of(
  header: gguf_header.Header,
  read_tensor: collections.abc.Callable[[str], np.ndarray],
) -> Model:
  """The model of a file.

  Args:
    header: of the file.
    read_tensor: reads a tensor by llama.cpp's name; for RoPE's factors only.

  Raises:
    ValueError: the architecture is not known, or has what no config says.
  """
  fields = _Fields(header)
  architecture = _ARCHITECTURES[fields.architecture]
  num_layers = fields.integer("block_count")
  names, chosen = _names(header, architecture, num_layers)
  num_heads = fields.integer("attention.head_count")
  num_kv_heads = fields.integer("attention.head_count_kv", num_heads)
  hidden_size = fields.integer("embedding_length")
  head_dim = fields.integer("attention.key_length", hidden_size // num_heads)
  fields.expect("attention.value_length", head_dim)
  fields.expect("rope.dimension_count", head_dim)
  vocab_size = header.tensors["token_embd.weight"].shape[0]
  fields.expect("vocab_size", vocab_size)
  num_tokens = len(header.metadata.get("tokenizer.ggml.tokens", ()))
  if num_tokens > vocab_size:
    raise ValueError(
      f"{header.file} has {num_tokens} tokens, but the embedding only"
      f" {vocab_size} rows; get the file again"
    )
  for key, harmless in {
    "expert_count": 0,
    "expert_used_count": 0,
    "attention.causal": True,
    "attention.sliding_window": 0,
  }.items():
    fields.expect(key, harmless)
  config: dict[str, Any] = {
    "architectures": [architecture.class_name],
    "model_type": fields.architecture,
    "hidden_act": "silu",
    "hidden_size": hidden_size,
    "intermediate_size": fields.integer("feed_forward_length"),
    "num_hidden_layers": num_layers,
    "num_attention_heads": num_heads,
    "num_key_value_heads": num_kv_heads,
    "head_dim": head_dim,
    "vocab_size": vocab_size,
    "max_position_embeddings": fields.integer("context_length"),
    "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon"),
    "rope_theta": fields.number("rope.freq_base", 10_000.0),
    "tie_word_embeddings": "lm_head.weight" not in names.values(),
    **chosen,
    **architecture.fixed,
  }
  config["rope_scaling"] = _rope_scaling(fields, config, read_tensor)
  for ours, theirs in {"bos": "bos", "eos": "eos", "pad": "padding"}.items():
    found = header.metadata.get(f"tokenizer.ggml.{theirs}_token_id")
    config[f"{ours}_token_id"] = found
  fields.check_all_read()
  permuted = {}
  for theirs, ours in names.items():
    kind = theirs.split(".")[-2]
    if architecture.permuted and kind in ("attn_q", "attn_k"):
      heads = num_heads if kind == "attn_q" else num_kv_heads
      _check_rows(header, theirs, heads * head_dim)
      permuted[ours] = heads
  return Model(config=config, names=names, num_permuted_heads=permuted)


class _Fields:
  """The metadata of the architecture; knows which were read."""

  def __init__(self, header: gguf_header.Header):
    self.header = header
    self._metadata = header.metadata
    for key, only in {"general.type": "model", "split.count": 1}.items():
      found = self._metadata.get(key, only)
      # A file that is not split may also say that it has 0 parts.
      if found not in (only, 0):
        raise self.unsupported(
          key,
          found,
          "merge the parts with `llama-gguf-split --merge`"
          if key == "split.count"
          else "give the file of the model itself",
        )
    self.architecture = str(self._metadata.get("general.architecture"))
    if self.architecture not in _ARCHITECTURES:
      raise self.unsupported(
        "general.architecture",
        self.architecture,
        f"known are {', '.join(_ARCHITECTURES)}; get the model's safetensors",
      )
    self._prefix = f"{self.architecture}."
    # These say how the file was made.
    self._read = {"rope.scaling.finetuned", "tensor_data_layout"}

  def get(self, key: str, default: Any = None) -> Any:
    self._read.add(key)
    return self._metadata.get(self._prefix + key, default)

  def integer(self, key: str, default: int | None = None) -> int:
    """A count, which some files have once for each layer."""
    value = self.get(key, default)
    if isinstance(value, list) and value and len(set(value)) == 1:
      value = value[0]
    if type(value) is not int or value < 1:
      raise self.unsupported(
        self._prefix + key,
        value,
        "it must be a count, the same in every layer",
      )
    return value

  def number(self, key: str, default: float | None = None) -> float:
    """A number, with the digits that it had before it was a float32."""
    value = self.get(key, default)
    if type(value) not in (int, float) or not 0 < value < math.inf:
      raise self.unsupported(
        self._prefix + key, value, "it must be a positive number"
      )
    return float(str(np.float32(value)))

  def expect(self, key: str, only: Any) -> None:
    """Checks that a key, if it is there, has the one value that is known."""
    value = self.get(key, only)
    if value != only:
      raise self.unsupported(
        self._prefix + key,
        value,
        f"only {only!r} is supported; get the model's safetensors",
      )

  def check_all_read(self) -> None:
    for key, value in self._metadata.items():
      if key.removeprefix(self._prefix) not in self._read and key.startswith(
        self._prefix
      ):
        raise self.unsupported(
          key,
          value,
          "this program does not know it, and it may change numbers; get the"
          " model's safetensors",
        )

  def unsupported(self, key: str, value: Any, fix: str) -> ValueError:
    return ValueError(f"{self.header.file}: {key} is {value!r}; {fix}")


def _names(
  header: gguf_header.Header, architecture: _Architecture, num_layers: int
) -> tuple[dict[str, str], dict[str, bool]]:
  """The names of all tensors, and the config's fields they decide."""
  found = header.tensors.keys() - {_ROPE_FACTORS}
  layer, chosen = dict(architecture.layer), {}
  for field, tensors in architecture.options.items():
    chosen[field] = any(f"blk.0.{name}" in found for name in tensors)
    if chosen[field]:
      layer |= tensors
  names = dict(_GLOBAL)
  for index in range(num_layers):
    for theirs, ours in layer.items():
      names[f"blk.{index}.{theirs}"] = f"model.layers.{index}.{ours}"
  if "output.weight" in found:
    names |= _HEAD
  missing = [name for name in names if name not in found]
  if missing:
    raise ValueError(
      f"{header.file} lacks {missing[0]} ({len(missing)} tensors of"
      f" {architecture.class_name} with {num_layers} layers); get it again, or"
      " the model's safetensors"
    )
  others = sorted(found - names.keys())
  if others:
    raise ValueError(
      f"{header.file} has {others[0]} ({len(others)} tensors that"
      f" {architecture.class_name} has not); get the model's safetensors"
    )
  return names, chosen


def _check_rows(header: gguf_header.Header, name: str, num_rows: int) -> None:
  shape = header.tensors[name].shape
  if shape[:1] != (num_rows,):
    raise ValueError(
      f"{header.file}: {name} has shape {shape}, but the metadata says that it"
      f" has {num_rows} rows (heads * head dim); get the file again"
    )


def _rope_scaling(
  fields: _Fields,
  config: dict[str, Any],
  read_tensor: collections.abc.Callable[[str], np.ndarray],
) -> dict[str, Any] | None:
  """The config's rope_scaling."""
  kind = fields.get("rope.scaling.type", "none")
  scaling = None
  if kind in ("linear", "yarn"):
    scaling = {
      "rope_type": kind,
      "factor": fields.number("rope.scaling.factor"),
    }
    # Linear scaling does not depend on it.
    original = fields.get("rope.scaling.original_context_length")
    if kind == "yarn":
      if type(original) is not int:
        raise fields.unsupported(
          "rope.scaling.original_context_length",
          original,
          "yarn needs it; get the model's safetensors",
        )
      scaling["original_max_position_embeddings"] = original
      for key in ("beta_fast", "beta_slow"):
        if fields.get(f"rope.scaling.yarn_{key}") is not None:
          scaling[key] = fields.number(f"rope.scaling.yarn_{key}")
  else:
    fields.expect("rope.scaling.type", "none")
  if _ROPE_FACTORS not in fields.header.tensors:
    return scaling
  llama3 = _llama3_scaling(
    read_tensor(_ROPE_FACTORS),
    theta=config["rope_theta"],
    head_dim=config["head_dim"],
  )
  if scaling is not None or llama3 is None:
    raise fields.unsupported(
      _ROPE_FACTORS,
      "a list of factors",
      "they are not Llama 3's scaling; get the model's safetensors",
    )
  return llama3 if llama3["factor"] != 1 else None


def _llama3_scaling(
  factors: np.ndarray, *, theta: float, head_dim: int
) -> dict[str, Any] | None:
  """Llama 3's scaling with these factors; None if they are not its."""
  low, high, original = 1.0, 4.0, 8192
  factor = float(np.max(factors))
  if factors.shape != (head_dim // 2,):
    return None
  wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
  smooth = np.clip((original / wavelength - low) / (high - low), 0, 1)
  expected = 1 / ((1 - smooth) / factor + smooth)
  if not np.allclose(factors, expected, rtol=1e-4, atol=0):
    return None
  return {
    "rope_type": "llama3",
    "factor": factor,
    "low_freq_factor": low,
    "high_freq_factor": high,
    "original_max_position_embeddings": original,
  }
