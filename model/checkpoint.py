"""A model on disk: parameters, configuration and tokenizer.

A checkpoint is one directory, written by Orbax through Tensorstore and renamed
into place when complete:

  <step>/params/      the parameter tree (read without the rest by servers)
  <step>/optimizer/   step count and optimizer state (trainer only)
  <step>/meta/        config.json, data.json, digests.json, tokenizer/

Orbax does not notice a flipped bit in an array, so every array has a digest of
its own, and so has every file in meta/. An array's is computed on the devices
and is a sum, so that it is the same for any mesh and any sharding. They are
checked on every load.
"""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from model import config as model_config
from model import schema
from model import sharding
from model import transformer

CONFIG_FILE = "config.json"
DATA_FILE = "data.json"
DIGESTS_FILE = "digests.json"
TOKENIZER_FOLDER = "tokenizer"

_REMEDY = (
  "The files were damaged after they were saved; restore them from a copy, or "
  "use an earlier step."
)


class CorruptCheckpointError(Exception):
  """A checkpoint cannot be read, or its content is not what was written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bundle:
  """A loaded model.

  Attributes:
    config: What the parameters belong to.
    params: The parameter tree, on the mesh it was loaded for.
    tokenizer: Folder with its tokenizer, or None if it has none.
    step: Training step at which it was saved.
    meta: The files beside its arrays.
  """

  config: model_config.ModelConfig
  params: dict[str, Any]
  tokenizer: pathlib.Path | None
  step: int
  meta: "Meta"


class FilesHandler(ocp.CheckpointHandler):
  """An Orbax item that is a folder of small files: {relative path: bytes}."""

  def save(self, directory, args: "SaveFiles"):
    """Writes the files; on several hosts, the first one's."""
    if jax.process_index() != 0:
      return
    write_files(pathlib.Path(directory), args.files)

  def restore(self, directory, args: "RestoreFiles | None" = None):
    """Reads all files back."""
    del args
    root = pathlib.Path(directory)
    return {
      str(path.relative_to(root)): path.read_bytes()
      for path in sorted(root.rglob("*"))
      if path.is_file()
    }


@ocp.args.register_with_handler(FilesHandler, for_save=True)
@dataclasses.dataclass
class SaveFiles(ocp.args.CheckpointArgs):
  """Files to save, by path relative to the item's folder."""

  files: dict[str, bytes]


