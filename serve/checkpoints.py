"""The model that is served: of a training run, or imported on the fly."""

import dataclasses
import hashlib
import os
import pathlib
import tempfile
from typing import Any, Literal

from absl import logging
import jax

from data import tokenizer as tokenizer_lib
from model import checkpoint
from model import config as model_config
from serve import conventions
from serve import imports

# What a user can mend: a path, a damaged file, a setting.
ERRORS = (ValueError, checkpoint.CorruptCheckpointError)

# A run may delete a step that was just found.
_MAX_TRIES = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """A model ready to be served.

  Attributes:
    name: What it calls itself.
    config: What the parameters belong to.
    execution: How it is computed: with the server's compute dtype, the
      parameters' own, and nothing that was chosen for the trainer's machine.
    params: On `mesh`.
    mesh: Where.
    step: Of training, at which it was saved; 0 if it was imported.
    tokenizer: Folder with its tokenizer and chat template, which stays when the
      checkpoint is deleted. None: it has none, so that only token ids can be
      asked and answered.
    end_ids: Tokens that end a text.
    start: What comes before a text that is to be continued.
    generation: How it is sampled where a request says nothing.
  """

  name: str
  config: model_config.ModelConfig
  execution: model_config.ExecutionConfig
  params: dict[str, Any]
  mesh: jax.sharding.Mesh
  step: int = 0
  tokenizer: pathlib.Path | None = None
  end_ids: frozenset[int] = frozenset()
  start: conventions.Start = conventions.Start.AFTER_END
  generation: conventions.Generation = conventions.Generation()


def default_import_folder() -> pathlib.Path:
  """Where imported models are kept, unless the user names another folder."""
  cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(cache).expanduser() / "cacao" / "imported"


def load(
  path: pathlib.Path,
  *,
  mesh: jax.sharding.Mesh,
  compute_dtype: Literal["float32", "bfloat16"],
  import_folder: pathlib.Path,
  keep_imports: int = imports.KEPT,
) -> Model:
  """Loads and verifies the model at `path`; only its parameters are read.

  Args:
    path: A run's workdir, its checkpoints folder or one step in it; or a
      folder with config.json and safetensors, or a .gguf file, which is
      imported first.
    mesh: Each device reads its own shards.
    compute_dtype: Of activations.
    import_folder: Keeps what was imported for the next start, and tokenizers.
    keep_imports: So many imports stay there, those that were used last.

  Raises:
    ValueError: There is no model at `path`, or it cannot be served.
    CorruptCheckpointError: It is damaged.
  """
  settings: dict[str, Any] = {
    "mesh": mesh,
    "compute_dtype": compute_dtype,
    "import_folder": import_folder,
  }
  if is_foreign(path):
    model = _load_foreign(path, keep=keep_imports, **settings)
  else:
    model = _load_newest(path, **settings)
  if model.tokenizer is None:
    logging.warning(
      "%s has no tokenizer: only token ids can be asked and answered.", path
    )
  return model


def load_step(
  folder: pathlib.Path,
  *,
  mesh: jax.sharding.Mesh,
  compute_dtype: Literal["float32", "bfloat16"],
  import_folder: pathlib.Path,
) -> Model:
  """Loads one step directory; the rest as `load`."""
  bundle = checkpoint.load(folder, mesh)
  meta = bundle.meta
  tokenizer = None
  kept = _keep_tokenizer(meta, import_folder)
  if kept is not None:
    tokenizer = tokenizer_lib.Tokenizer.load(kept)
  return Model(
    name=bundle.config.name,
    config=bundle.config,
    execution=model_config.ExecutionConfig(
      compute_dtype=compute_dtype, param_dtype=meta.execution.param_dtype
    ),
    params=bundle.params,
    mesh=mesh,
    step=bundle.step,
    tokenizer=kept,
    end_ids=conventions.end_ids(meta, tokenizer),
    start=conventions.start(meta),
    generation=conventions.generation(meta),
  )


def is_foreign(path: pathlib.Path) -> bool:
  """Whether it is a model in somebody else's form, to be imported.

  A run's workdir has a config.json, too, but no weights beside it.
  """
  if path.is_dir():
    return any(file.suffix in imports.WEIGHTS for file in path.iterdir())
  return path.suffix == ".gguf"


def _load_newest(path: pathlib.Path, **settings: Any) -> Model:
  """Loads the newest step, which a run may delete meanwhile."""
  for _ in range(_MAX_TRIES):
    folder = _find(path)
    try:
      return load_step(folder, **settings)
    except ERRORS:
      if folder.exists():
        raise
  raise ValueError(
    f"--checkpoint={path}: its steps are deleted faster than they can be read;"
    " let the run keep more of them (checkpoint.keep)."
  )


def _find(path: pathlib.Path) -> pathlib.Path:
  try:
    return checkpoint.find(path).resolve()
  except ValueError as error:
    raise ValueError(
      f"--checkpoint={path} holds no model; name a run's workdir, its"
      " checkpoints folder or one step in it, a folder with config.json and"
      " safetensors, or a .gguf file."
    ) from error


def _load_foreign(path: pathlib.Path, *, keep: int, **settings: Any) -> Model:
  """Loads an import, which is made anew if it turns out to be damaged."""
  folder = settings["import_folder"]
  with imports.hold(path, folder, keep=keep) as found:
    try:
      return load_step(found.step, **settings)
    except ERRORS as error:
      if found.is_new:
        raise
      logging.warning(
        "%s cannot be used and is made again: %s", found.step, error
      )
  imports.delete(found)
  with imports.hold(path, folder, keep=keep) as found:
    return load_step(found.step, **settings)


def _keep_tokenizer(
  meta: checkpoint.Meta, import_folder: pathlib.Path
) -> pathlib.Path | None:
  """Copies a checkpoint's tokenizer to where no training run deletes it."""
  files = tokenizer_files(meta)
  if not files:
    return None
  digest = hashlib.sha256()
  for name, content in sorted(files.items()):
    digest.update(f"{name}\n{len(content)}\n".encode())
    digest.update(content)
  place = import_folder / "tokenizers" / digest.hexdigest()[:32]
  if place.is_dir():
    return place
  try:
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
      work = pathlib.Path(scratch, "tokenizer")
      checkpoint.write_files(work, files)
      _rename_new(work, place)
  except OSError as error:
    raise ValueError(
      f"The tokenizer cannot be copied into {place.parent}: {error}; choose"
      " another folder (--import_folder), or make room there."
    ) from error
  return place


def _rename_new(work: pathlib.Path, place: pathlib.Path) -> None:
  """Renames a folder; another one that is there already stays."""
  try:
    work.rename(place)
  except OSError:
    if not place.is_dir():
      raise


def tokenizer_files(meta: checkpoint.Meta) -> dict[str, bytes]:
  """A checkpoint's tokenizer: content by name."""
  prefix = f"{checkpoint.TOKENIZER_FOLDER}/"
  return {
    name.removeprefix(prefix): content
    for name, content in meta.files.items()
    if name.startswith(prefix)
  }
