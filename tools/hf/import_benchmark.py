"""What an import and an export cost beside a copy: a line of JSON per case.

  bazel run -c opt //tools/hf:import_benchmark

Makes a Llama of random bfloat16 weights (1.1 GB) in a temporary folder.
`copy` reads the file and writes it again, with fsync; every case reads from the
page cache. Memory is how much more than before a case took, at its peak;
`largest` is the largest tensor. The parts are what is done to every tensor, one
after the other, in one thread.
"""

from collections.abc import Callable
import json
import os
import pathlib
import tempfile
import time
from typing import Any

from absl import app
from absl import flags
import ml_dtypes
import numpy as np

from model import streaming
from model.hf import importer
from model.hf import name_map
from model.hf import tensors
from tools.hf import exporter
from tools.hf import safetensors_writer

_NUM_LAYERS = flags.DEFINE_integer("num_layers", 6, "Each of 134 MB.")
_FOLDER = flags.DEFINE_string("folder", None, "Where, if not in the usual one.")

_VOCAB, _HIDDEN, _MLP, _HEADS = 32_768, 2_048, 8_192, 16
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_COPIED_AT_ONCE = 16 * 2**20


def _shapes(num_layers: int) -> dict[str, tuple[int, ...]]:
  layer: dict[str, tuple[int, ...]] = {
    "input_layernorm": (_HIDDEN,),
    "post_attention_layernorm": (_HIDDEN,),
    "mlp.gate_proj": (_MLP, _HIDDEN),
    "mlp.up_proj": (_MLP, _HIDDEN),
    "mlp.down_proj": (_HIDDEN, _MLP),
  }
  for letter in "qkvo":
    layer[f"self_attn.{letter}_proj"] = (_HIDDEN, _HIDDEN)
  shapes: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (_VOCAB, _HIDDEN),
    "model.norm.weight": (_HIDDEN,),
    "lm_head.weight": (_VOCAB, _HIDDEN),
  }
  for i in range(num_layers):
    for name, shape in layer.items():
      shapes[f"model.layers.{i}.{name}.weight"] = shape
  return shapes


def _make(folder: pathlib.Path, num_layers: int) -> None:
  """Writes the model; its matrices are parts of the same random numbers."""
  config = {
    "model_type": "llama",
    "vocab_size": _VOCAB,
    "hidden_size": _HIDDEN,
    "intermediate_size": _MLP,
    "num_hidden_layers": num_layers,
    "num_attention_heads": _HEADS,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
  }
  rng = np.random.default_rng(0)
  numbers = rng.normal(size=_VOCAB * _HIDDEN).astype(_BFLOAT16)
  specs = {
    name: tensors.Spec(shape=shape, dtype=_BFLOAT16)
    for name, shape in _shapes(num_layers).items()
  }
  with safetensors_writer.Writer(folder, specs) as writer:
    for name, spec in specs.items():
      size = spec.num_bytes // _BFLOAT16.itemsize
      writer.write(name, numbers[:size].reshape(spec.shape))
    (writer.partial / "config.json").write_text(json.dumps(config))


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
  with source.open("rb") as reader, target.open("wb") as writer:
    while content := reader.read(_COPIED_AT_ONCE):
      writer.write(content)
    writer.flush()
    os.fsync(writer.fileno())


def _memory(field: str) -> int:
  """Bytes, by /proc/self/status: VmRSS, or VmHWM for the peak."""
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    if line.startswith(f"{field}:"):
      return int(line.split()[1]) * 1024
  raise AssertionError(field)


def _report(case: str, num_bytes: int, function: Callable[[], Any]) -> None:
  # Forget the peak up to now.
  pathlib.Path("/proc/self/clear_refs").write_text("5")
  before = _memory("VmRSS")
  wall, cpu = time.perf_counter(), time.process_time()
  function()
  wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
  result = {
    "case": case,
    "wall_seconds": round(wall, 3),
    "cpu_seconds": round(cpu, 3),
    "mb_per_second": round(num_bytes / 1e6 / wall),
    "mb_per_cpu_second": round(num_bytes / 1e6 / cpu),
    "memory_mb": round((_memory("VmHWM") - before) / 1e6),
  }
  print(json.dumps(result), flush=True)


def _report_parts() -> None:
  """The costs of the CPU, on a matrix of the largest size."""
  rng = np.random.default_rng(0)
  theirs = rng.normal(size=(_VOCAB, _HIDDEN)).astype(_BFLOAT16)
  ours = np.ascontiguousarray(theirs.T)
  rule = name_map.Rule(theirs="lm_head.weight", ours=("head_DV",))
  for case, function in (
    ("check_finite", lambda: tensors.check_finite("x", theirs)),
    ("transpose", lambda: rule.to_ours(theirs, [ours.shape])),
    ("transpose back", lambda: rule.to_theirs([ours])),
    ("transpose by numpy", lambda: np.ascontiguousarray(theirs.T)),
    ("digest", lambda: streaming.digest(ours, (), ours.shape)),
  ):
    _report(case, theirs.nbytes, function)


def main(argv: list[str]) -> None:
  """Measures each case."""
  del argv
  with tempfile.TemporaryDirectory(dir=_FOLDER.value) as temporary:
    root = pathlib.Path(temporary)
    _make(root / "model", _NUM_LAYERS.value)
    file = root / "model" / "model.safetensors"
    num_bytes = file.stat().st_size
    largest = _VOCAB * _HIDDEN * _BFLOAT16.itemsize
    print(json.dumps({"bytes": num_bytes, "largest": largest}), flush=True)
    # What is compiled once is not to count.
    streaming.digest(np.zeros(streaming.DIGEST_CHUNK, _BFLOAT16), (), (1,))
    _report("copy", num_bytes, lambda: _copy(file, root / "copy"))
    _report(
      "import",
      num_bytes,
      lambda: importer.run(root / "model", root / "imported"),
    )
    _report(
      "export",
      num_bytes,
      lambda: exporter.run(root / "imported", root / "exported"),
    )
  _report_parts()


if __name__ == "__main__":
  app.run(main)
