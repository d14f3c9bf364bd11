"""What the handlers work with: the engine, the model's words, the limits."""

import asyncio
from collections.abc import Callable
import concurrent.futures
import dataclasses
import time
from typing import Any, Protocol, TypeVar

from aiohttp import web

from data import chat_prompt
from data import tokenizer as tokenizer_lib
from serve import config as config_lib
from serve import conventions
from serve import detokenizer
from serve import engine as engine_lib
from serve import grammar
from serve import request as request_lib
from serve.api import errors

_T = TypeVar("_T")


class Engine(Protocol):
  """What the API asks of whoever computes; see `serve.engine.Engine`."""

  def submit(
    self, request: request_lib.Request, on_output: engine_lib.OnOutput
  ) -> None:
    """Queues a request."""
    ...

  def abort(self, request_id: str) -> None:
    """Ends a request."""
    ...


class Compiler(Protocol):
  """What the API asks of grammars."""

  def compile(self, rule: grammar.Rule) -> request_lib.Constraint:
    """A constraint for one text.

    Raises:
      ValueError: The rule is not understood, or cannot be followed.
    """
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words:
  """How a model's tokens are text.

  Attributes:
    tokenizer: Text to ids.
    vocabulary: Ids to text.
    prompts: Conversations to ids.
    compiler: Rules to what is allowed.
  """

  tokenizer: tokenizer_lib.Tokenizer
  vocabulary: detokenizer.Vocabulary
  prompts: chat_prompt.Encoder
  compiler: Compiler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
  """What is served, and how.

  Attributes:
    engine: Computes.
    config: What clients may ask for.
    model_name: Under which the model is served.
    vocab_size: Every token id is smaller.
    embedding_size: Numbers of an embedding.
    max_len: Tokens of a prompt and its continuation.
    words: None: the model has no tokenizer; only ids are asked and answered.
    end_ids: Tokens that end a text.
    start: What comes before a text that is to be continued.
    generation: How the model is sampled where a request says nothing.
    created: When it was loaded, in seconds since 1970.
    workers: Do what takes long, so that others need not wait.
  """

  engine: Engine
  config: config_lib.ApiConfig
  model_name: str
  vocab_size: int
  embedding_size: int
  max_len: int
  words: Words | None
  end_ids: frozenset[int] = frozenset()
  start: conventions.Start = conventions.Start.AFTER_END
  generation: conventions.Generation = conventions.Generation()
  created: int = dataclasses.field(default_factory=lambda: int(time.time()))
  workers: concurrent.futures.Executor = dataclasses.field(
    default_factory=lambda: concurrent.futures.ThreadPoolExecutor(
      max_workers=2, thread_name_prefix="api"
    )
  )

  @property
  def vocabulary(self) -> detokenizer.Vocabulary | None:
    """Ids to text, if the model has words."""
    return None if self.words is None else self.words.vocabulary

  @property
  def known_words(self) -> Words:
    """The model's words.

    Raises:
      errors.ApiError: It has none.
    """
    if self.words is None:
      raise errors.ApiError(
        "The model has no tokenizer: give token ids, and ask for nothing that"
        " is text, such as messages, stop strings or schemas.",
        code="no_tokenizer",
      )
    return self.words

  def check_model(self, name: str | None) -> None:
    """Refuses requests for another model."""
    if name is not None and name != self.model_name:
      raise errors.unknown_model(name, self.model_name)

  async def work(self, function: Callable[..., _T], *arguments: Any) -> _T:
    """Calls the function on a worker; the event loop goes on."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(self.workers, function, *arguments)


KEY = web.AppKey("context", Context)
