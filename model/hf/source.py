"""What is imported: a Hugging Face folder, or a GGUF file, as one thing."""

from collections.abc import Callable
import dataclasses
import json
import pathlib
import tempfile
from typing import Any

from model.hf import gguf_file
from model.hf import gguf_tokenizer
from model.hf import safetensors_folder
from model.hf import tensors

# Files that belong to a tokenizer, as Transformers writes and reads them.
TOKENIZER_FILES = (
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "chat_template.jinja",
  "chat_template.json",
  "vocab.json",
  "merges.txt",
  "tokenizer.model",
)
GENERATION_CONFIG = "generation_config.json"

# Reads the tokenizer in a folder; the number of its ids. Raises a ValueError if
# it cannot be read. Tokenizers are not the model's business: whoever imports
# one brings what will read it.
CountIds = Callable[[pathlib.Path], int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """A model in somebody else's form.

  Attributes:
    path: Where it is.
    config: The content of its config.json.
    described_by: The file that `config` is from.
    tensors: Its weights, by Hugging Face's names.
    tokenizer: The tokenizer's files, by name; empty if it has none.
    generation_config: How it is meant to be sampled; None if it does not say.
  """

  path: pathlib.Path
  described_by: pathlib.Path
  config: dict[str, Any]
  tensors: tensors.Tensors
  tokenizer: dict[str, bytes]
  generation_config: dict[str, Any] | None


def open_source(
  path: pathlib.Path, *, config_file: str = "config.json"
) -> Source:
  """Opens a folder with config.json and safetensors, or a .gguf or its folder.

  Only headers are read.

  Raises:
    ValueError: A file is missing or damaged.
  """
  if path.suffix == ".gguf" or (path.is_dir() and _holds_gguf_only(path)):
    file = gguf_file.open_gguf(path)
    # Beside the file, or else in it.
    files = _read_files(path if path.is_dir() else path.parent, TOKENIZER_FILES)
    if "tokenizer.json" not in files:
      found = gguf_tokenizer.files(file.metadata, file=path)
      files = {name: content.encode() for name, content in found.items()}
    return Source(
      path=path,
      described_by=path,
      config=file.config,
      tensors=file,
      tokenizer=files,
      generation_config=None,
    )
  config = read_json(path / config_file)
  if config is None:
    raise ValueError(
      f"{path / config_file} does not exist; name a folder with config.json "
      "and safetensors, or a .gguf file."
    )
  return Source(
    path=path,
    described_by=path / config_file,
    config=config,
    tensors=safetensors_folder.open_folder(path),
    tokenizer=_read_files(path, TOKENIZER_FILES),
    generation_config=read_json(path / GENERATION_CONFIG),
  )


def check_tokenizer(
  source: Source, vocab_size: int, *, count_ids: CountIds
) -> None:
  """Refuses a tokenizer that cannot be read or has ids without embeddings.

  Special tokens behind the vocabulary are let pass: the text models of Gemma 3
  have the tokenizer of those that see, with a token that stands for an image.

  Args:
    source: Its tokenizer is checked, if it has one.
    vocab_size: Of the model.
    count_ids: Reads the tokenizer.

  Raises:
    ValueError: Says which.
  """
  if "tokenizer.json" not in source.tokenizer:
    return
  with tempfile.TemporaryDirectory() as folder:
    for name, content in source.tokenizer.items():
      pathlib.Path(folder, name).write_bytes(content)
    try:
      size = count_ids(pathlib.Path(folder))
    except ValueError as error:
      message = str(error).replace(folder, str(source.path))
      raise ValueError(f"{source.path}: {message}") from error
  added = json.loads(source.tokenizer["tokenizer.json"]).get("added_tokens")
  special = {token["id"] for token in added or () if token.get("special")}
  while size - 1 in special:
    size -= 1
  if size > vocab_size:
    raise ValueError(
      f"{source.path / 'tokenizer.json'} has ids up to {size - 1}, but the "
      f"model's vocab_size is {vocab_size}: it is the tokenizer of another "
      "model. Put the right one there, or remove it to import without one."
    )


def read_json(file: pathlib.Path) -> dict[str, Any] | None:
  """The object in a JSON file; None if there is no such file.

  Raises:
    ValueError: It holds something else.
  """
  if not file.is_file():
    return None
  try:
    value = json.loads(file.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{file} is not JSON: {error}.") from error
  if not isinstance(value, dict):
    raise ValueError(f"{file} holds no JSON object.")
  return value


def _holds_gguf_only(folder: pathlib.Path) -> bool:
  return any(folder.glob("*.gguf")) and not (folder / "config.json").exists()


def _read_files(
  folder: pathlib.Path, names: tuple[str, ...]
) -> dict[str, bytes]:
  return {
    name: (folder / name).read_bytes()
    for name in names
    if (folder / name).is_file()
  }
