"""Conversations to tokens, and which of them the model is to learn.

Those are what the assistant says and the special token that ends its turn.
Where they are in the text that the template renders, is found in two ways:

- by `{% generation %}` in the template, where its author has put it;
- else by rendering prefixes. What is rendered before the turn, with what begins
  an answer, is what the model is given when it is served; the turn is what
  follows, up to the last special token. Both are checked to be prefixes of the
  whole.

Some templates write a turn otherwise once more has been said: they take the
thoughts out of earlier answers. Then no single text has all turns as the model
must write them, and a conversation becomes several: each ends with a turn as it
was when it was the last, and only the turns that stand in it so are targets.

L tokens.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import datetime
import json
import pathlib
import re
from typing import Any

from jaxtyping import Bool, Int
import numpy as np

from data import chat_prompt
from data import messages as messages_lib

# Noncharacters of Unicode, like those that Encoder takes, but not the same.
_BEGIN, _END = "\U0010fffe", "\U0010ffff"
_BLOCK = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
# What templates are told when they ask for the date: tokens must be the same on
# every day, and on every host. That of Llama 3.1's template, where it has none.
_DATE = datetime.date(2024, 7, 26)
_SYSTEM_ROLES = ("system", "developer")
_OWN_ARGUMENTS = (
  "strftime_now",
  "messages",
  "tools",
  "documents",
  "add_generation_prompt",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
  """A text to train on.

  Attributes:
    tokens: Its ids.
    is_target: Which the model is to learn.
    was_cut: It was longer.
  """

  tokens: Int[np.ndarray, "L"]
  is_target: Bool[np.ndarray, "L"]
  was_cut: bool = False

  def cut(self, max_tokens: int, *, was_cut: bool = False) -> "Example":
    """Its first tokens, of which something was cut off before or is now."""
    return Example(
      tokens=self.tokens[:max_tokens],
      is_target=self.is_target[:max_tokens],
      was_cut=self.was_cut or was_cut or len(self.tokens) > max_tokens,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rendering:
  """A text in pieces, and the conversation that it is of.

  Attributes:
    is_target: Of each piece, whether the model is to learn it.
    conversation: The messages in it; those trained that are so here.
  """

  marked: chat_prompt.Marked
  is_target: tuple[bool, ...]
  conversation: messages_lib.Conversation


class Encoder:
  """Encodes conversations for training by the templates of a tokenizer.

  Attributes:
    templates: The model's.
    key: What in them decides how a conversation is encoded, for `json`.
  """

  def __init__(self, tokenizer_folder: str | pathlib.Path):
    """Reads the templates and tokenizer.json of the folder, or beside the file.

    Raises:
      ValueError: They cannot be read.
    """
    folder = pathlib.Path(tokenizer_folder)
    if folder.is_file():
      folder = folder.parent
    self._encoder = chat_prompt.Encoder(folder)
    templates = self._encoder.templates
    self.templates = templates
    self.key = {
      "templates": dict(templates.sources),
      "special_tokens": dict(templates.special_tokens),
    }
    # The tags print what they stand for, as blocks, so that the white space
    # around them is what it was.
    self._encoder.templates = dataclasses.replace(
      templates,
      sources={
        name: _BLOCK.sub(_with_print, source)
        for name, source in templates.sources.items()
      },
    )

  def encode(
    self,
    conversations: Sequence[messages_lib.Conversation],
    *,
    max_tokens: int = 0,
  ) -> list[list[Example] | ValueError]:
    """The examples of conversations; where one cannot be rendered, why.

    Args:
      conversations: What to encode; on all cores.
      max_tokens: Leave out the oldest turns, as few as possible, from what is
        longer: a text then is the system's message and the last turns, from one
        of the user's on. If the last turn alone is longer, its end is cut off.
        0: no limit.

    Returns:
      For each conversation mostly one example; none if no turn is trained.
    """
    rendered: list[list[_Rendering] | ValueError] = []
    for conversation in conversations:
      try:
        rendered.append(self._render(conversation))
      except ValueError as error:
        rendered.append(error)
    texts = [r for own in rendered if isinstance(own, list) for r in own]
    encoded = iter(self._encode(texts))
    examples: list[list[Example] | ValueError] = []
    for own in rendered:
      if isinstance(own, ValueError):
        examples.append(own)
        continue
      pairs = [(rendering, next(encoded)) for rendering in own]
      try:
        examples.append(self._fit(pairs, max_tokens))
      except ValueError as error:
        examples.append(error)
    return examples

  def _encode(self, renderings: Sequence[_Rendering]) -> Iterator[Example]:
    encodings = self._encoder.encode_pieces([r.marked for r in renderings])
    for rendering, encoded in zip(renderings, encodings, strict=True):
      is_target = np.array(rendering.is_target)
      yield Example(
        tokens=encoded.tokens,
        # A token on a border is of both sides.
        is_target=is_target[encoded.first_pieces]
        | is_target[encoded.last_pieces],
      )

  def _fit(
    self, pairs: Sequence[tuple[_Rendering, Example]], max_tokens: int
  ) -> list[Example]:
    """The examples, or shorter ones in the place of those that are too long."""
    fitting = []
    for rendering, example in pairs:
      if not max_tokens or len(example.tokens) <= max_tokens:
        fitting.append(example)
        continue
      shorter = without_oldest_turn(rendering.conversation)
      if shorter is None:
        fitting.append(example.cut(max_tokens))
      else:
        renderings = self._render(shorter)
        again = zip(renderings, self._encode(renderings), strict=True)
        made = self._fit(list(again), max_tokens)
        fitting += [dataclasses.replace(e, was_cut=True) for e in made]
    return fitting

  def _render(
    self, conversation: messages_lib.Conversation
  ) -> list[_Rendering]:
    """The texts in which every trained turn is a target once."""
    if not any(conversation.is_trained):
      return []
    # What follows the last answer that is trained is no context of any.
    trained = np.flatnonzero(conversation.is_trained)
    conversation = conversation.part(slice(0, int(trained[-1]) + 1))
    has_tools = bool(conversation.tools)
    self._check(conversation)
    source = self.templates.source(has_tools=has_tools)
    if "developer" not in source:
      conversation = _with_system_role(conversation)
    if _BLOCK.search(source):
      return [self._render_with_tags(conversation)]
    return self._render_prefixes(conversation)

  def _check(self, conversation: messages_lib.Conversation) -> None:
    """That the template reads all that it is given."""
    variables = self.templates.variables(has_tools=bool(conversation.tools))
    if conversation.tools and "tools" not in variables:
      raise ValueError(
        f"it has tools, but the chat template of {self.templates.folder} does"
        " not know tools; take them out, or use a template that does"
      )
    for name in conversation.arguments:
      if name in _OWN_ARGUMENTS or name not in variables:
        raise ValueError(
          f"its chat_template_kwargs have {name!r}, which the chat template of"
          f" {self.templates.folder} does not ask for; take it out"
        )

  def _text(
    self,
    conversation: messages_lib.Conversation,
    stop: int,
    *,
    mark: str,
    add_generation_prompt: bool = False,
  ) -> str:
    """The marked text of the first `stop` messages."""
    return self._encoder.render(
      conversation.messages[:stop],
      mark=mark,
      add_generation_prompt=add_generation_prompt,
      tools=conversation.tools or None,
      arguments={"strftime_now": _DATE.strftime, **conversation.arguments},
    )

  def _render_with_tags(
    self, conversation: messages_lib.Conversation
  ) -> _Rendering:
    """By `{% generation %}`."""
    given = _given(conversation)
    plain = json.dumps(given, ensure_ascii=False, default=str)
    if _BEGIN in plain or _END in plain:
      raise ValueError(
        "a message has the noncharacter U+10FFFE or U+10FFFF, which is needed"
        " to tell what the assistant says; take it out"
      )
    mark = chat_prompt.unused_mark(given)
    text = self._text(conversation, len(conversation.messages), mark=mark)
    before, *turns = text.split(_BEGIN)
    pieces, is_target = [before], [False]
    answers = _answers(conversation)
    if len(turns) != len(answers) and (
      not turns or any(not conversation.is_trained[turn] for turn in answers)
    ):
      raise ValueError(
        f"the chat template of {self.templates.folder} writes {len(turns)}"
        f" texts in {{% generation %}} for {len(answers)} messages of the"
        " assistant, so that those to train on cannot be told; correct it"
      )
    for index, turn in enumerate(turns):
      said, _, after = turn.partition(_END)
      own = (
        len(turns) != len(answers) or conversation.is_trained[answers[index]]
      )
      pieces += [said, after]
      is_target += [own, False]
    return _Rendering(
      marked=chat_prompt.Marked(pieces=tuple(pieces), mark=mark),
      is_target=tuple(is_target),
      conversation=conversation,
    )

  def _render_prefixes(
    self, conversation: messages_lib.Conversation
  ) -> list[_Rendering]:
    """By what the template writes before and after each turn."""
    mark = chat_prompt.unused_mark(_given(conversation))
    renderings: list[_Rendering] = []
    text, spans, trained = "", [], []
    for turn in _answers(conversation):
      if not conversation.is_trained[turn]:
        continue
      prompt = self._text(
        conversation, turn, mark=mark, add_generation_prompt=True
      )
      whole = self._text(conversation, turn + 1, mark=mark)
      if not whole.startswith(prompt):
        raise ValueError(self._mismatch(prompt, whole, turn, mark))
      if not whole.startswith(text):
        # The turns so far do not stand in this text as they were written.
        renderings.append(_rendering(text, spans, trained, conversation, mark))
        spans, trained = [], []
      text = whole
      spans.append((len(prompt), self._end_of_turn(whole, len(prompt))))
      trained.append(turn)
    return [
      *renderings,
      _rendering(text, spans, trained, conversation, mark),
    ]

  def _end_of_turn(self, text: str, start: int) -> int:
    """Where the turn that begins at `start` ends: nobody reads what follows."""
    names = list(self._encoder.special.finditer(text, start))
    if names and not text[names[-1].end() :].strip():
      return names[-1].end()
    return len(text)

  def _mismatch(self, prompt: str, whole: str, turn: int, mark: str) -> str:
    place = next(
      (
        i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b
      ),
      min(len(prompt), len(whole)),
    )
    begins, writes = (
      text[place : place + 40].replace(mark, "") for text in (prompt, whole)
    )
    return (
      f"the chat template of {self.templates.folder} begins the answer that is"
      f" message {turn} with {begins!r}, but writes {writes!r} there when the"
      " answer is known, so that what the model is to learn cannot be told; put"
      " {% generation %} and {% endgeneration %} around what the assistant says"
      " in the template"
    )


def _rendering(
  text: str,
  spans: Sequence[tuple[int, int]],
  trained: Sequence[int],
  conversation: messages_lib.Conversation,
  mark: str,
) -> _Rendering:
  """A text of which the spans, those of the trained turns, are targets."""
  pieces, is_target, place = [], [], 0
  for start, stop in spans:
    pieces += [text[place:start], text[start:stop]]
    is_target += [False, True]
    place = stop
  part = conversation.part(slice(0, trained[-1] + 1))
  return _Rendering(
    marked=chat_prompt.Marked(pieces=(*pieces, text[place:]), mark=mark),
    is_target=(*is_target, False),
    conversation=dataclasses.replace(
      part,
      is_trained=tuple(i in trained for i in range(len(part.messages))),
    ),
  )


def without_oldest_turn(
  conversation: messages_lib.Conversation,
) -> messages_lib.Conversation | None:
  """From a later message of the user on, the system's kept; None: no such."""
  roles = [message["role"] for message in conversation.messages]
  head = 0
  while head < len(roles) and roles[head] in _SYSTEM_ROLES:
    head += 1
  for start in range(head + 1, len(roles)):
    if roles[start] == "user" and any(conversation.is_trained[start:]):
      return conversation.part(slice(0, head), slice(start, None))
  return None


def _answers(conversation: messages_lib.Conversation) -> list[int]:
  """The messages of the assistant."""
  return [
    index
    for index, message in enumerate(conversation.messages)
    if message["role"] == messages_lib.ASSISTANT
  ]


def _with_system_role(
  conversation: messages_lib.Conversation,
) -> messages_lib.Conversation:
  """The developer's messages as the system's, as the server gives them."""
  return dataclasses.replace(
    conversation,
    messages=tuple(
      {**message, "role": "system"}
      if message["role"] == "developer"
      else message
      for message in conversation.messages
    ),
  )


def _given(conversation: messages_lib.Conversation) -> list[Any]:
  return [conversation.messages, conversation.tools, conversation.arguments]


def _with_print(tag: re.Match[str]) -> str:
  before, end, after = tag.groups()
  if end:
    return f"{{%{before} print {_END!r} %}}{{% endgeneration {after}%}}"
  return f"{{%{before} generation %}}{{% print {_BEGIN!r} {after}%}}"
