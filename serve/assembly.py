"""Puts an engine together: models, runners, schedulers, replicas.

What the server and the offline programs have in common.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import pathlib
from typing import Literal

import jax

from model import checkpoint
from model import decode
from model import sharding
from model import transformer
from serve import checkpoints
from serve import config as config_lib
from serve import engine as engine_lib
from serve import imports
from serve import ngram
from serve import replicas as replicas_lib
from serve import runner as runner_lib
from serve import scheduler as scheduler_lib
from serve import scheduler_config
from serve import task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assembled:
  """An engine that is ready to start.

  Attributes:
    engine: One, or several as one.
    runners: Of each replica.
    max_len: Tokens of a prompt and its continuation.
  """

  engine: engine_lib.Engine | replicas_lib.Replicas
  runners: tuple[runner_lib.Runner, ...]
  max_len: int


def make_meshes(config: sharding.MeshConfig) -> list[jax.sharding.Mesh]:
  """A mesh for each of `config.data` replicas, of all devices together.

  Raises:
    ValueError: The devices cannot be divided so.
  """
  devices = list(jax.devices())
  if len(devices) % config.data:
    raise ValueError(
      f"runner.mesh.data={config.data} replicas cannot share {len(devices)} "
      "devices evenly; choose a divisor."
    )
  size = len(devices) // config.data
  own = dataclasses.replace(config, data=1)
  return [
    sharding.make_mesh(own, devices[first : first + size])
    for first in range(0, len(devices), size)
  ]


def load(
  path: pathlib.Path,
  config: config_lib.RunnerConfig,
  *,
  import_folder: pathlib.Path,
  keep_imports: int = imports.KEPT,
) -> list[checkpoints.Model]:
  """The model, once for each replica, on its devices.

  Args:
    path: As `checkpoints.load` takes it.
    config: How it is computed.
    import_folder: Keeps what was imported.
    keep_imports: So many of it.

  Raises:
    ValueError: It cannot be served.
    CorruptCheckpointError: It is damaged.
  """
  if not checkpoints.is_foreign(path):
    # Of a run that goes on, the same step for all.
    path = checkpoint.find(path)
  return [
    checkpoints.load(
      path,
      mesh=mesh,
      compute_dtype=compute_dtype(config),
      import_folder=import_folder,
      keep_imports=keep_imports,
    )
    for mesh in make_meshes(config.mesh)
  ]


def compute_dtype(
  config: config_lib.RunnerConfig,
) -> Literal["float32", "bfloat16"]:
  """Of activations, on the devices that are there."""
  if config.compute_dtype != "auto":
    return config.compute_dtype
  return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def assemble(
  models: Sequence[checkpoints.Model],
  config: config_lib.ServeConfig,
  *,
  drafts: Sequence[checkpoints.Model] = (),
  on_death: Callable[[BaseException], None] | None = None,
  warms_up: bool = True,
  report: Callable[[int, int], None] = lambda done, total: None,
  watch: Callable[[runner_lib.Runner], engine_lib.Runner] = lambda r: r,
) -> Assembled:
  """Makes and compiles everything.

  Args:
    models: One for each replica; runners take their parameters.
    config: Settings.
    drafts: Smaller models that guess, one for each replica; or none.
    on_death: See `Engine`.
    warms_up: Compile now what can be asked for, not when it is.
    report: Gets how many of how many programs are compiled.
    watch: Wraps each runner before an engine gets it.
  """
  is_drafted = config.engine.speculation.method == "draft"
  assert len(drafts) == (len(models) if is_drafted else 0)
  runners: list[runner_lib.Runner] = []
  engines: list[engine_lib.Engine] = []
  for index, model in enumerate(models):
    runner = runner_lib.Runner(
      _source(model),
      config.runner,
      mesh=model.mesh,
      draft=_source(drafts[index]) if is_drafted else None,
      num_drafts=num_drafts(config),
    )
    if warms_up:
      runner.warm_up(_Report(report, index, len(models)))
    runners.append(runner)
    engines.append(
      make_engine(model, runner, config, on_death=on_death, watch=watch)
    )
  return Assembled(
    engine=engines[0] if len(engines) == 1 else replicas_lib.Replicas(engines),
    runners=tuple(runners),
    max_len=runners[0].max_len,
  )


def make_engine(
  model: checkpoints.Model,
  runner: runner_lib.Runner,
  config: config_lib.ServeConfig,
  *,
  on_death: Callable[[BaseException], None] | None = None,
  watch: Callable[[runner_lib.Runner], engine_lib.Runner] = lambda r: r,
) -> engine_lib.Engine:
  """The engine of one runner; see `assemble`."""
  return engine_lib.Engine(
    watch(runner),
    make_scheduler(model, runner, config),
    step=model.step,
    stall_seconds=config.engine.stall_seconds,
    on_death=on_death,
  )


def make_scheduler(
  model: checkpoints.Model,
  runner: runner_lib.Runner,
  config: config_lib.ServeConfig,
) -> scheduler_lib.Scheduler:
  """The scheduler of a runner."""
  engine, speculation = config.engine, config.engine.speculation
  make_guesser: Callable[[], task.Guesser] | None = None
  if speculation.method == "ngram":
    make_guesser = functools.partial(
      ngram.Lookup,
      min_ngram=speculation.min_ngram,
      max_ngram=speculation.max_ngram,
    )
  return scheduler_lib.Scheduler(
    scheduler_config.SchedulerConfig(
      max_rows=config.runner.max_rows,
      prefill_tokens=config.runner.prefill_tokens,
      max_len=runner.max_len,
      page_size=config.runner.page_size,
      num_pages=runner.cache_pages,
      prefix_caching=engine.prefix_caching,
      max_queued_requests=engine.max_queued_requests,
      max_queued_tokens=engine.max_queued_tokens,
      num_drafts=num_drafts(config),
      recurrent=transformer.has_recurrent_state(model.config),
      # An accelerator computes hundreds of tokens while it reads the weights.
      step_tokens=32 if jax.default_backend() == "cpu" else 256,
      turns=tuple(decode.turning_points(model.config)),
    ),
    step=model.step,
    make_guesser=make_guesser,
  )


def num_drafts(config: config_lib.ServeConfig) -> int:
  """Tokens that are guessed at a time."""
  speculation = config.engine.speculation
  return 0 if speculation.method == "none" else speculation.num_tokens


@dataclasses.dataclass(frozen=True)
class _Report:
  """Of one of several runners, as of all."""

  report: Callable[[int, int], None]
  index: int
  num: int

  def __call__(self, done: int, total: int) -> None:
    self.report(self.index * total + done, self.num * total)


def _source(model: checkpoints.Model) -> runner_lib.Source:
  return runner_lib.Source(
    config=model.config, execution=model.execution, params=model.params
  )
