"""Messages to the text that a chat model was trained on, by its template.

A template is Jinja, as Hugging Face's tokenizers carry it: in a file of its own
or in tokenizer_config.json. It comes from whoever published the model, so it
runs in a sandbox. What it renders names special tokens, a BOS among them if the
model wants one: `Tokenizer.encode_with_special_tokens` reads them, and nothing
is added. The text of a message can name them, too.
"""

import collections.abc
import datetime
import functools
import json
import pathlib
from typing import Any, NoReturn

import jinja2
from jinja2 import ext
from jinja2 import nodes
from jinja2 import parser as parser_lib
from jinja2 import sandbox

_FILE = "chat_template.jinja"
_CONFIG = "tokenizer_config.json"
# Where a model has several templates, that for a conversation without tools.
_DEFAULT = "default"


def render(
  messages: collections.abc.Sequence[collections.abc.Mapping[str, Any]],
  tokenizer_folder: str | pathlib.Path,
  *,
  add_generation_prompt: bool,
) -> str:
  """The text of a conversation.

  Args:
    messages: each with its `role` and `content`.
    tokenizer_folder: has the template and the names of the special tokens.
    add_generation_prompt: end with what begins the model's answer.

  Raises:
    ValueError: there is no template, or it cannot be read, or refuses the
      messages.
  """
  folder = pathlib.Path(tokenizer_folder)
  config = _read_config(folder)
  source = _template(folder, config)
  try:
    return _compile(source).render(
      messages=messages,
      tools=None,
      documents=None,
      add_generation_prompt=add_generation_prompt,
      **_special_tokens(config),
    )
  # A template can raise anything: it may add a string to a number.
  except Exception as error:
    raise ValueError(
      f"the chat template of {folder} cannot render these messages:"
      f" {type(error).__name__}: {error}; give the roles and contents that it"
      " expects, or correct the template"
    ) from error


def _read_config(folder: pathlib.Path) -> dict[str, Any]:
  file = folder / _CONFIG
  if not file.is_file():
    return {}
  return json.loads(file.read_text(encoding="utf-8"))


def _template(folder: pathlib.Path, config: dict[str, Any]) -> str:
  """The source of the template: the file's, if there is one."""
  file = folder / _FILE
  if file.is_file():
    return file.read_text(encoding="utf-8")
  template = config.get("chat_template")
  if isinstance(template, list):
    named = {entry["name"]: entry["template"] for entry in template}
    if _DEFAULT not in named:
      raise ValueError(
        f"{folder / _CONFIG}: chat_template has {', '.join(named)}, but no"
        f" {_DEFAULT!r}; write the one to use into {_FILE} beside it"
      )
    template = named[_DEFAULT]
  if template is None:
    raise ValueError(
      f"{folder} has no chat template: no {_FILE}, and no chat_template in"
      f" {_CONFIG}. The model may not be a chat model; if it is one, add its"
      f" template as {_FILE}"
    )
  return template


@functools.lru_cache(maxsize=16)
def _compile(source: str) -> jinja2.Template:
  """The template, with what Hugging Face's renderer gives to one."""
  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=["jinja2.ext.loopcontrols", _Generation],
  )
  environment.filters["tojson"] = _to_json
  functions = {"raise_exception": _raise, "strftime_now": _strftime_now}
  return environment.from_string(source, globals=functions)


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
