"""Opens the sources that a `DataConfig` names, and checks that they agree."""

import collections.abc
import contextlib
import dataclasses
import hashlib
import json

import numpy as np

from data import chunk
from data import config as config_lib
from data import tokenizer as tokenizer_lib
from data.sources import array_record
from data.sources import formats
from data.sources import megatron
from data.sources import records as records_lib
from data.sources import storage
from data.sources import subset
from data.sources import synthetic
from data.sources import tokenized

# A synthetic stream is as long as a source may be, and its held-out part short
# enough to be read whole.
_SYNTHETIC_TOKENS = 1 << 40
_SYNTHETIC_HELD_OUT = 1 << 16
_SYNTHETIC_EOS = 0
_FIELD = "text"
# Kinds of sequences that are made of rows, not of tokens.
_OF_RECORDS = ("chat", "preference")
_DECODED_DOCUMENTS = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """An open source, of tokens or of records.

  Attributes:
    name: its name in the mixture.
    weight: its weight in the mixture.
    tokens: the tokens; of records, any use of it is an error.
    records: the rows that sequences are made of; None for tokens.
    eos_id: ends every document.
    digest: changes when the content does.
    num_bytes: UTF-8 text that the tokens stand for; 0 if it is not known: of
      synthetic ones, records, and Megatron's files for training.
    max_epochs: how often it may be read; 0: any number of times.
  """

  name: str
  weight: float
  tokens: chunk.TokenSource
  records: records_lib.RecordSource | None = None
  eos_id: int
  digest: str
  num_bytes: int
  max_epochs: float = 0.0


class _NoTokens:
  """Stands for the tokens of a source of records."""

  document_lengths: np.ndarray

  def __init__(self, name: str):
    self._name = name

  @property
  def num_tokens(self) -> int:
    raise self._error()

  def read(self, start: int, stop: int) -> np.ndarray:
    del start, stop
    raise self._error()

  def __getattr__(self, field: str):
    if field == "document_lengths":
      raise self._error()
    raise AttributeError(field)

  def _error(self) -> ValueError:
    return ValueError(
      f"data.sources[{self._name}] has rows, by data.sequence.kind, but tokens"
      " are asked for; use the kind chunk or pack, or do without"
    )


def open_train(config: config_lib.DataConfig) -> list[Source]:
  """The sources to train on, without what is held out.

  Text is tokenized and remote files are copied first, on first use.

  Raises:
    ValueError: a source is missing, damaged, empty, not of the config's
      tokenizer, or has files of its held-out split.
  """
  if config.kind is config_lib.Kind.SYNTHETIC:
    return [_synthetic(config, _SYNTHETIC_TOKENS, seed=2 * config.seed)]
  tokenizer = _tokenizer(config)
  opened = []
  for source in config.sources:
    with _errors_of(source):
      _require_apart(source)
      whole = _open(config, source, source.path, tokenizer)
      if source.held_out:
        _, whole = _divide(whole, source.held_out, tokenizer)
    opened.append(whole)
  return opened


def open_eval(config: config_lib.DataConfig, name: str) -> Source:
  """The held-out split of a source, whole.

  The mixture `megatron` with `eval_samples` has samples instead, of
  `megatron.mixture.open_eval`.

  Raises:
    ValueError: there is none, or as `open_train`.
  """
  if name not in eval_sources(config):
    raise ValueError(
      f"data.sources[{name}] has no held-out split; it is there for"
      f" {', '.join(eval_sources(config)) or 'none'}: set its eval_path or"
      " held_out"
    )
  if config.kind is config_lib.Kind.SYNTHETIC:
    return _synthetic(config, _SYNTHETIC_HELD_OUT, seed=2 * config.seed + 1)
  source = config.source(name)
  tokenizer = _tokenizer(config)
  with _errors_of(source):
    if not source.eval_path and not source.held_out:
      raise ValueError(
        "it has no held-out files; its validation split is that of"
        " data.megatron"
      )
    if source.held_out:
      whole = _open(config, source, source.path, tokenizer)
      split, _ = _divide(whole, source.held_out, tokenizer)
      return split
    split = _open(config, source, source.eval_path, tokenizer)
    if split.records is None and not split.num_bytes:
      num_bytes = _text_bytes(
        split.tokens, split.digest, split.eos_id, tokenizer
      )
      return dataclasses.replace(split, num_bytes=num_bytes)
    return split


