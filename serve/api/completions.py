"""POST /v1/completions: texts that go on."""

from collections.abc import Sequence
import dataclasses
import time

from aiohttp import web
import msgspec

from serve import detokenizer
from serve import request as request_lib
from serve.api import answers
from serve.api import bodies
from serve.api import choices as choices_lib
from serve.api import constraints
from serve.api import context as context_lib
from serve.api import contradictions
from serve.api import errors
from serve.api import logprobs
from serve.api import parameters as parameters_lib
from serve.api import prompts as prompts_lib
from serve.api import requests
from serve.api import responses
from serve.api import sse
from serve.api import usage

# As OpenAI's API has it.
_USUAL_TOKENS = 16


async def create(http: web.Request) -> web.StreamResponse:
  """The handler."""
  context = http.app[context_lib.KEY]
  body = await bodies.read(http, requests.Completion)
  context.check_model(body.model)
  plan = await _plan(body, context)
  with choices_lib.Run(context, http, id_=answers.new_id("cmpl")) as run:
    for prompt, num in zip(plan.prompts, plan.max_tokens, strict=True):
      run.add(
        prompt,
        max_tokens=num,
        parameters=plan.parameters,
        constraints=await constraints.compile_rule(
          plan.rule, context, plan.num_candidates
        ),
      )
    answer = _Answer(body, context, plan, run)
    if body.stream:
      return await answer.stream(http)
    return await answer.whole()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
  """A request, checked.

  Attributes:
    prompts: To be gone on with.
    max_tokens: Of each prompt's continuation.
    parameters: Of all.
    rule: Of each continuation.
    num_choices: Given, of each prompt.
    num_candidates: Made, of each prompt.
  """

  prompts: list[prompts_lib.Prompt]
  max_tokens: list[int]
  parameters: parameters_lib.Parameters
  rule: constraints.Rule | None
  num_choices: int
  num_candidates: int


async def _plan(
  body: requests.Completion, context: context_lib.Context
) -> _Plan:
  contradictions.check(body)
  num = 1 if body.n is None else body.n
  candidates = num if body.best_of is None else body.best_of
  num_logprobs = body.logprobs
  if candidates > num and num_logprobs is None:
    num_logprobs = 0
  parameters = parameters_lib.read(
    body, context, num_logprobs=num_logprobs, user=answers.user()
  )
  if body.echo and body.logprobs is not None:
    most = max(body.logprobs, body.prompt_logprobs or 0)
    parameters = dataclasses.replace(parameters, num_prompt_logprobs=most)
  prompts = await prompts_lib.encode(
    body.prompt,
    context,
    add_special_tokens=body.add_special_tokens is not False,
    param="prompt",
    most=context.config.max_choices,
  )
  answers.check_number(
    "n" if body.best_of is None else "best_of",
    candidates,
    context,
    num_prompts=len(prompts),
  )
  usual = context.generation.max_tokens or _USUAL_TOKENS
  max_tokens = [
    prompts_lib.max_tokens(
      prompt.tokens, body.max_tokens, context, usual=usual, param="prompt"
    )
    for prompt in prompts
  ]
  contradictions.check_lengths(body.min_tokens, min(max_tokens))
  return _Plan(
    prompts=prompts,
    max_tokens=max_tokens,
    parameters=parameters,
    rule=constraints.read(body),
    num_choices=num,
    num_candidates=candidates,
  )


