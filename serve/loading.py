"""Makes what a server serves: of a checkpoint, an engine and its API."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import pathlib
import threading
from typing import Any

import jax

from data import chat_prompt
from data import tokenizer as tokenizer_lib
from serve import assembly
from serve import checkpoints
from serve import config as config_lib
from serve import detokenizer
from serve import engine as engine_lib
from serve import grammar
from serve import replicas
from serve import runner as runner_lib
from serve import server
from serve import watcher
from serve.api import app
from serve.api import context
from serve.api import health
from serve.api import metrics as metrics_lib
from serve.api import observer

_COMPILED = "/jax/core/compile/backend_compile_duration"
_ENGINE_THREAD = "engine"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loader:
  """A `server.Load`.

  Attributes:
    path: As `checkpoints.load` takes it.
    config: Settings.
    import_folder: Keeps what was imported.
    watches: Newer steps of the checkpoint take the place of the first.
  """

  path: pathlib.Path
  config: config_lib.ServeConfig
  import_folder: pathlib.Path
  watches: bool

  def __call__(
    self,
    *,
    status: health.Status,
    metrics: metrics_lib.Metrics,
    on_death: Callable[[BaseException], None],
  ) -> server.Loaded:
    """Loads, compiles and starts."""
    models = self._load(self.path)
    model = models[0]
    # The runner takes the parameters.
    shardings = [jax.tree.map(_sharding, m.params) for m in models]
    name = self.config.api.model_name or model.name
    words = make_words(model, max_rule_bytes=self.config.api.max_schema_bytes)
    watched: list[observer.Runner] = []
    requests: list[metrics_lib.Requests] = []

    def watch(runner: runner_lib.Runner) -> observer.Runner:
      if not requests:
        served = metrics_lib.Served(
          model_name=name,
          max_len=runner.max_len,
          cache=self._describe_cache(runner),
          stats=lambda: assembled.engine.stats(),
        )
        requests.append(metrics.serve(served))
      watched.append(observer.Runner(runner, requests[0]))
      return watched[-1]

    assembled = assembly.assemble(
      models,
      self.config,
      drafts=self._load_drafts(),
      on_death=on_death,
      report=status.compiled,
      watch=watch,
    )
    status.phase = health.Phase.WARM
    engine = assembled.engine
    newer = self._make_watcher(model, engine, shardings)
    engine.start()
    served = context.Context(
      engine=observer.Observer(
        engine,
        requests[0],
        runners=watched,
        max_seconds=self.config.api.max_seconds,
      ),
      config=self.config.api,
      model_name=name,
      vocab_size=model.config.vocab_size,
      embedding_size=model.config.dim,
      max_len=assembled.max_len,
      words=words,
      end_ids=model.end_ids,
      start=model.start,
      generation=model.generation,
    )

    def on_ready() -> None:
      count_compiles(requests[0])
      if newer is not None:
        newer.start()

    return server.Loaded(
      engine=engine,
      make_app=functools.partial(app.make, served),
      model_name=name,
      max_len=assembled.max_len,
      has_chat=words is not None and bool(words.prompts.templates.sources),
      defaults=model.generation.fields,
      on_ready=on_ready,
      close=newer.stop if newer is not None else lambda: None,
    )

  def _load(self, path: pathlib.Path) -> list[checkpoints.Model]:
    return assembly.load(
      path,
      self.config.runner,
      import_folder=self.import_folder,
      keep_imports=self.config.keep_imports,
    )

  def _load_drafts(self) -> list[checkpoints.Model]:
    speculation = self.config.engine.speculation
    if speculation.method != "draft":
      return []
    return self._load(pathlib.Path(speculation.checkpoint))

  def _describe_cache(self, runner: runner_lib.Runner) -> dict[str, str]:
    config = self.config.runner
    # The pool of the most pages is what the gateway wants to know.
    num_pages = max(runner.cache_pages.values(), default=0)
    return {
      "block_size": str(runner.page_size),
      "num_gpu_blocks": str(num_pages),
      "cache_dtype": (
        assembly.compute_dtype(config)
        if config.cache == "compute_dtype"
        else "int8"
      ),
      "enable_prefix_caching": str(self.config.engine.prefix_caching),
    }

  def _make_watcher(
    self,
    model: checkpoints.Model,
    engine: engine_lib.Engine | replicas.Replicas,
    shardings: Sequence[Any],
  ) -> watcher.Watcher | None:
    if not self.watches:
      return None
    return watcher.Watcher(
      self.path,
      model,
      on_new=functools.partial(swap, engine, shardings),
      seconds=self.config.watch_seconds,
      import_folder=self.import_folder,
    )


def make_words(
  model: checkpoints.Model, *, max_rule_bytes: int
) -> context.Words | None:
  """How the model's tokens are text; None if it has no tokenizer.

  Args:
    model: Whose tokens.
    max_rule_bytes: Of a grammar, schema or regex.

  Raises:
    ValueError: Its tokenizer cannot be used.
  """
  folder = model.tokenizer
  if folder is None:
    return None
  return context.Words(
    tokenizer=tokenizer_lib.Tokenizer.load(folder),
    vocabulary=detokenizer.Vocabulary.load(folder),
    prompts=chat_prompt.Encoder(folder),
    compiler=grammar.Compiler(
      folder,
      vocab_size=model.config.vocab_size,
      eos_ids=sorted(model.end_ids),
      max_bytes=max_rule_bytes,
    ),
  )


def swap(
  engine: engine_lib.Engine | replicas.Replicas,
  shardings: Sequence[Any],
  model: checkpoints.Model,
) -> None:
  """Gives newer parameters to an engine, and waits until it uses them.

  Args:
    engine: Goes on with them.
    shardings: Of each replica's parameters.
    model: Loaded for the first replica.
  """
  if isinstance(engine, replicas.Replicas):
    copies = [jax.device_put(model.params, place) for place in shardings]
    engine.swap(copies, step=model.step).result()
  else:
    engine.swap(model.params, step=model.step).result()


def count_compiles(requests: metrics_lib.Requests) -> None:
  """Counts what is compiled from now on while requests wait for it."""

  def on_event(event: str, duration_secs: float, **more: str | int) -> None:
    del duration_secs, more
    thread = threading.current_thread().name
    if event == _COMPILED and thread.startswith(_ENGINE_THREAD):
      requests.late_compiles.inc()

  jax.monitoring.register_event_duration_secs_listener(on_event)


def _sharding(array: jax.Array) -> Any:
  return array.sharding
