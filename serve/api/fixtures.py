"""A served model without a model, for the tests of this package."""

from collections.abc import AsyncIterator, Callable, Sequence
import contextlib
import dataclasses
import pathlib
import threading
import time
from typing import Any

from aiohttp import test_utils
import msgspec
import numpy as np

from data import chat_prompt
from data import tokenizer as tokenizer_lib
from serve import config as config_lib
from serve import conventions
from serve import detokenizer
from serve import engine as engine_lib
from serve import grammar
from serve import request as request_lib
from serve.api import app
from serve.api import context as context_lib
from serve.api import refusals

MODEL = "fake/model"
VOCAB_SIZE = 512
EMBEDDING_SIZE = 4
TOKENIZER = (
  pathlib.Path(__file__).parents[2] / "data/testdata/tiny_bytelevel_bpe"
)
END = 5  # <|eot_id|>
DEADLINE = request_lib.FinishReason.DEADLINE

# Like Qwen's, with the tokens that the tokenizer has.
TEMPLATE = """\
{{ bos_token }}{% if tools %}<|start_header_id|>tools<|end_header_id|>
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Answer with <tool_call>{"name": ..., "arguments": ...}</tool_call>
<|eot_id|>{% endif %}{% for m in messages %}<|start_header_id|>{{ m.role }}\
<|end_header_id|>
{{ m.content }}{% for call in m.tool_calls or [] %}<tool_call>
{{ call.function | tojson }}
</tool_call>{% endfor %}<|eot_id|>{% endfor %}{% if add_generation_prompt %}\
<|start_header_id|>assistant<|end_header_id|>
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Script:
  """What the fake model says to a request.

  Attributes:
    tokens: One after the other.
    finish: At the end; None: STOP if the last token stops, else LENGTH.
    error: With the end.
    seconds: Between tokens.
  """

  tokens: Sequence[int]
  finish: request_lib.FinishReason | None = None
  error: str | None = None
  seconds: float = 0.0


class FakeEngine:
  """Answers each request with a script, on a thread of its own.

  Attributes:
    requests: That came, in order.
    aborted: Ids that were aborted before their end.
    refuses: What `submit` raises.
    script: What is said to a request.
    step: Of the checkpoint.
  """

  def __init__(
    self, script: Callable[[request_lib.Request], Script] | None = None
  ):
    self.requests: list[Any] = []
    self.aborted: list[str] = []
    self.refuses: Exception | None = None
    self.script = script or counting
    self.step = 7
    self._running: dict[str, threading.Event] = {}
    self._lock = threading.Lock()

  @property
  def num_running(self) -> int:
    """Requests that have not ended."""
    return len(self._running)

  def submit(
    self, request: request_lib.Request, on_output: engine_lib.OnOutput
  ) -> None:
    """As Engine.submit."""
    if self.refuses is not None:
      raise self.refuses
    self.requests.append(request)
    with self._lock:
      assert request.id not in self._running
      self._running[request.id] = threading.Event()
    threading.Thread(
      target=self._run, args=(request, on_output), daemon=True
    ).start()

  def abort(self, request_id: str) -> None:
    """As Engine.abort."""
    with self._lock:
      if request_id in self._running:
        self.aborted.append(request_id)
        self._running[request_id].set()

  def _run(
    self, request: request_lib.Request, on_output: engine_lib.OnOutput
  ) -> None:
    try:
      self._say(request, on_output)
    except RuntimeError:  # The event loop is closed: a test has ended.
      pass
    finally:
      with self._lock:
        self._running.pop(request.id, None)

  def _say(
    self, request: request_lib.Request, on_output: engine_lib.OnOutput
  ) -> None:
    script = self.script(request)
    stopped = self._running[request.id]
    said = list(script.tokens[: request.max_tokens])
    finish = script.finish
    if finish is None:
      finish = request_lib.FinishReason.LENGTH
      for place, token in enumerate(said):
        if token in request.stop_ids and place >= request.min_tokens:
          said = said[: place + 1]
          finish = request_lib.FinishReason.STOP
          break
    first: dict[str, Any] = {"num_cached": len(request.prompt) // 2}
    if request.num_prompt_logprobs is not None:
      first["prompt_logprobs"] = (
        None,
        *(
          logprobs(token, request.num_prompt_logprobs)
          for token in request.prompt[1:]
        ),
      )
    if request.pools:
      first["pooled"] = np.full(EMBEDDING_SIZE, len(request.prompt), np.float32)
    for place, token in enumerate(said):
      if stopped.wait(script.seconds):
        on_output(
          request_lib.Output(
            request_id=request.id, finish=request_lib.FinishReason.ABORTED
          )
        )
        return
      num = request.sampling.num_logprobs
      is_last = place == len(said) - 1
      on_output(
        request_lib.Output(
          request_id=request.id,
          tokens=(token,),
          logprobs=() if num is None else (logprobs(token, num),),
          finish=finish if is_last else None,
          error=script.error if is_last else None,
          step=self.step,
          **first,
        )
      )
      first = {"num_cached": first["num_cached"]}
    if not said:
      on_output(
        request_lib.Output(
          request_id=request.id,
          finish=finish,
          error=script.error,
          step=self.step,
          **first,
        )
      )


class SlowCompiler:
  """A compiler that takes its time."""

  def __init__(self, compiler: grammar.Compiler, seconds: float):
    self._compiler = compiler
    self._seconds = seconds

  def compile(self, rule: grammar.Rule) -> request_lib.Constraint:
    """As Compiler.compile."""
    time.sleep(self._seconds)
    return self._compiler.compile(rule)


def logprobs(token: int, num: int) -> request_lib.TokenLogprobs:
  """Of a token that is the likeliest, and of those after it."""
  others = [(token + place) % VOCAB_SIZE for place in range(num)]
  return request_lib.TokenLogprobs(
    logprob=-token / 100,
    rank=1,
    top=tuple((other, -token / 100 - n) for n, other in enumerate(others)),
  )


def counting(request: request_lib.Request) -> Script:
  """Letters from the prompt's length on; the seed is in it."""
  start = len(request.prompt) + request.sampling.seed
  return Script(
    tokens=[50 + (start + n) % 20 for n in range(min(request.max_tokens, 64))]
  )