class _Answer:
  """Makes the response, whole or in pieces."""

  def __init__(
    self,
    body: requests.Completion,
    context: context_lib.Context,
    plan: _Plan,
    run: choices_lib.Run,
  ):
    self._body = body
    self._context = context
    self._plan = plan
    self._run = run
    self._vocabulary = context.vocabulary
    self._created = int(time.time())
    # Of each prompt that is echoed: its text, and where its tokens are in it.
    self._echoes: dict[prompts_lib.Prompt, _Echo] = {}
    if body.echo:
      for prompt, num in zip(plan.prompts, plan.max_tokens, strict=True):
        self._echoes[prompt] = _echo(
          prompt,
          self._vocabulary,
          plan.parameters.skip_special_tokens,
          is_all=not num,
        )

  async def whole(self) -> web.Response:
    async for _ in self._run.pieces():
      pass
    chosen = []
    num = self._plan.num_candidates
    for start in range(0, len(self._run.choices), num):
      group = self._run.choices[start : start + num]
      if num > self._plan.num_choices:
        group.sort(key=lambda choice: -choice.mean_logprob)
      chosen += group[: self._plan.num_choices]
    body = self._completion(
      [self._choice(index, choice) for index, choice in enumerate(chosen)],
      usage=usage.of(self._run.choices),
    )
    return answers.json(body, step=self._run.step)

  async def stream(self, http: web.Request) -> web.StreamResponse:
    events = sse.Events(http, seconds=self._context.config.write_seconds)
    options = self._body.stream_options or requests.StreamOptions()
    running = options.continuous_usage_stats
    begun: set[int] = set()
    try:
      async for choice, piece in self._run.pieces():
        is_first = choice.index not in begun
        begun.add(choice.index)
        delta = self._delta(choice, piece, is_first=is_first)
        used = usage.of([choice]) if running else None
        await events.send(
          self._completion(
            [delta],
            usage=used if used or options.include_usage else msgspec.UNSET,
          ),
          answers.headers(self._run.step),
        )
      if options.include_usage:
        used = usage.of(self._run.choices)
        await events.send(self._completion([], usage=used))
      await events.finish()
    except errors.ApiError as error:
      await events.fail(error)
    return events.response

  def _completion(
    self,
    choices: list[responses.CompletionChoice],
    *,
    usage: responses.Usage | msgspec.UnsetType | None,
  ) -> responses.Completion:
    return responses.Completion(
      id=self._run.id,
      created=self._created,
      model=self._context.model_name,
      system_fingerprint=answers.fingerprint(self._run.step),
      choices=choices,
      usage=usage,
    )

  def _choice(
    self, index: int, choice: choices_lib.Choice
  ) -> responses.CompletionChoice:
    """An answer as a whole: one piece that is first and last."""
    piece = choices_lib.Piece(
      text=choice.text,
      tokens=tuple(choice.tokens),
      logprobs=tuple(choice.logprobs),
      offsets=tuple(choice.offsets),
      is_last=True,
    )
    made = self._delta(choice, piece, is_first=True)
    made.index = index
    return made

  def _delta(
    self,
    choice: choices_lib.Choice,
    piece: choices_lib.Piece,
    *,
    is_first: bool,
  ) -> responses.CompletionChoice:
    body = self._body
    echo = self._echoes.get(choice.prompt)
    leader = self._run.leader(choice)
    tokens: Sequence[int] = piece.tokens
    entries: Sequence[request_lib.TokenLogprobs | None] = piece.logprobs
    shift = len(echo.text) if echo else 0
    offsets = [offset + shift for offset in piece.offsets]
    text = piece.text
    if echo and is_first:
      text = echo.text + text
      if body.logprobs is not None:
        # Not what the server has added: places of tokens are the client's.
        added = choice.prompt.num_added
        # The first has none, as everywhere.
        known = (leader.prompt_logprobs or ())[added + 1 :]
        echoed = (None, *known)[: len(choice.prompt.tokens) - added]
        tokens = (*choice.prompt.tokens[added:], *tokens)
        entries = (*_cut(echoed, body.logprobs), *entries)
        offsets = [*echo.offsets[added:], *offsets]
    made = responses.CompletionChoice(
      index=choice.index,
      text=text,
      logprobs=None
      if body.logprobs is None
      else logprobs.completion(tokens, entries, offsets, self._vocabulary),
      finish_reason=choice.finish if piece.is_last else None,
      stop_reason=choice.stop_reason if piece.is_last else None,
    )
    if body.return_token_ids or self._context.words is None:
      made.token_ids = list(piece.tokens)
      if is_first:
        made.prompt_token_ids = list(choice.prompt.tokens)
    if is_first and body.prompt_logprobs is not None:
      made.prompt_logprobs = logprobs.prompt(
        choice.prompt.tokens,
        _cut(leader.prompt_logprobs or (), body.prompt_logprobs),
        self._vocabulary,
      )
    return made


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Echo:
  """A prompt as text, and the characters before each of its tokens."""

  text: str
  offsets: tuple[int, ...]


def _echo(
  prompt: prompts_lib.Prompt,
  vocabulary: detokenizer.Vocabulary | None,
  skip_special_tokens: bool,
  *,
  is_all: bool,
) -> _Echo:
  """A character that the prompt begins and does not end is the answer's own."""
  if vocabulary is None:
    return _Echo(text="", offsets=(0,) * len(prompt.tokens))
  text = detokenizer.Detokenizer(
    vocabulary, (), skip_special_tokens=skip_special_tokens
  )
  text.push(prompt.tokens)
  if is_all:
    text.finish()
  return _Echo(
    text=text.text if prompt.text is None else prompt.text,
    offsets=tuple(piece.offset for piece in text.pieces),
  )


def _cut(
  entries: Sequence[request_lib.TokenLogprobs | None], num: int
) -> list[request_lib.TokenLogprobs | None]:
  """The likeliest `num` of each, where more were made."""
  return [
    entry and dataclasses.replace(entry, top=entry.top[:num])
    for entry in entries
  ]
