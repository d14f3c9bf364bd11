"""A server with a fake model and a fake API of one route, for tests."""

import asyncio
from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import functools
import itertools
import json
import threading
import time
from typing import Any

import aiohttp
from aiohttp import web

from serve import batch as batch_lib
from serve import config as config_lib
from serve import engine as engine_lib
from serve import fixtures
from serve import request as request_lib
from serve import scheduler as scheduler_lib
from serve import scheduler_config
from serve import server as server_lib
from serve.api import errors
from serve.api import metrics as metrics_lib
from serve.api import observer as observer_lib

MODEL = "fake"
MAX_LEN = 4096
ROUTE = "/v1/completions"


@dataclasses.dataclass(kw_only=True)
class Fake:
  """A `server.Load` of a model that computes nothing.

  Attributes:
    step_seconds: That a step takes.
    max_rows: Requests that are computed at a time.
    max_queued: Requests that wait; more are refused.
    stall_seconds: As the engine takes it.
    num_programs: That are compiled.
    may_load: Loading waits for it.
    may_compile: Compiling waits for it, before the last program.
    error: Is raised while loading.
    runner: Computes.
    engine: Once it is loaded.
    is_closed: Whether the server has closed what it was given.
  """

  step_seconds: float = 0.002
  max_rows: int = 4
  max_queued: int = 64
  stall_seconds: float = 60.0
  num_programs: int = 3
  may_load: threading.Event = dataclasses.field(default_factory=threading.Event)
  may_compile: threading.Event = dataclasses.field(
    default_factory=threading.Event
  )
  error: BaseException | None = None
  runner: fixtures.FakeRunner = dataclasses.field(
    default_factory=lambda: fixtures.FakeRunner(page_size=16)
  )
  engine: Any = None
  is_closed: bool = False

  def __post_init__(self):
    self.may_load.set()
    self.may_compile.set()
    self.runner.before_run = self._sleep

  def __call__(
    self,
    *,
    status: Any,
    metrics: metrics_lib.Metrics,
    on_death: Callable[[BaseException], None],
  ) -> server_lib.Loaded:
    """Makes the engine."""
    self.may_load.wait()
    if self.error is not None:
      raise self.error
    for done in range(self.num_programs):
      status.compiled(done, self.num_programs)
    self.may_compile.wait()
    requests = metrics.serve(
      metrics_lib.Served(
        model_name=MODEL,
        max_len=MAX_LEN,
        cache={"block_size": "16", "num_gpu_blocks": "1024"},
        stats=lambda: engine.stats(),
      )
    )
    runner = observer_lib.Runner(self.runner, requests)
    config = scheduler_config.SchedulerConfig(
      max_rows=self.max_rows,
      prefill_tokens=64,
      max_len=MAX_LEN,
      page_size=16,
      num_pages={0: 1025},
      max_queued_requests=self.max_queued,
    )
    engine = engine_lib.Engine(
      runner,
      scheduler_lib.Scheduler(config),
      step=7,
      stall_seconds=self.stall_seconds,
      on_death=on_death,
    )
    self.engine = engine
    engine.start()
    observer = observer_lib.Observer(
      engine, requests, runners=[runner], max_seconds=600.0
    )
    return server_lib.Loaded(
      engine=engine,
      make_app=functools.partial(make_app, observer),
      model_name=MODEL,
      max_len=MAX_LEN,
      has_chat=True,
      close=self._close,
    )

  def _sleep(self, batch: batch_lib.Batch) -> None:
    del batch
    time.sleep(self.step_seconds)

  def _close(self) -> None:
    self.is_closed = True