def eval_sources(
  config: config_lib.DataConfig,
) -> collections.abc.Sequence[str]:
  """Names of the sources with a held-out split."""
  if config.kind is config_lib.Kind.SYNTHETIC:
    return ("synthetic",)
  _require_resolved(config)
  names = tuple(
    source.name
    for source in config.sources
    if source.eval_path or source.held_out
  )
  if not names and config.megatron.eval_samples:  # A split of the files.
    return tuple(source.name for source in config.sources)
  return names


def vocab_size(config: config_lib.DataConfig) -> int:
  """Number of token ids; a model needs at least as many."""
  if config.kind is config_lib.Kind.SYNTHETIC:
    return config.vocab_size
  return _tokenizer(config).vocab_size


def require_length(source: Source, *, seq_len: int) -> None:
  """Refuses a source of which no sequence can be made within an epoch.

  Args:
    source: of tokens.
    seq_len: tokens in a sequence, its first not counted.

  Raises:
    ValueError: it has fewer than seq_len + 1 tokens.
  """
  if source.tokens.num_tokens <= seq_len:
    raise ValueError(
      f"data.sources[{source.name}] has {source.tokens.num_tokens} tokens, too"
      f" few for a sequence of seq_len + 1 = {seq_len + 1}; give more text, or"
      " make seq_len smaller"
    )


def _open(
  config: config_lib.DataConfig,
  source: config_lib.SourceConfig,
  path: str,
  tokenizer: tokenizer_lib.Tokenizer,
) -> Source:
  """What is at a path of a source."""
  format = source.format
  if format == "auto":
    format = formats.detect(path)
  if source.field and format not in records_lib.FORMATS:
    raise ValueError(
      f"field is {source.field!r}, but {path!r} has the format {format}, which"
      " has no fields; leave it empty"
    )
  common = Source(
    name=source.name,
    weight=source.weight,
    tokens=_NoTokens(source.name),
    eos_id=tokenizer.eos_id,
    digest="",
    num_bytes=0,
    max_epochs=source.max_epochs,
  )
  if config.sequence.kind in _OF_RECORDS:
    if format not in records_lib.FORMATS:
      raise ValueError(
        f"{path!r} has the format {format}, but data.sequence.kind is"
        f" {config.sequence.kind}, which takes rows: give files of"
        f" {', '.join(records_lib.FORMATS)}"
      )
    files = formats.files(path, format)
    rows = records_lib.Records(files, format=format)
    return dataclasses.replace(common, records=rows, digest=rows.digest)
  match format:
    case "megatron":
      prefix = formats.megatron_prefix(path)
      tokens = megatron.MegatronSource(prefix, vocab_size=tokenizer.vocab_size)
      return dataclasses.replace(common, tokens=tokens, digest=tokens.digest)
    case "dataset":
      return _dataset(common, formats.folder(path), path, tokenizer)
    case _:
      folder = tokenized.prepare(
        formats.files(path, format),
        format=format,
        field=source.field or _FIELD,
        tokenizer=config.tokenizer,
      )
      return _dataset(common, folder, path, tokenizer)


def _dataset(
  common: Source, folder, path: str, tokenizer: tokenizer_lib.Tokenizer
) -> Source:
  tokens = array_record.ArrayRecordSource(folder)
  if tokens.manifest.tokenizer != tokenizer.fingerprint:
    raise ValueError(
      f"{path} was made by the tokenizer {tokens.manifest.tokenizer[:12]}, but"
      f" data.tokenizer is {tokenizer.fingerprint[:12]}; set data.tokenizer to"
      " the one that made it, or tokenize it again"
    )
  return dataclasses.replace(
    common,
    tokens=tokens,
    eos_id=tokens.manifest.eos_id,
    digest=tokens.manifest.digest,
    num_bytes=tokens.manifest.num_bytes,
  )


