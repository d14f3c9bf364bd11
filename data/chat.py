"""Messages to the text that a chat model was trained on, by its template.

A template is Jinja, as Hugging Face's tokenizers carry it: in a file of its own
or in tokenizer_config.json. It comes from whoever published the model, so it
runs in a sandbox. What it renders names special tokens, a BOS among them if the
model wants one: `Tokenizer.encode_with_special_tokens` reads them, and nothing
is added. The text of a message can name them, too.
"""

import collections.abc
import dataclasses
import datetime
import functools
import json
import pathlib
from typing import Any, NoReturn

import jinja2
from jinja2 import ext
from jinja2 import meta
from jinja2 import nodes
from jinja2 import parser as parser_lib
from jinja2 import sandbox

_FILE = "chat_template.jinja"
_FOLDER = "additional_chat_templates"
_CONFIG = "tokenizer_config.json"
# Where a model has several templates: for a conversation without tools, and
# for one with tools.
_DEFAULT = "default"
_TOOL_USE = "tool_use"
# A noncharacter of Unicode: the end of a message that is to be gone on with.
_END = "\ufdef"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Templates:
  """A model's templates.

  Attributes:
    folder: Where they are from.
    sources: Each template by its name; most models have `default` alone.
    special_tokens: Name of each special token by its role, as `bos_token`.
  """

  folder: pathlib.Path
  sources: collections.abc.Mapping[str, str]
  special_tokens: collections.abc.Mapping[str, str]

  def source(self, *, has_tools: bool = False) -> str:
    """The template of a conversation.

    Raises:
      ValueError: There is none.
    """
    if has_tools and _TOOL_USE in self.sources:
      return self.sources[_TOOL_USE]
    if _DEFAULT in self.sources:
      return self.sources[_DEFAULT]
    if self.sources:
      raise ValueError(
        f"{self.folder / _CONFIG}: chat_template has {', '.join(self.sources)},"
        f" but no {_DEFAULT!r}; write the one to use into {_FILE} beside it"
      )
    raise ValueError(
      f"{self.folder} has no chat template: no {_FILE}, and no chat_template in"
      f" {_CONFIG}. The model may not be a chat model; if it is one, add its"
      f" template as {_FILE}"
    )

  def variables(self, *, has_tools: bool = False) -> frozenset[str]:
    """What the template asks for by name, such as `enable_thinking`."""
    return _variables(self.source(has_tools=has_tools))

  def render(
    self,
    messages: collections.abc.Sequence[collections.abc.Mapping[str, Any]],
    *,
    add_generation_prompt: bool,
    continue_final_message: bool = False,
    tools: collections.abc.Sequence[Any] | None = None,
    documents: collections.abc.Sequence[Any] | None = None,
    arguments: collections.abc.Mapping[str, Any] | None = None,
  ) -> str:
    """The text of a conversation.

    Args:
      messages: each with its `role` and `content`.
      add_generation_prompt: end with what begins the model's answer.
      continue_final_message: end within the last message, which the model goes
        on with.
      tools: functions that the model may call, as JSON schemas.
      documents: texts that it may use.
      arguments: what else the template asks for, such as `enable_thinking`.

    Raises:
      ValueError: there is no template, or it cannot be read, or refuses the
        messages.
    """
    source = self.source(has_tools=bool(tools))
    if continue_final_message:
      messages = _with_end(messages, add_generation_prompt)
    values = {
      **(arguments or {}),
      **self.special_tokens,
      "messages": messages,
      "tools": tools or None,
      "documents": documents or None,
      "add_generation_prompt": add_generation_prompt,
    }
    try:
      text = _compile(source).render(values)
    # A template can raise anything: it may add a string to a number.
    except Exception as error:
      raise ValueError(
        f"the chat template of {self.folder} cannot render these messages:"
        f" {type(error).__name__}: {error}; give the roles and contents that it"
        " expects, or correct the template"
      ) from error
    if not continue_final_message:
      return text
    text, found, _ = text.rpartition(_END)
    if not found:
      raise ValueError(
        f"the chat template of {self.folder} does not write the content of the"
        " last message, so that it cannot be gone on with; leave out"
        " continue_final_message"
      )
    return text