def saying(
  text: str, *, ends: bool = True, seconds: float = 0.0
) -> Callable[[Any], Script]:
  """Always this text."""
  tokenizer = tokenizer_lib.Tokenizer.load(TOKENIZER)
  tokens = tokenizer.encode_with_special_tokens(text)
  script = Script(tokens=tokens + [END] * ends, seconds=seconds)
  return lambda request: script


def folder(parent: str, template: str | None = TEMPLATE) -> pathlib.Path:
  """A tokenizer with another chat template, or none."""
  made = pathlib.Path(parent)
  for name in ("tokenizer.json", "tokenizer_config.json"):
    (made / name).write_bytes((TOKENIZER / name).read_bytes())
  if template is not None:
    (made / "chat_template.jinja").write_text(template)
  return made


def context(
  engine: context_lib.Engine,
  tokenizer: pathlib.Path | None = TOKENIZER,
  *,
  max_len: int = 4096,
  compile_seconds: float = 0.0,
  generation: conventions.Generation | None = None,
  start: conventions.Start = conventions.Start.TOKENIZER,
  **config: Any,
) -> context_lib.Context:
  """What is served; rules take so long to compile."""
  words = None
  if tokenizer is not None:
    words = context_lib.Words(
      tokenizer=tokenizer_lib.Tokenizer.load(tokenizer),
      vocabulary=detokenizer.Vocabulary.load(tokenizer),
      prompts=chat_prompt.Encoder(tokenizer),
      compiler=SlowCompiler(
        grammar.Compiler(tokenizer, vocab_size=VOCAB_SIZE, eos_ids=[END]),
        compile_seconds,
      ),
    )
  return context_lib.Context(
    engine=engine,
    config=config_lib.ApiConfig(**config),
    model_name=MODEL,
    vocab_size=VOCAB_SIZE,
    embedding_size=EMBEDDING_SIZE,
    max_len=max_len,
    words=words,
    end_ids=frozenset([END]),
    start=start,
    generation=generation or conventions.Generation(),
  )


class Client:
  """Asks a server."""

  def __init__(self, client: test_utils.TestClient):
    self.http = client

  async def post(self, path: str, **body: Any) -> tuple[int, Any]:
    """Status and JSON of a POST; the model is the one that is served."""
    return await self.send(path, msgspec.json.encode({"model": MODEL} | body))

  async def send(self, path: str, body: bytes) -> tuple[int, Any]:
    """The same of other bytes."""
    headers = {"Content-Type": "application/json"}
    async with self.http.post(path, data=body, headers=headers) as response:
      return response.status, await response.json()

  async def get(self, path: str) -> tuple[int, Any]:
    """Status and JSON of a GET."""
    async with self.http.get(path) as response:
      return response.status, await response.json()

  async def stream(self, path: str, **body: Any) -> list[Any]:
    """The events of a stream; the last is [DONE], unless it has failed."""
    body = {"model": MODEL, "stream": True} | body
    async with self.http.post(path, json=body) as response:
      assert response.status == 200, await response.text()
      assert response.content_type == "text/event-stream"
      text = await response.text()
    events = []
    for event in text.removesuffix("\n\n").split("\n\n"):
      name, _, data = event.partition(": ")
      assert name == "data", event
      events.append(data if data == "[DONE]" else msgspec.json.decode(data))
    return events


@contextlib.asynccontextmanager
async def serving(
  engine: context_lib.Engine,
  tokenizer: pathlib.Path | None = TOKENIZER,
  **settings: Any,
) -> AsyncIterator[Client]:
  """Serves `context` of the same arguments."""
  made = app.make(
    context(engine, tokenizer, **settings), middlewares=[refusals.middleware]
  )
  server = test_utils.TestServer(made)
  async with test_utils.TestClient(server) as client:
    yield Client(client)
