"""A server's life: it listens, loads, serves, drains and ends.

The port is open from the start, so that probes can ask what the server does.
While a model is loaded and compiled, an app without the API answers; the one
with the API takes its place when all is ready. SIGTERM or SIGINT drains, a
second one ends what is under way, SIGHUP reads keys and certificate again.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import signal
import ssl
import threading
import time
from typing import Any, Protocol

from absl import logging
from aiohttp import typedefs
from aiohttp import web

from serve import config as config_lib
from serve import stats as stats_lib
from serve.api import auth
from serve.api import drain
from serve.api import health
from serve.api import limits
from serve.api import logs
from serve.api import metrics
from serve.api import refusals
from serve.web import page

# Neither refused while the server is not ready, nor waited for when it drains.
_OPEN = frozenset((*page.ROUTES, page.STATS, metrics.ROUTE))
# After the engine has ended all requests, so long handlers may take to say so.
_LAST_WORDS_SECONDS = 5.0
# For a step under way, or a checkpoint; then the process ends around it.
_STOP_SECONDS = 10.0


class Engine(Protocol):
  """What a server asks of an engine: see `serve.engine.Engine`."""

  def stats(self) -> stats_lib.Stats: ...

  def is_stalled(self, now: float) -> bool: ...

  def drain(self, deadline: float) -> bool: ...

  def stop(self, timeout: float | None = None) -> bool: ...


class MakeApp(Protocol):
  """As `serve.api.app.make` of a context."""

  def __call__(
    self,
    *,
    middlewares: Sequence[typedefs.Middleware],
    more: Sequence[web.AbstractRouteDef],
  ) -> web.Application:
    """The app, with middlewares around its handlers and more routes."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
  """What a server serves.

  Attributes:
    engine: Started.
    make_app: Makes the API's app.
    model_name: Under which the model is served.
    max_len: Tokens of a prompt and its continuation.
    has_chat: Whether conversations can be asked for.
    defaults: Of the fields of a request, what the model wants.
    on_ready: Called when requests are taken.
    close: Called when none are under way any more.
  """

  engine: Engine
  make_app: MakeApp
  model_name: str
  max_len: int
  has_chat: bool
  defaults: Mapping[str, float] = dataclasses.field(default_factory=dict)
  on_ready: Callable[[], None] = lambda: None
  close: Callable[[], None] = lambda: None


class Load(Protocol):
  """Loads and compiles, on a thread of its own."""

  def __call__(
    self,
    *,
    status: health.Status,
    metrics: metrics.Metrics,
    on_death: Callable[[BaseException], None],
  ) -> Loaded:
    """Does what takes long.

    Args:
      status: Told what is done.
      metrics: Gets the model's figures.
      on_death: For the engine.
    """
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ended:
  """How a server ended.

  Attributes:
    code: Of the process.
    is_clean: No thread of ours is left in the midst of something.
  """

  code: int
  is_clean: bool


def make_tls(config: config_lib.ApiConfig) -> ssl.SSLContext | None:
  """Reads the certificate; None for plain HTTP.

  Raises:
    ValueError: It cannot be used.
  """
  if not config.tls_cert:
    return None
  context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
  context.minimum_version = ssl.TLSVersion.TLSv1_2
  context.set_alpn_protocols(["http/1.1"])
  _load_cert(context, config)
  return context


def _load_cert(context: ssl.SSLContext, config: config_lib.ApiConfig) -> None:
  try:
    # Never asks for a password on the terminal.
    context.load_cert_chain(
      config.tls_cert, config.tls_key, password=lambda: b""
    )
  except (OSError, ValueError) as error:  # SSLError is an OSError.
    raise ValueError(
      f"api.tls_cert={config.tls_cert}, api.tls_key={config.tls_key}: {error}; "
      "give PEM files that belong together, the key without a password."
    ) from error