def make_app(
  engine: Any, *, middlewares: Sequence[Any], more: Sequence[Any]
) -> web.Application:
  """An API with one route: `{"prompt": [ids], "max_tokens": n}`, streamed."""
  ids = map(str, itertools.count())

  @errors.handled
  async def complete(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    loop = asyncio.get_running_loop()
    outputs: asyncio.Queue[request_lib.Output] = asyncio.Queue()
    asked = request_lib.Request(
      id=next(ids), prompt=tuple(body["prompt"]), max_tokens=body["max_tokens"]
    )
    try:
      engine.submit(
        asked,
        lambda output: loop.call_soon_threadsafe(outputs.put_nowait, output),
      )
    except scheduler_lib.QueueFullError as error:
      raise errors.queue_full(str(error), error.retry_after) from error
    except engine_lib.UnavailableError as error:
      raise errors.unavailable(str(error)) from error
    except ValueError as error:
      raise errors.ApiError(str(error)) from error
    response = web.StreamResponse()
    padding = "x" * body.get("padding", 0)
    try:
      await response.prepare(request)
      finish = None
      while finish is None:
        output = await outputs.get()
        finish = output.finish
        event = {"tokens": output.tokens, "padding": padding}
        if finish is not None:
          event |= {"finish": finish.value, "error": output.error}
        await response.write(json.dumps(event).encode() + b"\n")
      await response.write_eof()
      return response
    finally:
      engine.abort(asked.id)

  async def fail(request: web.Request) -> web.StreamResponse:
    raise KeyError("a secret prompt")

  app = web.Application(middlewares=middlewares, client_max_size=2**20)
  own = [web.post(ROUTE, complete), web.get("/fail", fail)]
  app.add_routes([*own, *more])
  return app


class Running:
  """A server in this process and a client for it; an async context manager.

  Attributes:
    fake: What is served.
    url: Where.
    session: Asks it.
    ended: Done with how the server ended.
  """

  url: str
  session: aiohttp.ClientSession
  ended: asyncio.Task[server_lib.Ended]

  def __init__(
    self,
    fake: Fake | None = None,
    *,
    waits: bool = True,
    keeps_connections: bool = True,
    **settings: Any,
  ):
    """A server that will run.

    Args:
      fake: What is served.
      waits: Until it is ready, or has ended.
      keeps_connections: Requests follow one another on a connection.
      **settings: Of ApiConfig.
    """
    self.fake = fake or Fake()
    self._waits = waits
    self._keeps = keeps_connections
    defaults: dict[str, Any] = {"port": 0, "drain_seconds": 5.0}
    self._config = config_lib.ApiConfig(**(defaults | settings))

  async def __aenter__(self) -> "Running":
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    server = server_lib.Server(
      self._config, load=self.fake, on_listening=url.set_result
    )
    self.ended = asyncio.create_task(server.run())
    await asyncio.wait([url, self.ended], return_when=asyncio.FIRST_COMPLETED)
    if self.ended.done():
      self.ended.result()
    self.url = url.result()
    self.session = aiohttp.ClientSession(
      self.url,
      connector=aiohttp.TCPConnector(
        ssl=False, limit=0, force_close=not self._keeps
      ),
    )
    while self._waits and not self.ended.done():
      if (await self.get("/readyz"))[0] == 200:
        break
      await asyncio.sleep(0.005)
    return self

  async def __aexit__(self, *exception: Any) -> None:
    await self.session.close()
    self.fake.may_load.set()
    self.fake.may_compile.set()
    self.ended.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
      await self.ended
    if self.fake.engine is not None:
      await asyncio.to_thread(self.fake.engine.stop)

  async def get(self, path: str, **settings: Any) -> tuple[int, Any]:
    """Status and content of a GET."""
    async with self.session.get(path, **settings) as response:
      if response.content_type == "application/json":
        return response.status, await response.json()
      return response.status, await response.text()

  def post(
    self, *, max_tokens: int, prompt: tuple[int, ...] = (1, 2, 3), **more: Any
  ) -> Any:
    """A request to the fake API, to be entered or awaited."""
    headers = more.pop("headers", None)
    body = {"prompt": prompt, "max_tokens": max_tokens, **more}
    return self.session.post(ROUTE, json=body, headers=headers)

  async def complete(self, **settings: Any) -> tuple[int, list[Any]]:
    """Status and events of a request."""
    async with self.post(**settings) as response:
      lines = (await response.read()).splitlines()
      return response.status, [json.loads(line) for line in lines]

  async def figure(self, name: str, **labels: str) -> float:
    """One figure of /metrics."""
    _, text = await self.get("/metrics")
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    for line in text.splitlines():
      head, _, value = line.rpartition(" ")
      if head.partition("{")[0] == name and all(w in head for w in wanted):
        return float(value)
    raise AssertionError(f"there is no {name} {labels} in\n{text}")

  async def until(self, condition: Callable[[], Any]) -> None:
    """Waits for something; a coroutine's result, or a value."""
    async with asyncio.timeout(20):
      while True:
        value = condition()
        if asyncio.iscoroutine(value):
          value = await value
        if value:
          return
        await asyncio.sleep(0.01)
