"""A Hugging Face folder or a GGUF file to a checkpoint.

    ./bazelw run //tools/hf:import -- --input=FOLDER --output=DIR

Memory stays near a few tensors, whatever the size of the model.
"""

import pathlib
import resource
from typing import Any

from absl import flags

from data import tokenizer as tokenizer_lib
from model.hf import importer
from tools import command_line

_INPUT = flags.DEFINE_string(
  "input", "", "Folder with config.json and safetensors, or a .gguf file."
)
_OUTPUT = flags.DEFINE_string("output", "", "Folder of the checkpoint.")
_PARAM_DTYPE = flags.DEFINE_enum(
  "param_dtype",
  None,
  ["float32", "bfloat16"],
  "Of the parameters; unset: the one that keeps every bit.",
)
_NAME = flags.DEFINE_string("name", None, "Of the model; unset: the input's.")


def main() -> None:
  """Imports what the flags name."""
  output = command_line.user_path(_OUTPUT.value)
  # One of the enum's.
  param_dtype: Any = _PARAM_DTYPE.value
  result = importer.run(
    command_line.user_path(_INPUT.value),
    output,
    param_dtype=param_dtype,
    name=_NAME.value,
    count_ids=_count_ids,
  )
  tokenizer = "its tokenizer" if result.has_tokenizer else "no tokenizer"
  # Linux counts in KiB.
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  print(
    f"{result.folder}: {result.config.name},"
    f" {result.num_parameters:,} parameters in {result.param_dtype},"
    f" {tokenizer}\n"
    f"{result.num_bytes:,} bytes read in {result.seconds:.1f} s"
    f" ({result.num_bytes / 1e6 / result.seconds:,.0f} MB/s),"
    f" {peak / 1e6:,.0f} MB of memory at most"
  )
  if result.has_tokenizer:
    print(
      f"Try it: ./bazelw run //tools/generate -- --checkpoint={output}"
      " --prompt='Once upon a time'"
    )
  else:
    print(
      "To have text, put the model's own tokenizer.json beside the weights and"
      " import again."
    )


def _count_ids(folder: pathlib.Path) -> int:
  return tokenizer_lib.Tokenizer.load(folder).vocab_size


if __name__ == "__main__":
  command_line.run(main, required=("input", "output"))
