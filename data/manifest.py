"""The layout of a tokenized dataset: what is in its directory.

    manifest.json                       written last: the dataset is whole
    shard-00000-of-00004.array_record   the tokens
    shard-00000-of-00004.documents.npy  int64 length of each document

A record is up to `record_tokens` token ids, little-endian `dtype`. A document
is its ids and then `eos_id`, cut into records that never hold parts of two
documents, so a document of n tokens is ceil(n / record_tokens) records and the
lengths alone say where every token is.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

FORMAT = "cacao-tokens"
VERSION = 1
FILE = "manifest.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
  """One shard.

  Attributes:
    num_empty: documents of the input that had no text, and were left out.
    num_dropped: documents with text that were left out on purpose.
    num_bytes: UTF-8 text that the tokens stand for, without the eos.
    tokens_sha256: digest of the token ids, whatever the container's bytes are.
    records_size, records_sha256: of the .array_record file, in bytes.
    documents_size, documents_sha256: of the .documents.npy file.
  """

  name: str
  num_documents: int
  num_empty: int
  num_tokens: int
  num_bytes: int
  tokens_sha256: str
  records_size: int
  records_sha256: str
  documents_size: int
  documents_sha256: str
  num_dropped: int = 0

  @property
  def records_file(self) -> str:
    return f"{self.name}.array_record"

  @property
  def documents_file(self) -> str:
    return f"{self.name}.documents.npy"

  def damage(self, directory: pathlib.Path, *, digests: bool) -> str:
    """What is wrong with the shard's files; empty if nothing.

    Args:
      directory: where the files are.
      digests: also read the files whole and compare their sha256.
    """
    for name, size, digest in (
      (self.records_file, self.records_size, self.records_sha256),
      (self.documents_file, self.documents_size, self.documents_sha256),
    ):
      file = directory / name
      if not file.is_file():
        return f"{file} is missing"
      if file.stat().st_size != size:
        return f"{file} has {file.stat().st_size} bytes, not {size}"
      if digests and sha256(file) != digest:
        return f"{file} does not have the sha256 {digest}"
    return ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
  """What a dataset holds.

  Attributes:
    tokenizer: fingerprint of the tokenizer that made it.
    vocab_size: of that tokenizer; every id is smaller.
    eos_id: ends every document.
    dtype: of the ids, "uint16" or "uint32".
    record_tokens: most tokens in a record.
    shards: in the order of the token stream.
    screening: what was looked for in the documents, and how many were left out
      why; empty if all were taken.
  """

  tokenizer: str
  vocab_size: int
  eos_id: int
  dtype: str
  record_tokens: int
  shards: tuple[Shard, ...]
  screening: dict[str, Any] = dataclasses.field(default_factory=dict)
  format: str = FORMAT
  version: int = VERSION

  @property
  def num_documents(self) -> int:
    return sum(shard.num_documents for shard in self.shards)

  @property
  def num_tokens(self) -> int:
    return sum(shard.num_tokens for shard in self.shards)

  @property
  def num_bytes(self) -> int:
    return sum(shard.num_bytes for shard in self.shards)

  @property
  def digest(self) -> str:
    """sha256 of the token stream and its documents, not of the containers."""
    content = [self.tokenizer, self.eos_id]
    content += [[s.num_documents, s.tokens_sha256] for s in self.shards]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()

  def save(self, directory: pathlib.Path) -> None:
    """Writes manifest.json, whole or not at all."""
    totals = {
      "num_documents": self.num_documents,
      "num_tokens": self.num_tokens,
      "num_bytes": self.num_bytes,
    }
    content = {"totals": totals, **dataclasses.asdict(self)}
    write_atomically(directory / FILE, json.dumps(content, indent=1) + "\n")


def load(directory: str | pathlib.Path) -> Manifest:
  """Reads a dataset's manifest.

  Raises:
    ValueError: there is none, or it is not one of ours.
  """
  directory = pathlib.Path(directory)
  file = directory / FILE
  if not file.is_file():
    state = "exists but has no" if directory.is_dir() else "does not exist: no"
    raise ValueError(
      f"dataset {str(directory)!r} {state} {FILE}; make or finish it with"
      " //tools/tokenize"
    )
  try:
    content = json.loads(file.read_text(encoding="utf-8"))
    del content["totals"]
    shards = tuple(Shard(**shard) for shard in content.pop("shards"))
    manifest = Manifest(shards=shards, **content)
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise ValueError(
      f"{file} is not a dataset manifest ({error!r}); make the dataset again"
      " with //tools/tokenize"
    ) from error
  if (manifest.format, manifest.version) != (FORMAT, VERSION):
    raise ValueError(
      f"{file} has format {manifest.format} {manifest.version}; this version"
      f" reads {FORMAT} {VERSION}: make the dataset again with //tools/tokenize"
    )
  return manifest


def sha256(file: pathlib.Path) -> str:
  """Digest of a file's content."""
  with file.open("rb") as stream:
    return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(file: pathlib.Path, text: str) -> None:
  """Writes a text file that is never seen half-written, even after a crash."""
  partial = file.with_name(file.name + ".partial")
  with partial.open("w", encoding="utf-8") as stream:
    stream.write(text)
    stream.flush()
    os.fsync(stream.fileno())
  partial.replace(file)
