"""POST /tokenize and /detokenize, GET /tokenizer_info: the model's words.

lm-evaluation-harness needs no tokenizer of its own with these
(`tokenizer_backend=remote`).
"""

from aiohttp import web

from serve import conventions
from serve.api import answers
from serve.api import bodies
from serve.api import context as context_lib
from serve.api import conversations
from serve.api import errors
from serve.api import parameters
from serve.api import prompts
from serve.api import requests
from serve.api import responses


async def tokenize(http: web.Request) -> web.Response:
  """Of a prompt or messages."""
  context = http.app[context_lib.KEY]
  body = await bodies.read(http, requests.Tokenize)
  context.check_model(body.model)
  if (body.prompt is None) == (body.messages is None):
    raise errors.refused(
      "prompt", "Give a prompt or messages: one of them, not both."
    )
  words = context.known_words
  if body.messages is not None:
    tokens = await _conversation(body, context)
  else:
    tokens = await _prompt(body, context)
  names = None
  if body.return_token_strs:
    names = [words.vocabulary.name(token) for token in tokens]
  return answers.json(
    responses.Tokens(
      tokens=tokens,
      count=len(tokens),
      max_model_len=context.max_len,
      token_strs=names,
    )
  )


async def detokenize(http: web.Request) -> web.Response:
  """Of ids; special tokens by name."""
  context = http.app[context_lib.KEY]
  body = await bodies.read(http, requests.Detokenize)
  context.check_model(body.model)
  parameters.check_tokens(body.tokens, context, "tokens")
  tokenizer = context.known_words.tokenizer
  text = await context.work(tokenizer.decode, body.tokens)
  return answers.json(responses.Text(prompt=text))


async def info(http: web.Request) -> web.Response:
  """Special tokens and chat templates."""
  context = http.app[context_lib.KEY]
  templates = context.known_words.prompts.templates
  names = templates.special_tokens
  others = {k: v for k, v in templates.sources.items() if k != "default"}
  tokenizer = context.known_words.tokenizer

  def name(role: str, token: int | None) -> str | None:
    if role in names or token is None:
      return names.get(role)
    return context.known_words.vocabulary.name(token)

  # What texts begin with, whatever else the tokenizer has a name for.
  begin = conventions.begin_id(tokenizer, context.start)
  bos = None if begin is None else context.known_words.vocabulary.name(begin)
  return answers.json(
    responses.TokenizerInfo(
      eos_token=name("eos_token", tokenizer.eos_id),
      bos_token=bos,
      pad_token=name("pad_token", tokenizer.pad_id),
      chat_template=templates.sources.get("default"),
      vocab_size=context.vocab_size,
      max_model_len=context.max_len,
      eos_token_ids=sorted(context.end_ids),
      additional_chat_templates=others,
    )
  )


async def _conversation(
  body: requests.Tokenize, context: context_lib.Context
) -> list[int]:
  if body.add_special_tokens:
    raise errors.refused(
      "add_special_tokens",
      "The chat template begins the prompt; leave add_special_tokens out.",
    )
  made = await conversations.encode(
    body, body.messages or [], context, tools=body.tools or []
  )
  return list(made.prompt.tokens)


async def _prompt(
  body: requests.Tokenize, context: context_lib.Context
) -> list[int]:
  for field in (
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template_kwargs",
  ):
    if getattr(body, field) is not None:
      raise errors.refused(
        field, f"{field} is of messages, but there is a prompt; leave it out."
      )
  text = body.prompt or ""
  return await context.work(
    lambda: prompts.encode_text(
      text,
      context,
      add_special_tokens=body.add_special_tokens is not False,
    )
  )