def _divide(
  source: Source, share: float, tokenizer: tokenizer_lib.Tokenizer
) -> tuple[Source, Source]:
  """The held-out part of a source, and the rest."""
  if source.records is not None:
    chosen = subset.held_out(len(source.records), share)
  else:
    chosen = subset.held_out(len(source.tokens.document_lengths), share)
  split = _part(source, chosen, f"held out {share}")
  rest = _part(source, ~chosen, f"without {share}")
  if split.records is not None:
    return split, rest
  num_bytes = _text_bytes(split.tokens, split.digest, split.eos_id, tokenizer)
  of_rest = max(source.num_bytes - num_bytes, 0)
  return (
    dataclasses.replace(split, num_bytes=num_bytes),
    dataclasses.replace(rest, num_bytes=of_rest),
  )


def _part(source: Source, chosen: np.ndarray, name: str) -> Source:
  """Some documents, or rows, of a source."""
  content = json.dumps([source.digest, name])
  digest = hashlib.sha256(content.encode()).hexdigest()
  if source.records is not None:
    rows = subset.RecordSubset(source.records, chosen, digest=digest)
    return dataclasses.replace(source, records=rows, digest=digest)
  tokens = subset.TokenSubset(source.tokens, chosen)
  return dataclasses.replace(source, tokens=tokens, digest=digest)


def _text_bytes(
  tokens: chunk.TokenSource,
  digest: str,
  eos_id: int,
  tokenizer: tokenizer_lib.Tokenizer,
) -> int:
  """UTF-8 text that tokens stand for, by decoding them; kept in the cache."""
  key = f"{digest} {eos_id} {tokenizer.fingerprint}"
  name = hashlib.sha256(key.encode()).hexdigest()
  note = storage.cache_dir() / "text_bytes" / f"{name}.json"
  known = storage.read_note(note)
  if known:
    return known["num_bytes"]
  ends = np.cumsum(tokens.document_lengths)
  starts = ends - tokens.document_lengths
  num_bytes = 0
  for first in range(0, len(ends), _DECODED_DOCUMENTS):
    last = min(first + _DECODED_DOCUMENTS, len(ends))
    ids = [
      tokens.read(int(start), int(stop))
      for start, stop in zip(starts[first:last], ends[first:last], strict=True)
    ]
    texts = tokenizer.decode_batch(
      [part[part != eos_id].tolist() for part in ids]
    )
    num_bytes += sum(len(text.encode()) for text in texts)
  storage.write_note(note, {"num_bytes": num_bytes})
  return num_bytes


def _require_apart(source: config_lib.SourceConfig) -> None:
  """Refuses files that are both trained on and held out."""
  if not source.eval_path:
    return
  sides = [
    _names(path, source.format) for path in (source.path, source.eval_path)
  ]
  both = sorted(sides[0] & sides[1])
  if both:
    raise ValueError(
      f"{both[0]} is in path and in eval_path, so it would be trained on and"
      " held out; leave it out of path"
    )


def _names(path: str, format: str) -> set[str]:
  """What is read of a path; nothing where opening it will fail."""
  try:
    if format == "auto":
      format = formats.detect(path)
    if format in ("dataset", "megatron"):
      return {formats.prefix(path).rstrip("/")}
    return {file.name for file in formats.files(path, format)}
  except ValueError:
    return set()


@contextlib.contextmanager
def _errors_of(
  source: config_lib.SourceConfig,
) -> collections.abc.Iterator[None]:
  """Says in errors which source they are of."""
  try:
    yield
  except ValueError as error:
    raise ValueError(f"data.sources[{source.name}]: {error}") from error


def _synthetic(
  config: config_lib.DataConfig, num_tokens: int, *, seed: int
) -> Source:
  return Source(
    name="synthetic",
    weight=1.0,
    tokens=synthetic.SyntheticSource(
      vocab_size=config.vocab_size, num_tokens=num_tokens, seed=seed
    ),
    eos_id=_SYNTHETIC_EOS,
    digest=f"synthetic {config.vocab_size} {num_tokens} {seed}",
    num_bytes=0,
  )


def _tokenizer(config: config_lib.DataConfig) -> tokenizer_lib.Tokenizer:
  _require_resolved(config)
  return tokenizer_lib.Tokenizer.load(config.tokenizer)


def _require_resolved(config: config_lib.DataConfig) -> None:
  if config.kind is config_lib.Kind.RECIPE:
    raise ValueError(
      f"data.recipe {config.recipe!r} is not prepared yet; pass the config"
      " through data.recipes.resolve first"
    )
