"""POST /v1/chat/completions: conversations, with tools and reasoning."""

import dataclasses
import time

from aiohttp import web
from msgspec import UNSET

from serve.api import answers
from serve.api import bodies
from serve.api import chat_reader
from serve.api import chat_rules
from serve.api import choices as choices_lib
from serve.api import constraints
from serve.api import context as context_lib
from serve.api import contradictions
from serve.api import conversations
from serve.api import errors
from serve.api import logprobs
from serve.api import parameters as parameters_lib
from serve.api import prompts as prompts_lib
from serve.api import reasoning
from serve.api import requests
from serve.api import responses
from serve.api import sse
from serve.api import usage

_Chunk = responses.ChatChunkChoice


async def create(http: web.Request) -> web.StreamResponse:
  """The handler."""
  context = http.app[context_lib.KEY]
  body = await bodies.read(http, requests.Chat)
  context.check_model(body.model)
  plan = await _plan(body, context)
  num = body.n or 1
  made = await constraints.compile_rule(plan.rule, context, num)
  with choices_lib.Run(context, http, id_=answers.new_id("chatcmpl")) as run:
    run.add(
      plan.conversation.prompt,
      max_tokens=plan.max_tokens,
      parameters=plan.parameters,
      constraints=made,
      shows_special_tokens=_has_marks(plan),
    )
    answer = _Answer(body, context, plan, run)
    if body.stream:
      return await answer.stream(http)
    return await answer.whole()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
  """A request, checked.

  Attributes:
    conversation: To be gone on with.
    max_tokens: Of each answer.
    parameters: Of all.
    tools: How their calls are found; None: there are none.
    rule: Of each answer.
  """

  conversation: conversations.Conversation
  max_tokens: int
  parameters: parameters_lib.Parameters
  tools: chat_rules.Tools | None
  rule: constraints.Rule | None


async def _plan(body: requests.Chat, context: context_lib.Context) -> _Plan:
  contradictions.check(body)
  answers.check_number("n", body.n or 1, context)
  parameters = parameters_lib.read(
    body,
    context,
    num_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    user=answers.user(),
  )
  tools = chat_rules.offered(body)
  conversation = await conversations.encode(
    body, body.messages, context, tools=tools
  )
  rule, reads = chat_rules.read(body, tools, conversation.calls, context)
  limits = [
    limit
    for limit in (body.max_tokens, body.max_completion_tokens)
    if limit is not None
  ]
  max_tokens = prompts_lib.max_tokens(
    conversation.prompt.tokens,
    min(limits, default=None),
    context,
    usual=context.generation.max_tokens,
    param="messages",
  )
  contradictions.check_lengths(body.min_tokens, max_tokens)
  return _Plan(
    conversation=conversation,
    max_tokens=max_tokens,
    parameters=parameters,
    tools=reads,
    rule=rule,
  )


