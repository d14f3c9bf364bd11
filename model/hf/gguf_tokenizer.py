"""The tokenizer of a GGUF file as Hugging Face's tokenizer.json.

A GGUF file has a vocabulary and either merges (byte-level BPE, "gpt2") or
scores (SentencePiece's BPE, "llama"). How text is split before merging it has
only by name; those are known here whose tokenizer.json is. Another name is
refused, since a near miss gives other ids without an error.
"""

import collections
import collections.abc
import json
import pathlib
from typing import Any

import gguf
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import processors

_Kind = gguf.TokenType
_SPACE = "\u2581"
_LLAMA3_SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
  r"|[^\r\n\p{L}\p{N}]?\p{L}+"
  r"|\p{N}{1,3}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_BEFORE_GPT2 = {
  "gpt-2": (),
  "smollm": (pre_tokenizers.Digits(individual_digits=True),),
  "starcoder": (pre_tokenizers.Digits(individual_digits=True),),
}
_SPLITS = {
  "llama-bpe": _LLAMA3_SPLIT,
  "llama3": _LLAMA3_SPLIT,
  "llama-v3": _LLAMA3_SPLIT,
  "qwen2": _QWEN2_SPLIT,
}
# A word that is a token is one, whatever the merges say; BOS goes first.
_LIKE_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
_FIX = "get the model's tokenizer.json"


def files(
  metadata: collections.abc.Mapping[str, Any], *, file: pathlib.Path
) -> dict[str, str]:
  """The files that a model's folder needs for its tokenizer.

  Args:
    metadata: of the GGUF file.
    file: for messages.

  Returns:
    File name -> content: tokenizer.json, and tokenizer_config.json with the
    special tokens and the chat template.

  Raises:
    ValueError: the tokenizer is of a kind that is not known, or damaged.
  """
  source = _Source(metadata, file)
  model = source.get("model")
  if model == "gpt2":
    backend, add_bos = _byte_level(source)
  elif model == "llama":
    backend, add_bos = _sentence_piece(source), True
  else:
    raise source.unsupported(
      "model", model, f"known are gpt2 and llama; {_FIX}"
    )
  backend.add_tokens(source.added_tokens())
  config: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
  }
  for ours, theirs in {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "pad": "padding",
  }.items():
    token_id = source.get(f"{theirs}_token_id")
    if token_id is not None:
      config[f"{ours}_token"] = source.token(f"{theirs}_token_id", token_id)
  _add_template(source, backend, config, add_bos=add_bos)
  config |= _chat_template(metadata)
  contents = {
    "tokenizer.json": json.loads(backend.to_str()),
    "tokenizer_config.json": config,
  }
  return {
    name: json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    for name, value in contents.items()
  }


class _Source:
  """The tokenizer's part of the metadata."""

  def __init__(
    self, metadata: collections.abc.Mapping[str, Any], file: pathlib.Path
  ):
    self._metadata = metadata
    self._file = file
    self.tokens: list[str] = self.get("tokens") or []
    if not self.tokens:
      raise self.unsupported("tokens", None, _FIX)
    counts = collections.Counter(self.tokens)
    if len(counts) != len(self.tokens):
      token, count = counts.most_common(1)[0]
      raise self.unsupported(
        "tokens", f"a list with {token!r} {count} times", _FIX
      )
    kinds = self.get("token_type") or [_Kind.NORMAL] * len(self.tokens)
    if len(kinds) != len(self.tokens):
      raise self.unsupported(
        "token_type", f"{len(kinds)} for {len(self.tokens)} tokens", _FIX
      )
    self.kinds: list[int] = kinds
    for key in ("remove_extra_whitespaces", "precompiled_charsmap"):
      if self.get(key):
        raise self.unsupported(key, "set", _FIX)

  def get(self, key: str) -> Any:
    return self._metadata.get(f"tokenizer.ggml.{key}")

  def flag(self, key: str, default: bool) -> bool:
    value = self.get(key)
    return default if value is None else bool(value)

  def token(self, key: str, token_id: Any) -> str:
    if type(token_id) is not int or not 0 <= token_id < len(self.tokens):
      raise self.unsupported(
        key, token_id, f"there are {len(self.tokens)} tokens; {_FIX}"
      )
    return self.tokens[token_id]

  def of_kind(self, *kinds: gguf.TokenType) -> list[str]:
    return [
      token
      for token, kind in zip(self.tokens, self.kinds, strict=True)
      if kind in kinds
    ]

  def vocabulary(self) -> dict[str, int]:
    """Token -> id, without what only fills the embedding up."""
    return {
      token: index
      for index, token in enumerate(self.tokens)
      if self.kinds[index] != _Kind.UNUSED
    }

  def added_tokens(self) -> list[tokenizers.AddedToken]:
    """Tokens that are found in a text before anything else, in order of ids."""
    special = (_Kind.CONTROL, _Kind.UNKNOWN)
    return [
      tokenizers.AddedToken(token, normalized=False, special=kind in special)
      for token, kind in zip(self.tokens, self.kinds, strict=True)
      if kind in (*special, _Kind.USER_DEFINED)
    ]

  def unsupported(self, key: str, value: Any, fix: str) -> ValueError:
    return ValueError(f"{self._file}: tokenizer.ggml.{key} is {value!r}; {fix}")


