"""Conversations to token ids, in which only the template places special tokens.

A chat template writes special tokens by name between the texts of messages, and
a text that contains such a name must not place one: whoever writes it would end
its own message and begin another's. So two kinds of text are told apart:

1. In what comes from outside (messages, tools, documents, arguments), a mark
   is put into each name of a special token, and behind the beginning of one at
   the end of a string, which the next string could complete. The mark is a
   character that occurs in none of it.
2. The template renders that. The names that are whole are its own.
3. They get names that nobody can guess, in the text and in a copy of the
   tokenizer; the marks are taken out; the copy encodes the text at once.

What contains no name of a special token, nearly all, gets the ids that Hugging
Face's tokenizer gives it. Added tokens that are not special, such as Qwen's
`<think>`, stay tokens everywhere: models are trained on histories with them.
A template that itself cuts pieces out of a message and joins them can make a
name.
"""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import json
import pathlib
import re
import secrets
from typing import Any

from jaxtyping import Int
import numpy as np
import tokenizers

from data import chat

# Noncharacters: no text that is meant for anyone else has them.
_MARKS = tuple(chr(code) for code in range(0xFDD0, 0xFDEF))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
  """A rendered conversation.

  Attributes:
    text: As the template has written it.
    tokens: Its ids.
  """

  text: str
  tokens: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Marked:
  """A rendered conversation with its marks, in pieces.

  Attributes:
    pieces: Its text, cut anywhere but within a name of a special token.
    mark: In it.
  """

  pieces: tuple[str, ...]
  mark: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoded:
  """Ids, and from which pieces of the text each is: mostly from one.

  Attributes:
    tokens: The ids.
    first_pieces: Number of the piece with the token's first character.
    last_pieces: The same of its last character.
  """

  tokens: Int[np.ndarray, "T"]
  first_pieces: Int[np.ndarray, "T"]
  last_pieces: Int[np.ndarray, "T"]


