"""The answers to a request: each is a request to the engine, and text.

n answers to a prompt share its computation: all but the first wait for the
first one's prompt. Whatever ends the handler (the client has left, an error in
one of the answers) ends all of them.
"""

import asyncio
import collections
from collections.abc import AsyncIterator, Sequence
import dataclasses
import math
import time
from typing import Literal, Self

from aiohttp import web

from serve import detokenizer
from serve import engine as engine_lib
from serve import request as request_lib
from serve import scheduler
from serve.api import context as context_lib
from serve.api import errors
from serve.api import parameters as parameters_lib
from serve.api import prompts as prompts_lib

# After a request's deadline, the engine has so long to say that it has passed.
_GRACE_SECONDS = 1.0
# Between looks whether the client is still there, while nothing comes.
_SECONDS_BETWEEN_LOOKS = 0.5
# Outputs that are there already; then others have their turn.
_NUM_AT_A_TIME = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
  """What is new of an answer.

  Attributes:
    text: Characters.
    tokens: Ids, the one that ended the text included.
    logprobs: Of each of them, if asked for.
    offsets: Characters of the answer before each of them.
    is_last: Nothing more comes.
  """

  text: str
  tokens: tuple[int, ...]
  logprobs: tuple[request_lib.TokenLogprobs, ...]
  offsets: tuple[int, ...]
  is_last: bool


class Choice:
  """One answer.

  Attributes:
    index: Among all answers.
    prompt: Which it answers.
    request: To the engine.
    tokens: So far.
    logprobs: Of each, if asked for.
    offsets: Of each: characters of the text before it.
    text: So far.
    prompt_logprobs: Of the prompt, if this is the first answer to it.
    num_cached: Tokens of the prompt that were found computed.
    finish: Why it ended; None: it goes on.
    stop_reason: The stop string, or the token of `stop_token_ids`.
  """

  def __init__(
    self,
    index: int,
    prompt: prompts_lib.Prompt,
    request: request_lib.Request,
    text: detokenizer.Detokenizer | None,
    end_ids: frozenset[int],
  ):
    self.index = index
    self.prompt = prompt
    self.request = request
    self.tokens: list[int] = []
    self.logprobs: list[request_lib.TokenLogprobs] = []
    self.offsets: list[int] = []
    self.text = ""
    self.prompt_logprobs: (
      tuple[request_lib.TokenLogprobs | None, ...] | None
    ) = None
    self.num_cached = 0
    self.finish: Literal["stop", "length"] | None = None
    self.stop_reason: str | int | None = None
    self._detokenizer = text
    self._end_ids = end_ids

  @property
  def mean_logprob(self) -> float:
    """By which the best of several is found."""
    total = sum(entry.logprob for entry in self.logprobs)
    return total / max(1, len(self.logprobs))

  def push(self, output: request_lib.Output) -> Piece:
    """Takes an output of the engine that is not an error."""
    if output.prompt_logprobs is not None:
      self.prompt_logprobs = output.prompt_logprobs
    self.num_cached = max(self.num_cached, output.num_cached)
    start = len(self.tokens)
    self.tokens += output.tokens
    self.logprobs += output.logprobs
    shown = list(output.tokens)
    if output.finish is request_lib.FinishReason.STOP:
      self.finish = "stop"
      if shown and shown[-1] in self.request.stop_ids:
        last = shown.pop()
        if last not in self._end_ids:
          self.stop_reason = last
    elif output.finish is not None:
      self.finish = "length"
    text = self._show(shown)
    self.text += text
    return Piece(
      text=text,
      tokens=output.tokens,
      logprobs=output.logprobs,
      offsets=tuple(self.offsets[start:]),
      is_last=self.finish is not None,
    )

  def end(self) -> Piece:
    """Ends it here, as if a stop string had been found."""
    self.finish = "stop"
    return Piece(text="", tokens=(), logprobs=(), offsets=(), is_last=True)

  def _show(self, tokens: Sequence[int]) -> str:
    words = self._detokenizer
    if words is None:
      self.offsets += [0] * (len(self.tokens) - len(self.offsets))
      return ""
    text = words.push(tokens)
    if words.stop is None and self.finish is not None:
      text += words.finish()
    if words.stop is not None:
      self.finish = "stop"
      self.stop_reason = words.stop
    pieces = words.pieces[len(self.offsets) :]
    self.offsets += [piece.offset for piece in pieces]
    end = len(self.text) + len(text)
    # Tokens that are not text: the last, and what follows a stop string.
    self.offsets += [end] * (len(self.tokens) - len(self.offsets))
    return text


