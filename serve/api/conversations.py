"""The prompt of a chat: messages, tools and arguments through the template."""

from collections.abc import Sequence
import dataclasses

from data import chat_prompt
from serve.api import context as context_lib
from serve.api import errors
from serve.api import messages as messages_lib
from serve.api import prompts as prompts_lib
from serve.api import requests
from serve.api import told_tools
from serve.api import tool_formats

# What requests have fields for; `chat_template_kwargs` may not say otherwise.
OWN_ARGUMENTS = frozenset(
  (
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "reasoning_effort",
  )
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversation:
  """A chat, ready to be gone on with.

  Attributes:
    prompt: Its ids.
    rendered: As the template has written it.
    template: The template itself.
    calls: How the model writes calls of tools.
  """

  prompt: prompts_lib.Prompt
  rendered: str
  template: str
  calls: tool_formats.Format


async def encode(
  body: requests.Chat | requests.Tokenize,
  messages: Sequence[messages_lib.Message],
  context: context_lib.Context,
  *,
  tools: Sequence[messages_lib.Tool],
) -> Conversation:
  """The prompt of a chat.

  Args:
    body: The request.
    messages: Its messages.
    context: What is served.
    tools: That the model may call.

  Raises:
    errors.ApiError: There is no template, or it refuses the messages.
  """
  prompts = context.known_words.prompts
  try:
    template = prompts.templates.source(has_tools=bool(tools))
    variables = prompts.templates.variables(has_tools=bool(tools))
  except ValueError as error:
    raise errors.refused(
      "messages", str(error), code="no_chat_template"
    ) from error
  arguments = dict(body.chat_template_kwargs or {})
  for name in arguments:
    if name in OWN_ARGUMENTS:
      raise errors.refused(
        f"chat_template_kwargs.{name}", f"{name} is a field of the request."
      )
    if name not in variables:
      raise errors.refused(
        f"chat_template_kwargs.{name}",
        f"The model's chat template does not ask for {name!r}; it would change"
        " nothing. Leave it out.",
        code="unsupported_parameter",
      )
  documents = None
  if isinstance(body, requests.Chat):
    documents = body.documents
    if documents and "documents" not in variables:
      raise errors.refused(
        "documents",
        "The model's chat template does not know documents; put them into a"
        " message.",
        code="unsupported_parameter",
      )
    if body.reasoning_effort is not None:
      if "reasoning_effort" not in variables:
        raise errors.refused(
          "reasoning_effort",
          "The model's chat template does not know reasoning_effort; leave it"
          " out.",
          code="unsupported_parameter",
        )
      arguments.setdefault("reasoning_effort", body.reasoning_effort)
  if body.add_generation_prompt and body.continue_final_message:
    raise errors.refused(
      "continue_final_message",
      "A prompt ends either within the last message (continue_final_message) or"
      " before the next (add_generation_prompt); choose one.",
    )
  for message in messages:
    if isinstance(message.content, str):
      prompts_lib.check_size(message.content, context, "messages")
  begins = not body.continue_final_message
  if body.add_generation_prompt is not None:
    begins = body.add_generation_prompt

  has_tools = "tools" in variables

  def render() -> chat_prompt.Prompt:
    plain = messages_lib.to_template(
      messages, has_developer="developer" in template
    )
    offered = messages_lib.tools_to_template(tools)
    if not has_tools:
      plain, offered = told_tools.tell(plain, offered), []
    return prompts.encode(
      plain,
      add_generation_prompt=begins,
      continue_final_message=bool(body.continue_final_message),
      tools=offered or None,
      documents=documents,
      arguments=arguments,
    )

  try:
    made = await context.work(render)
  except ValueError as error:
    raise errors.refused("messages", str(error)) from error
  if not made.tokens:
    raise errors.refused("messages", "The chat template writes nothing.")
  tokens = made.tokens
  return Conversation(
    prompt=prompts_lib.Prompt(tokens=tokens),
    rendered=made.text,
    template=template,
    calls=tool_formats.detect(template) if has_tools else told_tools.FORMAT,
  )


def literal(text: str, context: context_lib.Context) -> str:
  """A text in Lark's syntax; a special token by its id."""
  words = context.known_words
  ids = words.tokenizer.encode_with_special_tokens(text)
  if len(ids) == 1 and ids[0] in words.vocabulary.special_ids:
    return f"<[{ids[0]}]>"
  return tool_formats.quoted(text)