class Encoder:
  """Encodes conversations by the templates of a tokenizer.

  Attributes:
    templates: The model's.
    special: Matches a name of a special token; in marked text, one that the
      template has placed.
  """

  def __init__(self, tokenizer_folder: str | pathlib.Path):
    """Reads the templates and tokenizer.json.

    Raises:
      ValueError: They cannot be read.
    """
    folder = pathlib.Path(tokenizer_folder)
    self.templates = chat.load(folder)
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    names = [t["content"] for t in spec["added_tokens"] if t["special"]]
    nonce = secrets.token_hex(8)
    self._aliases = {
      name: f"\ufdef{nonce}.{number}\ufdef" for number, name in enumerate(names)
    }
    self.special = _any_of(names)
    self._beginning = _any_of(
      {name[:end] for name in names for end in range(1, len(name))}, tail=r"\Z"
    )
    self._backend = _renamed(spec, self._aliases)

  def encode(
    self,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool,
    continue_final_message: bool = False,
    tools: Sequence[Any] | None = None,
    documents: Sequence[Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
  ) -> Prompt:
    """The prompt of a conversation; see `chat.Templates.render`.

    Raises:
      ValueError: No template, or it refuses the messages, or they use the
        characters that are needed for marks.
    """
    given = [messages, tools, documents, arguments]
    mark = unused_mark(given)
    text = self.render(
      messages,
      mark=mark,
      add_generation_prompt=add_generation_prompt,
      continue_final_message=continue_final_message,
      tools=tools,
      documents=documents,
      arguments=arguments,
    )
    encoding = self._backend.encode(
      self._named(text, mark), add_special_tokens=False
    )
    return Prompt(text=text.replace(mark, ""), tokens=tuple(encoding.ids))

  def render(
    self,
    messages: Sequence[Mapping[str, Any]],
    *,
    mark: str,
    add_generation_prompt: bool,
    continue_final_message: bool = False,
    tools: Sequence[Any] | None = None,
    documents: Sequence[Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
  ) -> str:
    """The text of a conversation, with marks; see `chat.Templates.render`.

    Args:
      messages: The conversation.
      mark: From `unused_mark`.
      add_generation_prompt: End with what begins the model's answer.
      continue_final_message: End within the last message.
      tools: Functions that the model may call.
      documents: Texts that it may use.
      arguments: What else the template asks for.

    Raises:
      ValueError: No template, or it refuses the messages.
    """
    given = [messages, tools, documents, arguments]
    messages, tools, documents, arguments = self._with_marks(given, mark)
    return self.templates.render(
      messages,
      add_generation_prompt=add_generation_prompt,
      continue_final_message=continue_final_message,
      tools=tools,
      documents=documents,
      arguments=arguments,
    )

  def encode_pieces(self, batch: Sequence[Marked]) -> list[Encoded]:
    """Ids of rendered conversations, as of one text each; on all cores."""
    texts, borders = [], []
    for marked in batch:
      named = [self._named(piece, marked.mark) for piece in marked.pieces]
      texts.append("".join(named))
      assert texts[-1] == self._named("".join(marked.pieces), marked.mark)
      borders.append(np.cumsum([len(piece) for piece in named]))
    encodings = self._backend.encode_batch(texts, add_special_tokens=False)
    return [
      _with_pieces(encoding, ends)
      for encoding, ends in zip(encodings, borders, strict=True)
    ]

  def _named(self, text: str, mark: str) -> str:
    """The text that is encoded: its names are others, and it has no marks."""
    named = self.special.sub(lambda found: self._aliases[found[0]], text)
    return named.replace(mark, "")

  def _with_marks(self, value: Any, mark: str) -> Any:
    if isinstance(value, str):
      value = self.special.sub(lambda m: m[0][:1] + mark + m[0][1:], value)
      return self._beginning.sub(lambda m: m[0] + mark, value)
    if isinstance(value, Mapping):
      return {
        self._with_marks(key, mark): self._with_marks(item, mark)
        for key, item in value.items()
      }
    if isinstance(value, Sequence):
      return [self._with_marks(item, mark) for item in value]
    return value


def _with_pieces(
  encoding: tokenizers.Encoding, ends: Int[np.ndarray, "_"]
) -> Encoded:
  """Pieces that end there, of each token."""
  offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
  starts, stops = offsets[:, 0], offsets[:, 1]
  # A token without characters counts as one at its place.
  lasts = np.maximum(stops - 1, starts)
  return Encoded(
    tokens=np.array(encoding.ids, np.int32),
    first_pieces=np.searchsorted(ends, starts, "right"),
    last_pieces=np.searchsorted(ends, lasts, "right"),
  )


def _any_of(names: Collection[str], *, tail: str = "") -> re.Pattern[str]:
  """The longest of them; of none, a pattern that nothing has."""
  longest = sorted(names, key=len, reverse=True)
  words = "|".join(map(re.escape, longest))
  return re.compile(f"(?:{words}){tail}" if words else r"(?!)")


def unused_mark(given: Any) -> str:
  """A mark that occurs in nothing of what is given to a template.

  Raises:
    ValueError: There is none.
  """
  text = json.dumps(given, ensure_ascii=False, default=str)
  for mark in _MARKS:
    if mark not in text:
      return mark
  raise ValueError(
    "the conversation has all of Unicode's noncharacters U+FDD0 to U+FDEE, one"
    " of which is needed to read it; leave one out"
  )


def _renamed(
  spec: dict[str, Any], aliases: Mapping[str, str]
) -> tokenizers.Tokenizer:
  """The tokenizer with other names of its special tokens."""
  for token in spec["added_tokens"]:
    token["content"] = aliases.get(token["content"], token["content"])
  model = spec["model"]
  vocab = model["vocab"]
  if isinstance(vocab, dict):
    model["vocab"] = {aliases.get(t, t): i for t, i in vocab.items()}
  else:  # Unigram: pairs of a token and its score, in the order of ids.
    model["vocab"] = [[aliases.get(t, t), score] for t, score in vocab]
  if isinstance(model.get("unk_token"), str):
    model["unk_token"] = aliases.get(model["unk_token"], model["unk_token"])
  # What is put around a text names tokens, too; nothing is put around this.
  spec["post_processor"] = None
  spec["truncation"] = None
  spec["padding"] = None
  return tokenizers.Tokenizer.from_str(json.dumps(spec))