def _byte_level(source: _Source) -> tuple[tokenizers.Tokenizer, bool]:
  """The tokenizer, and whether it puts BOS first if nothing else is said."""
  split = source.get("pre")
  add_prefix_space = source.flag("add_space_prefix", False)
  if split in _BEFORE_GPT2:
    steps = [
      *_BEFORE_GPT2[split],
      pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space),
    ]
  elif split in _SPLITS and not add_prefix_space:
    steps = [
      pre_tokenizers.Split(tokenizers.Regex(_SPLITS[split]), "isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  else:
    known = ", ".join([*_BEFORE_GPT2, *_SPLITS])
    raise source.unsupported("pre", split, f"known are {known}; {_FIX}")
  merges = []
  for merge in source.get("merges") or []:
    pair = tuple(merge.split(" "))
    if len(pair) != 2:
      raise source.unsupported("merges", f"a list with {merge!r}", _FIX)
    merges.append(pair)
  backend = _bpe(
    source, source.vocabulary(), merges, ignore_merges=split in _LIKE_LLAMA3
  )
  if split == "qwen2":
    backend.normalizer = normalizers.NFC()
  backend.pre_tokenizer = (
    steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
  )
  backend.decoder = decoders.ByteLevel()
  return backend, split in _LIKE_LLAMA3


def _sentence_piece(source: _Source) -> tokenizers.Tokenizer:
  """SentencePiece's BPE: the pair whose whole has the best score goes first."""
  scores = source.get("scores") or []
  if len(scores) != len(source.tokens):
    raise source.unsupported(
      "scores", f"{len(scores)} for {len(source.tokens)} tokens", _FIX
    )
  ids = source.vocabulary()
  # Bytes and special tokens are never the result of a merge, nor part of one.
  pieces = set(source.of_kind(_Kind.NORMAL, _Kind.USER_DEFINED))
  ranked = []
  for piece in pieces:
    for middle in range(1, len(piece)):
      left, right = piece[:middle], piece[middle:]
      if left in pieces and right in pieces:
        rank = (-scores[ids[piece]], ids[piece], ids[left], ids[right])
        ranked.append((rank, (left, right)))
  merges = [pair for _, pair in sorted(ranked)]
  unknown = source.of_kind(_Kind.UNKNOWN)
  backend = _bpe(
    source,
    ids,
    merges,
    unk_token=unknown[0] if unknown else None,
    fuse_unk=True,
    byte_fallback=bool(source.of_kind(_Kind.BYTE)),
  )
  add_prefix = source.flag("add_space_prefix", True)
  backend.normalizer = normalizers.Sequence(
    [normalizers.Prepend(_SPACE)] * add_prefix
    + [normalizers.Replace(" ", _SPACE)]
  )
  backend.decoder = decoders.Sequence(
    [
      decoders.Replace(_SPACE, " "),
      decoders.ByteFallback(),
      decoders.Fuse(),
    ]
    + [decoders.Strip(" ", 1, 0)] * add_prefix
  )
  return backend


def _bpe(
  source: _Source,
  ids: dict[str, int],
  merges: list[tuple[str, str]],
  **options: Any,
) -> tokenizers.Tokenizer:
  try:
    return tokenizers.Tokenizer(models.BPE(ids, merges, **options))
  except Exception as error:  # The Rust binding raises plain Exception.
    raise source.unsupported(
      "merges", f"a list that does not fit the tokens ({error})", _FIX
    ) from error


def _add_template(
  source: _Source,
  backend: tokenizers.Tokenizer,
  config: dict[str, Any],
  *,
  add_bos: bool,
) -> None:
  """Puts BOS and EOS around a text, as the metadata says."""
  pieces, special = ["$A"], []
  for name, added, place in (
    ("bos", source.flag("add_bos_token", add_bos), 0),
    ("eos", source.flag("add_eos_token", False), len(pieces) + 1),
  ):
    if not added:
      continue
    token = config.get(f"{name}_token")
    if token is None:
      raise source.unsupported(f"{name}_token_id", None, _FIX)
    pieces.insert(place, token)
    special.append((token, source.tokens.index(token)))
  if special:
    backend.post_processor = processors.TemplateProcessing(
      single=pieces, special_tokens=special
    )


def _chat_template(
  metadata: collections.abc.Mapping[str, Any],
) -> dict[str, Any]:
  """The field chat_template: one, or a list with names; absent if none."""
  key = "tokenizer.chat_template"
  named = {
    name.removeprefix(f"{key}."): template
    for name, template in metadata.items()
    if name.startswith(f"{key}.")
  }
  if key in metadata:
    if not named:
      return {"chat_template": metadata[key]}
    named = {"default": metadata[key], **named}
  if not named:
    return {}
  return {
    "chat_template": [
      {"name": name, "template": template} for name, template in named.items()
    ]
  }
