"""A tiny Llama in Hugging Face's form, written with its own libraries."""

import json
import pathlib
from typing import Any

import numpy as np
from safetensors import numpy as library
import tokenizers
from tokenizers import models

VOCAB, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, MLP = 32, 8, 2, 2, 1, 4, 12
_LAYER = {
  "input_layernorm": (HIDDEN,),
  "post_attention_layernorm": (HIDDEN,),
  "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
  "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
  "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
  "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
  "mlp.gate_proj": (MLP, HIDDEN),
  "mlp.up_proj": (MLP, HIDDEN),
  "mlp.down_proj": (HIDDEN, MLP),
}


def config(**changes: Any) -> dict[str, Any]:
  """Its config.json."""
  return {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": 1,
  } | changes


def tensors(
  dtype: Any = np.float32, *, vocab: int = VOCAB
) -> dict[str, np.ndarray]:
  """Random tensors, by name."""
  shapes: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (vocab, HIDDEN)
  }
  for layer in range(LAYERS):
    shapes |= {
      f"model.layers.{layer}.{name}.weight": shape
      for name, shape in _LAYER.items()
    }
  shapes |= {
    "model.norm.weight": (HIDDEN,),
    "lm_head.weight": (vocab, HIDDEN),
  }
  rng = np.random.default_rng(0)
  return {
    name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()
  }


def write(
  folder: pathlib.Path,
  arrays: dict[str, np.ndarray],
  *,
  values: dict[str, Any] | None = None,
) -> pathlib.Path:
  """Writes a folder with these tensors and this config.json."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(values or config()))
  library.save_file(
    {name: np.ascontiguousarray(a) for name, a in arrays.items()},
    folder / "model.safetensors",
    metadata={"format": "pt"},
  )
  return folder


def write_tokenizer(folder: pathlib.Path, *, size: int) -> pathlib.Path:
  """Writes a tokenizer of this many words; id 0 is special."""
  folder.mkdir(parents=True, exist_ok=True)
  vocab = {"<eos>": 0} | {f"w{i}": i for i in range(1, size)}
  backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<eos>"))
  backend.add_special_tokens(["<eos>"])
  backend.save(str(folder / "tokenizer.json"))
  return folder


def count_ids(folder: pathlib.Path) -> int:
  """The number of a tokenizer's ids, for `source.check_tokenizer`."""
  try:
    found = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  except Exception as error:  # The Rust binding raises plain Exception.
    raise ValueError(f"{folder} cannot be read: {error}") from error
  return 1 + max(found.get_vocab(True).values())