class Run:
  """The answers to a request while they are made: a context manager.

  Attributes:
    id: Of the response.
    choices: `num_choices` for each prompt in turn.
    step: The checkpoint's training step that was heard of last.
  """

  def __init__(
    self, context: context_lib.Context, http: web.Request, *, id_: str
  ):
    self.id = id_
    self.choices: list[Choice] = []
    self.step = 0
    self._context = context
    self._http = http
    self._seconds = 0.0
    self._deadline = math.inf
    self._unfinished: dict[str, Choice] = {}
    self._submitted: set[str] = set()
    self._loop = asyncio.get_running_loop()
    self._outputs: collections.deque[request_lib.Output] = collections.deque()
    self._has_outputs = asyncio.Event()
    self._is_signalled = False

  def add(
    self,
    prompt: prompts_lib.Prompt,
    *,
    max_tokens: int,
    parameters: parameters_lib.Parameters,
    constraints: Sequence[request_lib.Constraint | None],
    pools: bool = False,
    shows_special_tokens: bool = False,
  ) -> None:
    """Asks for answers to a prompt, as many as there are constraints.

    Args:
      prompt: What is to be gone on with.
      max_tokens: Of each answer.
      parameters: Of the request.
      constraints: What each answer must obey.
      pools: The mean hidden state is wanted.
      shows_special_tokens: They are text, whatever the request says.

    Raises:
      errors.ApiError: The engine takes no more.
    """
    self._seconds = parameters.seconds
    self._deadline = parameters.deadline
    start = len(self.choices)
    leader = f"{self.id}-{start}"
    for index, constraint in enumerate(constraints):
      request = request_lib.Request(
        id=f"{self.id}-{start + index}",
        prompt=prompt.tokens,
        max_tokens=max_tokens,
        min_tokens=parameters.min_tokens,
        stop_ids=parameters.stop_ids,
        sampling=parameters.choice_sampling(index),
        constraint=constraint,
        num_prompt_logprobs=(None if index else parameters.num_prompt_logprobs),
        pools=pools,
        priority=parameters.priority,
        user=parameters.user,
        deadline=parameters.deadline,
        leader=leader if index else None,
      )
      words = self._context.words
      text = None
      if words is not None:
        text = detokenizer.Detokenizer(
          words.vocabulary,
          prompt.tokens,
          stops=parameters.stops,
          include_stop=parameters.include_stop,
          skip_special_tokens=(
            parameters.skip_special_tokens and not shows_special_tokens
          ),
          min_tokens=parameters.min_tokens,
        )
      choice = Choice(
        start + index, prompt, request, text, self._context.end_ids
      )
      self.choices.append(choice)
      self._submit(choice)

  def leader(self, choice: Choice) -> Choice:
    """The first answer to the same prompt."""
    leader = choice.request.leader
    if leader is None:
      return choice
    return self.choices[int(leader.rpartition("-")[2])]

  async def outputs(
    self,
  ) -> AsyncIterator[tuple[Choice, request_lib.Output]]:
    """What the engine says, until all is said.

    Raises:
      errors.ApiError: An answer has failed, or took too long.
      ConnectionError: The client has left.
    """
    num_taken = 0
    while self._unfinished:
      num_taken += 1
      if num_taken % _NUM_AT_A_TIME == 0:
        await asyncio.sleep(0)
      while not self._outputs:
        await self._wait()
      output = self._outputs.popleft()
      choice = self._unfinished.get(output.request_id)
      if output.finish is not None:
        self._submitted.discard(output.request_id)
      if choice is None:  # Ended by us.
        continue
      self._check(output)
      self.step = output.step
      if output.finish is not None:
        del self._unfinished[output.request_id]
      yield choice, output

  async def pieces(self) -> AsyncIterator[tuple[Choice, Piece]]:
    """The same as text; raises the same."""
    async for choice, output in self.outputs():
      piece = choice.push(output)
      if piece.is_last:
        self.end(choice)
      yield choice, piece

  def end(self, choice: Choice) -> None:
    """Nothing more is wanted of an answer."""
    self._unfinished.pop(choice.request.id, None)
    if choice.request.id in self._submitted:
      self._submitted.remove(choice.request.id)
      self._context.engine.abort(choice.request.id)

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *error: object) -> None:
    self._unfinished.clear()
    for request_id in self._submitted:
      self._context.engine.abort(request_id)
    self._submitted.clear()

  def _submit(self, choice: Choice) -> None:
    try:
      self._context.engine.submit(choice.request, self._on_output)
    except scheduler.QueueFullError as error:
      raise errors.queue_full(str(error), error.retry_after) from error
    except engine_lib.UnavailableError as error:
      raise errors.unavailable(str(error)) from error
    except ValueError as error:
      raise errors.ApiError(str(error)) from error
    self._submitted.add(choice.request.id)
    self._unfinished[choice.request.id] = choice

  def _on_output(self, output: request_lib.Output) -> None:
    """On the engine's thread: as short as it can be."""
    self._outputs.append(output)
    if not self._is_signalled:
      self._is_signalled = True
      self._loop.call_soon_threadsafe(self._signal)

  def _signal(self) -> None:
    self._is_signalled = False
    self._has_outputs.set()

  async def _wait(self) -> None:
    self._has_outputs.clear()
    if self._outputs:
      return
    try:
      async with asyncio.timeout(_SECONDS_BETWEEN_LOOKS):
        await self._has_outputs.wait()
    except TimeoutError:
      transport = self._http.transport
      if transport is None or transport.is_closing():
        raise ConnectionResetError("The client has left.") from None
      # As when a step of the engine does not end.
      if time.monotonic() > self._deadline + _GRACE_SECONDS:
        raise errors.timed_out(self._seconds) from None

  def _check(self, output: request_lib.Output) -> None:
    if output.finish is request_lib.FinishReason.ERROR:
      raise errors.failed(output.error)
    if output.finish is request_lib.FinishReason.DEADLINE:
      raise errors.timed_out(self._seconds)
    if output.finish is request_lib.FinishReason.ABORTED:
      raise errors.unavailable("The request was ended by the server.")
