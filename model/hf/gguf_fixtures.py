"""Tiny GGUF files for tests, written as llama.cpp's converter does."""

import pathlib
from typing import Any

import gguf
import ml_dtypes
import numpy as np

NUM_LAYERS, VOCAB, HIDDEN, FEED_FORWARD = 2, 40, 32, 64
NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 4, 2, 8
# Integers are written as uint32 and floats as float32, as the converter does.
METADATA = {
  "block_count": NUM_LAYERS,
  "context_length": 256,
  "embedding_length": HIDDEN,
  "feed_forward_length": FEED_FORWARD,
  "attention.head_count": NUM_HEADS,
  "attention.head_count_kv": NUM_KV_HEADS,
  "attention.layer_norm_rms_epsilon": 1e-5,
  "rope.freq_base": 500_000.0,
}
_SHAPES = {
  "attn_norm.weight": (HIDDEN,),
  "attn_q.weight": (NUM_HEADS * HEAD_DIM, HIDDEN),
  "attn_k.weight": (NUM_KV_HEADS * HEAD_DIM, HIDDEN),
  "attn_v.weight": (NUM_KV_HEADS * HEAD_DIM, HIDDEN),
  "attn_output.weight": (HIDDEN, NUM_HEADS * HEAD_DIM),
  "ffn_norm.weight": (HIDDEN,),
  "ffn_gate.weight": (FEED_FORWARD, HIDDEN),
  "ffn_up.weight": (FEED_FORWARD, HIDDEN),
  "ffn_down.weight": (HIDDEN, FEED_FORWARD),
}
_BIASES = {
  "attn_q.bias": (NUM_HEADS * HEAD_DIM,),
  "attn_k.bias": (NUM_KV_HEADS * HEAD_DIM,),
  "attn_v.bias": (NUM_KV_HEADS * HEAD_DIM,),
}
_NORMS = {
  "attn_q_norm.weight": (HEAD_DIM,),
  "attn_k_norm.weight": (HEAD_DIM,),
}
_EXTRA = {"llama": {}, "qwen2": _BIASES, "qwen3": _NORMS}
OUTPUT_BIAS = {"attn_output.bias": (HIDDEN,)}
ATTENTION_BIASES = _BIASES | OUTPUT_BIAS


def make_tensors(architecture: str, **layer: Any) -> dict[str, np.ndarray]:
  """Random float32 tensors by llama.cpp's names, in Hugging Face's order."""
  shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCAB, HIDDEN)}
  each = _SHAPES | _EXTRA[architecture] | layer
  for index in range(NUM_LAYERS):
    shapes |= {f"blk.{index}.{name}": shape for name, shape in each.items()}
  shapes["output_norm.weight"] = (HIDDEN,)
  rng = np.random.default_rng(0)
  return {
    name: rng.normal(size=shape).astype(np.float32)
    for name, shape in shapes.items()
  }


def permute(rows: np.ndarray, num_heads: int) -> np.ndarray:
  """q or k as llama.cpp wants it: dims i and i + H/2 become neighbours."""
  halves = rows.reshape(num_heads, 2, -1, *rows.shape[1:])
  return halves.swapaxes(1, 2).reshape(rows.shape)


def write(
  file: pathlib.Path,
  tensors: dict[str, np.ndarray],
  *,
  architecture: str = "llama",
  metadata: dict[str, Any] | None = None,
  kinds: dict[str, gguf.GGMLQuantizationType] | None = None,
) -> pathlib.Path:
  """Writes a file.

  Args:
    file: where.
    tensors: by llama.cpp's names.
    architecture: llama.cpp's name; of llama, q and k are permuted.
    metadata: over METADATA, by the key after the architecture's; None leaves
      one out, and a key that begins with a slash is a whole key.
    kinds: how a tensor is stored, if not as float32.
  """
  writer = gguf.GGUFWriter(file, architecture)
  for key, value in (METADATA | (metadata or {})).items():
    full = key[1:] if key.startswith("/") else f"{architecture}.{key}"
    if isinstance(value, bool):
      writer.add_bool(full, value)
    elif isinstance(value, int):
      writer.add_uint32(full, value)
    elif isinstance(value, float):
      writer.add_float32(full, value)
    elif isinstance(value, str):
      writer.add_string(full, value)
    elif value is not None:
      writer.add_array(full, value)
  for name, array in tensors.items():
    if architecture == "llama" and ".attn_q." in name:
      array = permute(array, NUM_HEADS)
    elif architecture == "llama" and ".attn_k." in name:
      array = permute(array, NUM_KV_HEADS)
    kind = (kinds or {}).get(name, gguf.GGMLQuantizationType.F32)
    match kind:
      case gguf.GGMLQuantizationType.F32:
        stored = array
      case gguf.GGMLQuantizationType.F16:
        stored = array.astype(np.float16)
      case gguf.GGMLQuantizationType.BF16:
        stored = array.astype(ml_dtypes.bfloat16).view(np.uint8)
      case gguf.GGMLQuantizationType.I8:
        stored = array.astype(np.int8)
      case _:
        stored = gguf.quantize(array, kind)
    writer.add_tensor(name, stored, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return file
