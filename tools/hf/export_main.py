"""A checkpoint to a Hugging Face folder that Transformers and vLLM load.

./bazelw run //tools/hf:export -- --checkpoint=DIR --output=FOLDER
"""

from absl import flags

from model import checkpoint
from tools import command_line
from tools.hf import exporter

_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", "", "A run's workdir, its checkpoints folder, or a step in it."
)
_OUTPUT = flags.DEFINE_string("output", "", "New folder.")
_DTYPE = flags.DEFINE_enum(
  "dtype",
  None,
  ["float32", "bfloat16", "float16"],
  "Of all tensors; unset: as they were imported, or as they are stored.",
)
_MAX_SHARD_GB = flags.DEFINE_float(
  "max_shard_gb", 5.0, "Gigabytes (10^9) in one file.", lower_bound=1e-9
)


def main() -> None:
  """Exports what the flags name."""
  output = command_line.user_path(_OUTPUT.value)
  result = exporter.run(
    command_line.user_path(_CHECKPOINT.value),
    output,
    dtype=_DTYPE.value,
    max_shard_bytes=int(_MAX_SHARD_GB.value * 1e9),
  )
  print(
    f"{output}: {result.architecture}, {result.num_tensors:,} tensors,"
    f" {result.num_bytes:,} bytes in {result.seconds:.1f} s"
    f" ({result.num_bytes / 1e6 / result.seconds:,.0f} MB/s)"
  )
  for part in result.left_out:
    print(f"Left out, as {result.architecture} has no place for it: {part}")


if __name__ == "__main__":
  command_line.run(
    main,
    required=("checkpoint", "output"),
    errors=(ValueError, checkpoint.CorruptCheckpointError),
  )