@ocp.args.register_with_handler(FilesHandler, for_restore=True)
@dataclasses.dataclass
class RestoreFiles(ocp.args.CheckpointArgs):
  """Asks for all files of the item."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meta:
  """The `meta` item of a checkpoint, verified.

  Attributes:
    files: Content by path relative to the item, digests.json left out.
    array_digests: Dotted name -> digest of each array of the checkpoint.
  """

  files: dict[str, bytes]
  array_digests: dict[str, str]

  def json(self, name: str) -> Any:
    """The content of a JSON file."""
    return json.loads(self.files[name])

  @property
  def model(self) -> model_config.ModelConfig:
    """The model that the parameters belong to."""
    return schema.from_dict(
      model_config.ModelConfig, self.json(CONFIG_FILE)["model"], path="model"
    )

  @property
  def execution(self) -> model_config.ExecutionConfig:
    """How it was computed where it was saved."""
    return schema.from_dict(
      model_config.ExecutionConfig,
      self.json(CONFIG_FILE)["execution"],
      path="execution",
    )


def pack_meta(
  values: dict[str, Any], *, arrays: Any, tokenizer: dict[str, bytes]
) -> SaveFiles:
  """The `meta` item to save with a checkpoint.

  Args:
    values: JSON-able content by file name.
    arrays: All arrays of the checkpoint, for their digests.
    tokenizer: The tokenizer's files by name; empty if there is none.
  """
  return SaveFiles(pack_files(values, digests(arrays), tokenizer=tokenizer))


def pack_files(
  values: dict[str, Any],
  array_digests: dict[str, str],
  *,
  tokenizer: dict[str, bytes],
) -> dict[str, bytes]:
  """The files of a `meta` item, for arrays whose digests are known."""
  files = {name: _to_json(value) for name, value in values.items()}
  for name, content in tokenizer.items():
    files[f"{TOKENIZER_FOLDER}/{name}"] = content
  sums = {
    "arrays": array_digests,
    "files": {name: _sha256(content) for name, content in files.items()},
  }
  return files | {DIGESTS_FILE: _to_json(sums)}


def write_files(folder: pathlib.Path, files: dict[str, bytes]) -> None:
  """Writes files into `folder`, by their path relative to it."""
  for name, content in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def read_meta(folder: pathlib.Path) -> Meta:
  """Reads and verifies the `meta` item of a step directory.

  Raises:
    CorruptCheckpointError: A file is missing, unreadable or changed.
  """
  meta = folder / "meta"
  try:
    sums = json.loads((meta / DIGESTS_FILE).read_bytes())
    files = {name: (meta / name).read_bytes() for name in sums["files"]}
    array_digests = dict(sums["arrays"])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise CorruptCheckpointError(
      f"{meta} cannot be read: {error}. {_REMEDY}"
    ) from error
  for name, content in files.items():
    if _sha256(content) != sums["files"][name]:
      raise CorruptCheckpointError(
        f"{meta / name} is not as it was written (digests differ). {_REMEDY}"
      )
  return Meta(files=files, array_digests=array_digests)


def _to_json(value: Any) -> bytes:
  return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _sha256(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()


def digests(tree: Any) -> dict[str, str]:
  """Dotted name -> 64-bit digest of each array's bits, as hex.

  Any change of one element changes the digest; changes of several elements go
  unnoticed with a probability of 2^-64. Not a cryptographic hash.
  """
  leaves = sharding.named_leaves(tree)
  sums = jax.device_get(_digest_all(list(leaves.values())))
  return {name: to_hex(pair) for name, pair in zip(leaves, sums, strict=True)}


def to_hex(sums: np.ndarray) -> str:
  """The two sums of a digest as they are stored."""
  return f"{sums[0]:08x}{sums[1]:08x}"


def check_digests(tree: Any, expected: dict[str, str], *, where: str) -> None:
  """Compares `digests(tree)` with those that were saved.

  Raises:
    CorruptCheckpointError: An array differs; the message names it.
  """
  actual = digests(tree)
  wrong = [n for n in actual if actual[n] != expected.get(n)]
  if wrong:
    raise CorruptCheckpointError(
      f"{where}: {len(wrong)} of {len(actual)} arrays are not as they were "
      f"written (digests differ), the first is {wrong[0]}. {_REMEDY}"
    )


@jax.jit
def _digest_all(leaves):
  return [digest(leaf) for leaf in leaves]


def digest(x: jax.Array, first: int | jax.Array = 0) -> jax.Array:
  """Two uint32 sums over mixed (bits, index) of each element.

  The digest of an array is the sum, modulo 2^32, of its slices' digests.

  Args:
    x: A slice of an array on its leading dims, or all of it.
    first: Index, in row-major order, of its first element in the array.
  """
  if jnp.issubdtype(x.dtype, jnp.floating):
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
  else:
    bits = x
  bits = bits.astype(jnp.uint32)
  index = jnp.zeros(x.shape, jnp.uint32)
  for axis, size in enumerate(x.shape):
    position = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    index = index * jnp.uint32(size % 2**32) + position
  index += jnp.asarray(first).astype(jnp.uint32)
  return jnp.stack([jnp.sum(x) for x in mixed(bits, index)])


def mixed(bits: Any, index: Any) -> tuple[Any, Any]:
  """What each element adds to a digest's two sums.

  Args:
    bits: Of the elements, uint32; of NumPy or of JAX.
    index: In row-major order, of the elements in their array, uint32.
  """
  first = _mix(bits ^ _mix(index + np.uint32(0x9E3779B9)))
  return first, _mix(first)


def _mix(h: Any) -> Any:
  """MurmurHash3's 32-bit finalizer: a bijection that mixes all bits."""
  h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
  h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
  return h ^ (h >> 16)


def steps(checkpoints: pathlib.Path) -> list[int]:
  """Steps of the completed checkpoints in a folder, ascending."""
  if not checkpoints.is_dir():
    return []
  return sorted(int(p.name) for p in checkpoints.iterdir() if p.name.isdigit())


def find(path: pathlib.Path) -> pathlib.Path:
  """The step directory that a user's path means.

  Args:
    path: A step directory, a folder of them, or a run's workdir; of several
      steps the newest is meant.

  Raises:
    ValueError: There is no checkpoint there.
  """
  if (path / "meta").is_dir():
    return path
  for folder in (path, path / "checkpoints"):
    found = steps(folder)
    if found:
      return folder / str(found[-1])
  raise ValueError(
    f"--checkpoint={path} holds no checkpoint; name a run's workdir, its "
    "checkpoints folder or one step in it."
  )


def load(path: pathlib.Path, mesh: jax.sharding.Mesh) -> Bundle:
  """Loads and verifies a model onto a mesh; the optimizer is not read.

  Args:
    path: As `find` takes it.
    mesh: Where the parameters go; need not be the one they were saved from.

  Raises:
    ValueError: There is no checkpoint at `path`.
    CorruptCheckpointError: It cannot be read or is damaged.
  """
  # Resolved, so that `.` and links have the name of what they mean.
  folder = find(path).resolve()
  if not folder.name.isdigit():
    raise ValueError(
      f"--checkpoint={path} is a step directory called {folder.name!r}; its "
      "name must be its step, such as 1000: rename it."
    )
  meta = read_meta(folder)
  config = meta.model
  _, shapes = transformer.abstract(config, meta.execution)
  target = sharding.with_shardings(
    shapes, sharding.param_shardings(shapes, mesh)
  )
  try:
    with ocp.StandardCheckpointer() as checkpointer:
      params = checkpointer.restore(folder.absolute() / "params", target)
  except Exception as error:
    raise CorruptCheckpointError(
      f"{folder}/params cannot be read: {error}"
    ) from error
  check_digests({"params": params}, meta.array_digests, where=str(folder))
  tokenizer = folder / "meta" / TOKENIZER_FOLDER
  return Bundle(
    config=config,
    params=params,
    tokenizer=tokenizer if tokenizer.is_dir() else None,
    step=int(folder.name),
    meta=meta,
  )
