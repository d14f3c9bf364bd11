"""The mean of a run's last checkpoints, as a checkpoint of its own.

    bazel run //tools/average -- --checkpoint=DIR --last=5 --output=DIR

While the learning rate is still high, averaging weights does in part what
decaying it does (arXiv:1803.05407, arXiv:2306.03241). What is averaged is each
checkpoint's `params`: the weights that its run evaluates. Sums are float32.
Tensors are read one by one, and of stacked layers one layer at a time: memory
stays near the largest of them. The digests of all that is read are checked.
"""

import json
import pathlib
from typing import Any

from absl import flags
import numpy as np

from model import checkpoint
from model import sharding
from model import streaming
from model import transformer
from tools import command_line

_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", "", "A run's workdir or its checkpoints."
)
_LAST = flags.DEFINE_integer(
  "last", 5, "How many of the newest to average.", lower_bound=1
)
_STEPS = flags.DEFINE_list(
  "steps", [], "Steps to average, instead of the newest: 1000,2000."
)
_OUTPUT = flags.DEFINE_string("output", "", "Folder of the new checkpoint.")

AVERAGE_FILE = "average.json"


def choose(path: pathlib.Path, *, last: int, steps: list[int]) -> list[int]:
  """The steps to average, ascending.

  Args:
    path: A folder of checkpoints.
    last: How many of the newest.
    steps: These instead, if there are any.

  Raises:
    ValueError: They are not there.
  """
  found = checkpoint.steps(path)
  missing = sorted(set(steps) - set(found))
  if missing:
    raise ValueError(
      f"--steps: {missing} are not in {path}, which has {found}; name steps "
      "that it has."
    )
  if not steps and len(found) < last:
    raise ValueError(
      f"--last={last}, but {path} has {len(found)} checkpoints, {found}; ask "
      "for as many, or keep more of them (checkpoint.keep)."
    )
  return sorted(set(steps)) or found[-last:]


def average(folders: list[pathlib.Path], output: pathlib.Path) -> pathlib.Path:
  """Writes the mean of checkpoints of one model; named after the last's step.

  Args:
    folders: Step directories.
    output: Gets a step directory.

  Raises:
    ValueError: They are of different models, or `output` cannot be written.
    CorruptCheckpointError: One is damaged.
  """
  metas = [checkpoint.read_meta(folder) for folder in folders]
  _check_same(folders, metas)
  newest = metas[-1]
  _, shapes = transformer.abstract(newest.model, newest.execution)
  readers = [streaming.Reader(folder) for folder in folders]
  digests = [dict[str, Any]() for _ in folders]
  step = int(folders[-1].name)
  with streaming.Writer(output, shapes, step=step) as writer:
    for name, leaf in sharding.named_leaves(shapes).items():
      own_dims = len(sharding.param_dims(name.rpartition(".")[2]))
      # A layer at a time, where layers are stacked.
      indices = list(np.ndindex(leaf.shape[: leaf.ndim - own_dims]))
      sums = np.zeros((len(folders), 2), np.uint32)
      for index in indices:
        total = np.zeros(leaf.shape[len(index) :], np.float32)
        for i, reader in enumerate(readers):
          with reader.open(name) as slices:
            value = slices.read(index)
          sums[i] += streaming.digest(value, index, leaf.shape)
          total += value.astype(np.float32)
        mean = (total / np.float32(len(folders))).astype(writer.dtype(name))
        writer.write(name, index, mean)
      for i, pair in enumerate(sums):
        digests[i][name] = checkpoint.to_hex(pair)
    for folder, meta, got in zip(folders, metas, digests, strict=True):
      _check_digests(got, meta, folder)
    prefix = f"{checkpoint.TOKENIZER_FOLDER}/"
    return writer.finish(
      {
        checkpoint.CONFIG_FILE: newest.json(checkpoint.CONFIG_FILE),
        AVERAGE_FILE: {"steps": [int(folder.name) for folder in folders]},
      },
      tokenizer={
        name.removeprefix(prefix): content
        for name, content in newest.files.items()
        if name.startswith(prefix)
      },
    )


def _check_same(folders, metas) -> None:
  for folder, meta in zip(folders, metas, strict=True):
    if (meta.model, meta.execution.param_dtype) != (
      metas[-1].model,
      metas[-1].execution.param_dtype,
    ):
      raise ValueError(
        f"{folder} and {folders[-1]} are of different models; average "
        "checkpoints of one."
      )


def _check_digests(got: dict[str, str], meta, folder) -> None:
  for name, digest in got.items():
    if meta.array_digests.get(f"params.{name}") != digest:
      raise checkpoint.CorruptCheckpointError(
        f"{folder}: {name} is not as it was saved (digests differ); leave that "
        "step out with --steps, or restore it from a copy."
      )


def main() -> None:
  """Averages what the flags name."""
  path = command_line.user_path(_CHECKPOINT.value)
  if (path / "checkpoints").is_dir():
    path = path / "checkpoints"
  try:
    wanted = [int(step) for step in _STEPS.value]
  except ValueError as error:
    raise ValueError(
      f"--steps={','.join(_STEPS.value)} must be numbers, such as 1000,2000."
    ) from error
  steps = choose(path, last=_LAST.value, steps=wanted)
  folder = average(
    [path / str(step) for step in steps],
    command_line.user_path(_OUTPUT.value),
  )
  print(f"{folder}: the mean of {json.dumps(steps)}")


if __name__ == "__main__":
  command_line.run(
    main,
    required=("checkpoint", "output"),
    errors=(ValueError, checkpoint.CorruptCheckpointError),
  )