class Server:
  """Runs once."""

  def __init__(
    self,
    config: config_lib.ApiConfig,
    *,
    load: Load,
    on_listening: Callable[[str], None] = lambda url: None,
  ):
    """Reads keys and certificate; `run` does the rest.

    Args:
      config: What is allowed.
      load: Makes what is served.
      on_listening: Gets the server's URL.

    Raises:
      ValueError: Keys or certificate cannot be read.
    """
    self._config = config
    self._load = load
    self._on_listening = on_listening
    self._keys = auth.Keys(config.api_keys) if config.api_keys else None
    self._tls = make_tls(config)
    self._status = health.Status()
    self._metrics = metrics.Metrics(self._status)
    self._loaded: Loaded | None = None
    self._death: BaseException | None = None

  async def run(self) -> Ended:
    """Until a signal, or the engine's death.

    Raises:
      ValueError: The port cannot be had.
      Exception: Whatever `load` raises.
    """
    began = time.monotonic()
    loop = asyncio.get_running_loop()
    self._died = asyncio.Event()
    self._ending = asyncio.Event()
    self._hurrying = asyncio.Event()
    self._connections = limits.Connections(
      max_connections=self._config.max_connections,
      write_seconds=self._config.write_seconds,
    )
    self._metrics.watch_connections(lambda: len(self._connections))
    self._gate = drain.Gate(self._status, open_routes=_OPEN)
    async with contextlib.AsyncExitStack() as stack:
      stack.enter_context(self._signals(loop))
      await self._serve(self._make_front_app(), stack)
      url = await self._listen(stack)
      logging.info("Listening at %s; the model is loaded now.", url)
      self._on_listening(url)
      loading = self._start_loading(loop)
      if not await self._first(loading, self._ending.wait()):
        # A compilation cannot be stopped.
        logging.info("Ended before the model was loaded.")
        return Ended(code=0, is_clean=False)
      self._loaded = loaded = loading.result()
      app = loaded.make_app(
        middlewares=self._middlewares(), more=self._routes()
      )
      app.on_response_prepare.append(logs.add_headers)
      await self._serve(app, stack)
      self._status.phase = health.Phase.READY
      loaded.on_ready()
      logging.info(
        "Ready after %.1f s: %s at %s, page and API.",
        *(time.monotonic() - began, loaded.model_name, url),
      )
      await self._first(self._ending.wait(), self._died.wait())
      if not self._died.is_set():
        await self._drain(loaded)
      is_clean = await self._finish(loaded)
    if self._death is not None:
      logging.error(
        "The engine died, the server ends with exit code 1: %s: %s",
        *(type(self._death).__name__, self._death),
      )
      return Ended(code=1, is_clean=is_clean)
    logging.info("Ended after %.1f s.", time.monotonic() - began)
    return Ended(code=0, is_clean=is_clean)

  # -- What the port answers --------------------------------------------------

  def _make_front_app(self) -> web.Application:
    """The app of a server that is not ready."""
    app = web.Application(middlewares=[_close, *self._middlewares()])
    app.add_routes(self._routes())
    app.on_response_prepare.append(logs.add_headers)
    return app

  def _middlewares(self) -> list[typedefs.Middleware]:
    """Around every handler, the outermost first."""
    config = self._config
    return [
      logs.Logs(
        config.log_format,
        model_name=lambda: self._loaded.model_name if self._loaded else "",
        observe=self._metrics.count_http,
      ).middleware,
      refusals.middleware,
      auth.Auth(
        self._keys,
        open_routes=frozenset(page.ROUTES),
        is_local=config.is_local,
      ).middleware,
      self._gate.middleware,
      limits.Body(
        max_bytes=config.max_body_bytes, seconds=config.body_seconds
      ).middleware,
    ]

  def _routes(self) -> list[web.RouteDef]:
    """Beside those of the API."""
    return [
      *health.Health(self._status, self._find_problem).routes(),
      *self._metrics.routes(),
      *page.Page(self._make_stats).routes(),
    ]

  async def _serve(
    self, app: web.Application, stack: contextlib.AsyncExitStack
  ) -> None:
    """Gives an app the connections that come from now on."""
    runner = web.AppRunner(
      app,
      access_log=None,
      handler_cancellation=True,
      shutdown_timeout=1.0,
      **limits.CONNECTION,
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    assert runner.server is not None
    self._connections.serve(runner.server)

  async def _listen(self, stack: contextlib.AsyncExitStack) -> str:
    config = self._config
    tls: dict[str, Any] = {}
    if self._tls is not None:
      tls = {
        "ssl": self._tls,
        "ssl_handshake_timeout": limits.TLS_HANDSHAKE_SECONDS,
      }
    try:
      listener = await asyncio.get_running_loop().create_server(
        self._connections,
        config.host or None,
        config.port,
        backlog=1024,
        **tls,
      )
    except OSError as error:
      raise ValueError(
        f"api.host={config.host!r}, api.port={config.port} cannot be listened "
        f"on: {error.strerror or error}; choose others, such as --port=0."
      ) from error
    stack.callback(listener.close)
    port = listener.sockets[0].getsockname()[1]
    host = f"[{config.host}]" if ":" in config.host else config.host
    scheme = "http" if self._tls is None else "https"
    return f"{scheme}://{host or '0.0.0.0'}:{port}"

  def _find_problem(self) -> str | None:
    if self._death is not None:
      return f"the engine died: {type(self._death).__name__}"
    if self._loaded is None:
      return None
    engine = self._loaded.engine
    if engine.is_stalled(time.monotonic()):
      return "requests wait, but no step of the engine is finished"
    return None

  def _make_stats(self) -> dict[str, Any]:
    if self._loaded is None:
      return {"phase": str(self._status)}
    stats = self._loaded.engine.stats()
    return {
      "phase": str(self._status),
      "model": self._loaded.model_name,
      "has_chat": self._loaded.has_chat,
      "defaults": dict(self._loaded.defaults),
      "max_len": self._loaded.max_len,
      "step": stats.step,
      "running": stats.num_running,
      "waiting": stats.num_waiting,
      "cache_usage": stats.pages_used,
      "generated_tokens": stats.num_output_tokens,
    }

  # -- What comes from outside ------------------------------------------------

  @contextlib.contextmanager
  def _signals(self, loop: asyncio.AbstractEventLoop):
    def end() -> None:
      if self._ending.is_set():
        logging.warning("Asked to end again: what is under way is ended.")
        self._hurrying.set()
      self._ending.set()

    handlers = {
      signal.SIGTERM: end,
      signal.SIGINT: end,
      signal.SIGHUP: self._reload,
    }
    for number, handler in handlers.items():
      loop.add_signal_handler(number, handler)
    try:
      yield
    finally:
      for number in handlers:
        loop.remove_signal_handler(number)

  def _reload(self) -> None:
    if self._keys is not None:
      self._keys.reload()
    if self._tls is not None:
      try:
        _load_cert(self._tls, self._config)
      except ValueError as error:
        logging.error("The old certificate stays in use: %s", error)

  def _start_loading(
    self, loop: asyncio.AbstractEventLoop
  ) -> asyncio.Future[Loaded]:
    """Loads on a thread that does not keep the process alive."""
    future: asyncio.Future[Loaded] = loop.create_future()

    def on_death(error: BaseException) -> None:
      self._death = error
      self._tell(loop, self._died.set)

    def settle(setter: Callable[[Any], None], value: Any) -> None:
      if not future.cancelled():
        setter(value)

    def work() -> None:
      try:
        loaded = self._load(
          status=self._status, metrics=self._metrics, on_death=on_death
        )
      except BaseException as error:
        self._tell(loop, settle, future.set_exception, error)
      else:
        self._tell(loop, settle, future.set_result, loaded)

    threading.Thread(target=work, name="loading", daemon=True).start()
    return future

  def _tell(
    self,
    loop: asyncio.AbstractEventLoop,
    function: Callable[..., None],
    *arguments: Any,
  ) -> None:
    # The loop may have ended meanwhile.
    with contextlib.suppress(RuntimeError):
      loop.call_soon_threadsafe(function, *arguments)

  # -- The end ----------------------------------------------------------------

  async def _first(self, *awaitables: Any) -> bool:
    """Waits for one of them; whether the first of them is there."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    is_first = tasks[0].done()
    for task in tasks:
      if not task.done():
        task.cancel()
    return is_first

  async def _drain(self, loaded: Loaded) -> None:
    """Waits for the requests under way, and ends those that take too long."""
    self._status.phase = health.Phase.DRAINING
    logging.info(
      "Draining: %d requests have up to %g s.",
      *(self._gate.num_inside, self._config.drain_seconds),
    )
    deadline = time.monotonic() + self._config.drain_seconds
    drained = asyncio.create_task(
      asyncio.to_thread(loaded.engine.drain, deadline)
    )
    ends = [self._hurrying.wait(), self._died.wait()]
    if not await self._first(asyncio.shield(drained), *ends):
      await asyncio.to_thread(loaded.engine.drain, time.monotonic())

  async def _finish(self, loaded: Loaded) -> bool:
    """Lets handlers say that it is over; whether the engine's thread ended."""
    self._status.phase = health.Phase.DRAINING
    with contextlib.suppress(TimeoutError):
      async with asyncio.timeout(_LAST_WORDS_SECONDS):
        await self._gate.wait_empty()
    is_closed = await _run_for(_STOP_SECONDS, loaded.close)
    is_stopped = await asyncio.to_thread(loaded.engine.stop, _STOP_SECONDS)
    return is_closed and is_stopped


async def _run_for(seconds: float, function: Callable[[], None]) -> bool:
  """Whether a function ends in time; its thread does not outlive us."""
  loop = asyncio.get_running_loop()
  is_done = asyncio.Event()

  def work() -> None:
    try:
      function()
    finally:
      with contextlib.suppress(RuntimeError):  # The loop has ended.
        loop.call_soon_threadsafe(is_done.set)

  threading.Thread(target=work, daemon=True).start()
  with contextlib.suppress(TimeoutError):
    async with asyncio.timeout(seconds):
      await is_done.wait()
  return is_done.is_set()


@web.middleware
async def _close(
  request: web.Request, handler: typedefs.Handler
) -> web.StreamResponse:
  """Ends the connection: the next request is for the app that follows."""
  response = await handler(request)
  response.force_close()
  return response
