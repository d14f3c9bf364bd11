"""Text to token ids and back: any Hugging Face tokenizer.json, or our own.

Our own is a byte-level BPE, so every string has ids and every id list made from
a string gives that string back. Its split rule is Llama 3's with combining
marks counted as letters (decomposed Hangul and accents stay in one piece):
words with the space before them, digits in groups of three, runs of
punctuation, runs of white space.

Special tokens are never read from text: a document that contains
"<|end_of_text|>" is encoded as these characters. Only code that works with ids
can place one, and `encode_with_special_tokens`, which is for prompts.
"""

import collections.abc
import functools
import hashlib
import json
import pathlib

import numpy as np
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import trainers

BOS = "<|begin_of_text|>"
EOS = "<|end_of_text|>"
PAD = "<|pad|>"
# Ids 0..15. The reserved ones are for later stages (chat, tools), so that a
# vocabulary need not grow after pretraining.
SPECIAL_TOKENS = (BOS, EOS, PAD, *(f"<|reserved_{i}|>" for i in range(13)))

_SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
  r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"
  r"|\p{N}{1,3}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Where a bare tokenizer.json has no config beside it to say which token ends a
# document.
_USUAL_EOS = (EOS, "<|endoftext|>", "</s>", "<eos>", "<|im_end|>")
# What decides the ids of a text; the rest of tokenizer.json (padding,
# truncation, templates, decoder) does not.
_ID_FIELDS = ("added_tokens", "normalizer", "pre_tokenizer", "model")


class Tokenizer:
  """A tokenizer and the ids of its special tokens.

  Attributes:
    vocab_size: number of ids; every id is smaller.
    eos_id: ends a document in a token stream.
    bos_id: begins a text; None if the tokenizer has none.
    pad_id: fills unused places; None if the tokenizer has none.
    fingerprint: sha256 of what determines the ids of a text.
  """

  def __init__(
    self,
    backend: tokenizers.Tokenizer,
    *,
    eos: str,
    bos: str | None = None,
    pad: str | None = None,
  ):
    backend.encode_special_tokens = True
    backend.no_padding()
    backend.no_truncation()
    self._backend = backend
    self._names = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
    self.eos_id = self._id("eos_token", eos)
    self.bos_id = None if bos is None else self._id("bos_token", bos)
    self.pad_id = None if pad is None else self._id("pad_token", pad)
    self.vocab_size = 1 + max(backend.get_vocab(True).values())
    spec = json.loads(backend.to_str())
    rules = json.dumps({f: spec[f] for f in _ID_FIELDS}, sort_keys=True)
    self.fingerprint = hashlib.sha256(rules.encode()).hexdigest()

  @classmethod
  def train(
    cls, texts: collections.abc.Iterable[str], *, vocab_size: int
  ) -> "Tokenizer":
    """Learns a byte-level BPE; the same texts give the same tokenizer.

    Args:
      texts: the training text.
      vocab_size: number of ids, special tokens and the 256 bytes included.

    Raises:
      ValueError: vocab_size is too small, or too large for the texts.
    """
    smallest = len(SPECIAL_TOKENS) + 256
    if vocab_size < smallest:
      raise ValueError(
        f"vocab_size is {vocab_size}; it must be {smallest} or more, for the"
        " special tokens and the 256 bytes"
      )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
      [
        pre_tokenizers.Split(tokenizers.Regex(_SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
      ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
      texts,
      trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
      ),
    )
    if backend.get_vocab_size() != vocab_size:
      raise ValueError(
        f"vocab_size is {vocab_size}, but the texts only support"
        f" {backend.get_vocab_size()}; give more text or a smaller vocab_size"
      )
    return cls(backend, eos=EOS, bos=BOS, pad=PAD)

  @classmethod
  def load(cls, path: str | pathlib.Path) -> "Tokenizer":
    """Reads a tokenizer.json, or the folder with it and its config.

    Raises:
      ValueError: it is missing, cannot be read, or names no end-of-text token.
    """
    path = pathlib.Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
      raise ValueError(
        f"tokenizer is {str(path)!r}, but {file} does not exist; give a"
        " tokenizer.json or a folder with one"
      )
    try:
      backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # The Rust binding raises plain Exception.
      raise ValueError(
        f"tokenizer is {str(path)!r}, but {file} cannot be read ({error});"
        " replace it with a valid tokenizer.json"
      ) from error
    config_file = file.with_name("tokenizer_config.json")
    config = {}
    if config_file.is_file():
      config = json.loads(config_file.read_text(encoding="utf-8"))
    names = {
      field: _content(config[field]) if field in config else None
      for field in ("bos_token", "eos_token", "pad_token")
    }
    usual = [t for t in _USUAL_EOS if backend.token_to_id(t) is not None]
    eos = names["eos_token"] or (usual[0] if usual else None)
    if eos is None:
      raise ValueError(
        f"tokenizer {file} names no token that ends a document; add"
        f' {{"eos_token": "..."}} to {config_file}'
      )
    return cls(backend, eos=eos, bos=names["bos_token"], pad=names["pad_token"])

  def save(self, folder: str | pathlib.Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json, as transformers does."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    self._backend.save(str(folder / "tokenizer.json"))
    config = {
      "tokenizer_class": "PreTrainedTokenizerFast",
      "clean_up_tokenization_spaces": False,
      **{field: name for field, name in self._names.items() if name},
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")

  def encode(self, text: str) -> list[int]:
    """Ids of a text; no special token is added or recognised."""
    return self._backend.encode(text, add_special_tokens=False).ids

  def encode_batch(self, texts: list[str]) -> list[list[int]]:
    """`encode` of each text, on all cores unless TOKENIZERS_PARALLELISM=0."""
    encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
    return [encoding.ids for encoding in encodings]

  def encode_with_special_tokens(
    self, text: str, *, add: bool = False
  ) -> list[int]:
    """Ids of a prompt, as Hugging Face's tokenizer gives them.

    For text of our own or of a chat template, never for documents: the name of
    a special token in it is that token.

    Args:
      text: the prompt.
      add: put around it what tokenizer.json says, such as a BOS.
    """
    return self._prompt_backend.encode(text, add_special_tokens=add).ids

  @functools.cached_property
  def _prompt_backend(self) -> tokenizers.Tokenizer:
    # A copy: switched to and fro, one backend would fail with several threads.
    backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
    backend.encode_special_tokens = False
    return backend

  def decode(self, ids: collections.abc.Sequence[int] | np.ndarray) -> str:
    """Text of the ids; special tokens by name, torn characters as U+FFFD."""
    # The Rust binding takes Python's integers only.
    plain = np.asarray(ids, np.int64).tolist()
    return self._backend.decode(plain, skip_special_tokens=False)

  def decode_batch(self, batch: list[list[int]]) -> list[str]:
    """`decode` of each list of ids."""
    return self._backend.decode_batch(batch, skip_special_tokens=False)

  def _id(self, field: str, name: str) -> int:
    token_id = self._backend.token_to_id(name)
    if token_id is None:
      raise ValueError(
        f"tokenizer_config.json: {field} is {name!r}, which is not in the"
        " vocabulary; correct the name"
      )
    return token_id


def _content(token: str | dict | None) -> str | None:
  """Name of a token, which transformers writes as a string or an object."""
  return token["content"] if isinstance(token, dict) else token