class _Answer:
  """Makes the response, whole or in pieces."""

  def __init__(
    self,
    body: requests.Chat,
    context: context_lib.Context,
    plan: _Plan,
    run: choices_lib.Run,
  ):
    self._body = body
    self._context = context
    self._plan = plan
    self._run = run
    self._vocabulary = context.known_words.vocabulary
    self._created = int(time.time())
    # A rule holds from the first token on: there is no thinking before it.
    thinks = (
      reasoning.is_known(plan.conversation.template) and plan.rule is None
    )
    self._readers = [
      chat_reader.Reader(
        plan.tools,
        thought_prompt=plan.conversation.rendered if thinks else None,
        skipped=self._skipped(),
      )
      for _ in run.choices
    ]

  async def whole(self) -> web.Response:
    async for choice, piece in self._run.pieces():
      self._read(choice, piece)
    body = responses.Chat(
      id=self._run.id,
      created=self._created,
      model=self._context.model_name,
      system_fingerprint=answers.fingerprint(self._run.step),
      choices=[self._choice(choice) for choice in self._run.choices],
      usage=usage.of(self._run.choices),
    )
    if self._body.prompt_logprobs is not None:
      body.prompt_logprobs = self._prompt_logprobs()
    if self._body.return_token_ids:
      body.prompt_token_ids = list(self._plan.conversation.prompt.tokens)
    return answers.json(body, step=self._run.step)

  async def stream(self, http: web.Request) -> web.StreamResponse:
    events = sse.Events(http, seconds=self._context.config.write_seconds)
    options = self._body.stream_options or requests.StreamOptions()
    begun: set[int] = set()

    async def send(choice: choices_lib.Choice, *chunks: _Chunk) -> None:
      for made in chunks:
        chunk = self._chunk([made])
        if options.continuous_usage_stats:
          chunk.usage = usage.of([choice])
        elif options.include_usage:
          chunk.usage = None
        if choice.index not in begun and choice.index == 0:
          self._add_prompt(chunk)
        begun.add(choice.index)
        await events.send(chunk, answers.headers(self._run.step))

    try:
      async for choice, piece in self._run.pieces():
        if choice.index not in begun:
          await send(choice, self._first(choice))
        delta = self._read(choice, piece)
        made = self._next(choice, piece, delta)
        if made is not None:
          await send(choice, made)
        if choice.finish is not None:
          await send(choice, self._last(choice))
      if options.include_usage:
        chunk = self._chunk([])
        chunk.usage = usage.of(self._run.choices)
        await events.send(chunk)
      await events.finish()
    except errors.ApiError as error:
      await events.fail(error)
    return events.response

  def _read(
    self, choice: choices_lib.Choice, piece: choices_lib.Piece
  ) -> responses.Delta:
    reader = self._readers[choice.index]
    delta = reader.push(piece.text, is_last=piece.is_last)
    if reader.is_done and not piece.is_last:
      choice.end()
      self._run.end(choice)
    return delta

  def _choice(self, choice: choices_lib.Choice) -> responses.ChatChoice:
    reader = self._readers[choice.index]
    made = responses.ChatChoice(
      index=choice.index,
      message=reader.message(self._body.include_reasoning is not False),
      logprobs=logprobs.chat(choice.tokens, choice.logprobs, self._vocabulary)
      if self._body.logprobs
      else None,
      finish_reason=self._finish(choice),
      stop_reason=choice.stop_reason,
    )
    if self._body.return_token_ids:
      made.token_ids = list(choice.tokens)
    return made

  def _finish(self, choice: choices_lib.Choice) -> responses.ChatFinish:
    assert choice.finish is not None
    if self._readers[choice.index].has_calls and choice.finish == "stop":
      return "tool_calls"
    return choice.finish

  def _first(self, choice: choices_lib.Choice) -> _Chunk:
    return _Chunk(
      index=choice.index,
      delta=responses.Delta(role="assistant", content=""),
      logprobs=None,
      finish_reason=None,
    )

  def _next(
    self,
    choice: choices_lib.Choice,
    piece: choices_lib.Piece,
    delta: responses.Delta,
  ) -> _Chunk | None:
    """A chunk, if there is something to say."""
    if self._body.include_reasoning is False:
      delta.reasoning_content = UNSET
    made = _Chunk(
      index=choice.index, delta=delta, logprobs=None, finish_reason=None
    )
    if piece.tokens and self._body.logprobs:
      made.logprobs = logprobs.chat(
        piece.tokens, piece.logprobs, self._vocabulary
      )
    if piece.tokens and self._body.return_token_ids:
      made.token_ids = list(piece.tokens)
    says = delta != responses.Delta()
    if says or made.logprobs is not None or made.token_ids is not UNSET:
      return made
    return None

  def _last(self, choice: choices_lib.Choice) -> _Chunk:
    return _Chunk(
      index=choice.index,
      delta=responses.Delta(),
      logprobs=None,
      finish_reason=self._finish(choice),
      stop_reason=choice.stop_reason,
    )

  def _chunk(self, choices: list[_Chunk]) -> responses.ChatChunk:
    return responses.ChatChunk(
      id=self._run.id,
      created=self._created,
      model=self._context.model_name,
      system_fingerprint=answers.fingerprint(self._run.step),
      choices=choices,
    )

  def _add_prompt(self, chunk: responses.ChatChunk) -> None:
    if self._body.prompt_logprobs is not None:
      chunk.prompt_logprobs = self._prompt_logprobs()
    if self._body.return_token_ids:
      chunk.prompt_token_ids = list(self._plan.conversation.prompt.tokens)

  def _prompt_logprobs(self) -> responses.PromptLogprobs:
    return logprobs.prompt(
      self._plan.conversation.prompt.tokens,
      self._run.choices[0].prompt_logprobs or (),
      self._vocabulary,
    )

  def _skipped(self) -> frozenset[str]:
    """Names of special tokens that are in the text for the reader alone."""
    skips = self._plan.parameters.skip_special_tokens
    if not (skips and _has_marks(self._plan)):
      return frozenset()
    return frozenset(
      self._vocabulary.text(token) for token in self._vocabulary.special_ids
    )


def _has_marks(plan: _Plan) -> bool:
  """Whether calls of tools are found by special tokens, which text has not."""
  return plan.tools is not None and plan.tools.has_special_marks