def load(tokenizer_folder: str | pathlib.Path) -> Templates:
  """The templates of a tokenizer's folder; there may be none.

  Raises:
    ValueError: The config cannot be read.
  """
  folder = pathlib.Path(tokenizer_folder)
  config = _read_config(folder)
  sources = {}
  template = config.get("chat_template")
  if isinstance(template, list):
    sources = {entry["name"]: entry["template"] for entry in template}
  elif template is not None:
    sources = {_DEFAULT: template}
  # Files are newer than the field of the config: they win.
  if (file := folder / _FILE).is_file():
    sources[_DEFAULT] = file.read_text(encoding="utf-8")
  for file in sorted((folder / _FOLDER).glob("*.jinja")):
    sources[file.stem] = file.read_text(encoding="utf-8")
  return Templates(
    folder=folder, sources=sources, special_tokens=_special_tokens(config)
  )


def render(
  messages: collections.abc.Sequence[collections.abc.Mapping[str, Any]],
  tokenizer_folder: str | pathlib.Path,
  *,
  add_generation_prompt: bool,
) -> str:
  """`Templates.render` of a folder's template, without tools."""
  return load(tokenizer_folder).render(
    messages, add_generation_prompt=add_generation_prompt
  )


def _with_end(
  messages: collections.abc.Sequence[collections.abc.Mapping[str, Any]],
  add_generation_prompt: bool,
) -> list[collections.abc.Mapping[str, Any]]:
  """The messages, the end of the last one's content marked."""
  if add_generation_prompt:
    raise ValueError(
      "continue_final_message and add_generation_prompt are both true, but a"
      " prompt ends either within a message or before the next; choose one"
    )
  if not messages or not isinstance(messages[-1].get("content"), str):
    raise ValueError(
      "continue_final_message needs a last message whose content is text"
    )
  last = messages[-1]
  return [*messages[:-1], {**last, "content": last["content"] + _END}]


def _read_config(folder: pathlib.Path) -> dict[str, Any]:
  file = folder / _CONFIG
  if not file.is_file():
    return {}
  return json.loads(file.read_text(encoding="utf-8"))


@functools.lru_cache(maxsize=16)
def _variables(source: str) -> frozenset[str]:
  environment = _environment()
  return frozenset(meta.find_undeclared_variables(environment.parse(source)))


@functools.lru_cache(maxsize=16)
def _compile(source: str) -> jinja2.Template:
  """The template, with what Hugging Face's renderer gives to one."""
  functions = {"raise_exception": _raise, "strftime_now": _strftime_now}
  return _environment().from_string(source, globals=functions)


def _environment() -> sandbox.ImmutableSandboxedEnvironment:
  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=["jinja2.ext.loopcontrols", _Generation],
  )
  environment.filters["tojson"] = _to_json
  return environment


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
  """Name of each special token by its role, such as `bos_token`."""
  tokens = {}
  for field, token in config.items():
    # Transformers writes a token as a string or as an object.
    name = token["content"] if isinstance(token, dict) else token
    if field.endswith("_token") and isinstance(name, str):
      tokens[field] = name
  return tokens


def _to_json(
  value: Any,
  ensure_ascii: bool = False,
  indent: int | None = None,
  separators: tuple[str, str] | None = None,
  sort_keys: bool = False,
) -> str:
  """JSON as it is; Jinja's own filter escapes HTML and all but ASCII."""
  return json.dumps(
    value,
    ensure_ascii=ensure_ascii,
    indent=indent,
    separators=separators,
    sort_keys=sort_keys,
  )


def _raise(message: str) -> NoReturn:
  raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
  return datetime.datetime.now().strftime(form)


class _Generation(ext.Extension):
  """`{% generation %}` around what the model says: only training asks."""

  def __init__(self, environment: jinja2.Environment):
    super().__init__(environment)
    self.tags = {"generation"}

  def parse(self, parser: parser_lib.Parser) -> nodes.Node:
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    return nodes.Scope(body, lineno=line)
