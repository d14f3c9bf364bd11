"""A run's compiled functions and where their arrays lie.

What the training loop and the benchmark both need before the first step.
"""

from collections.abc import Callable
import ctypes
import dataclasses
import functools
import time
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from model import sharding
from model import transformer
from train import compiler_options
from train import config as config_lib
from train import optimizer as optimizer_lib
from train import qk_clip
from train import schedule as schedule_lib
from train import step as step_lib

_BATCH_DTYPES = {
  "tokens": jnp.int32,
  "targets": jnp.int32,
  "loss_weights": jnp.float32,
  "positions": jnp.int32,
  "segment_ids": jnp.int32,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traced:
  """As Program, before it is compiled.

  Attributes:
    graphdef: The model's structure.
    shapes: The training state, abstractly.
    shardings: Where its arrays lie.
    init: As Program.init.
    begin: As Program.begin.
    train_steps: (state, batch) -> (state, metrics), by (batch size, sequence
      length).
  """

  graphdef: nnx.GraphDef
  shapes: step_lib.TrainState
  shardings: step_lib.TrainState
  init: Callable[[], step_lib.TrainState]
  begin: Callable[[Any], step_lib.TrainState]
  train_steps: dict[tuple[int, ...], jax.stages.Traced]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """Compiled for one config and mesh.

  Attributes:
    graphdef: The model's structure.
    shapes: The training state, abstractly.
    shardings: Where its arrays lie.
    init: () -> fresh state, made in place on the devices.
    begin: (params) -> state that begins with these; they are donated.
    train_step: (state, batch) -> (state, metrics); `state` is donated.
    train_steps: The same, compiled, by (batch size, sequence length).
    eval_step: (params, batch) -> loss sums.
    compile_seconds: Wall time of tracing and compiling `train_steps`.
  """

  graphdef: nnx.GraphDef
  shapes: step_lib.TrainState
  shardings: step_lib.TrainState
  init: Callable[[], step_lib.TrainState]
  begin: Callable[[Any], step_lib.TrainState]
  train_steps: dict[tuple[int, ...], jax.stages.Compiled]
  eval_step: Callable[..., Any]
  compile_seconds: float

  def train_step(
    self, state: step_lib.TrainState, batch: step_lib.Batch
  ) -> tuple[step_lib.TrainState, step_lib.Metrics]:
    """One update, by the program for the batch's shape."""
    return self.train_steps[batch["tokens"].shape](state, batch)


def check_batch(config: config_lib.RunConfig, mesh: jax.sharding.Mesh) -> None:
  """Refuses a batch that does not fit the mesh.

  Raises:
    ValueError: Names the batch size and one that would fit.
  """
  shards = sharding.num_batch_shards(mesh)
  unit = shards * config.run.accumulation
  sizes = {"run.batch_size": config.run.batch_size} | {
    f"data.stages[{number}].batch_size": stage.batch_size
    for number, stage in enumerate(config.data.stages)
  }
  for field, size in sizes.items():
    if size % unit:
      fitting = -(-size // unit) * unit
      axes = " * ".join(f"mesh.{axis}" for axis in sharding.BATCH_AXES)
      raise ValueError(
        f"{field}={size} must be a multiple of {unit}: "
        f"{shards} batch shards ({axes}) times "
        f"run.accumulation={config.run.accumulation}; {fitting} would do."
      )
  _check_lengths(config, mesh)


def _check_lengths(
  config: config_lib.RunConfig, mesh: jax.sharding.Mesh
) -> None:
  """Refuses sequences that cannot be cut in equal pieces."""
  shards = mesh.shape[sharding.CONTEXT]
  # Two chunks for each, for equal work (model/zigzag.py).
  unit = 2 * shards if shards > 1 else 1
  lengths = {"run.seq_len": config.run.seq_len} | {
    f"data.stages[{number}].seq_len": stage.seq_len
    for number, stage in enumerate(config.data.stages)
  }
  for field, length in lengths.items():
    if length % unit:
      fitting = -(-length // unit) * unit
      near = f"{fitting - unit} or {fitting}" if length > unit else f"{fitting}"
      raise ValueError(
        f"{field}={length} must be a multiple of {unit}: two chunks for each "
        f"of mesh.context={shards} pieces; {near} would do."
      )


def trace(config: config_lib.RunConfig, mesh: jax.sharding.Mesh) -> Traced:
  """Traces a run's steps; call with `mesh` set (jax.set_mesh).

  Nothing is compiled or run: the mesh's devices need not be here.

  Raises:
    ValueError: Batch or parameters do not divide over the mesh.
  """
  check_batch(config, mesh)
  schedule = schedule_lib.make(config.schedule, run_steps=config.run.steps)
  optimizer = optimizer_lib.make(config.optimizer, schedule)
  graphdef, _ = transformer.abstract(config.model, config.execution)
  init_state = functools.partial(
    step_lib.init_state,
    lambda: transformer.init(
      config.model, config.execution, seed=config.run.seed
    ),
    optimizer,
    config.ema,
  )
  shapes = jax.eval_shape(init_state)
  shardings = sharding.param_shardings(shapes, mesh)
  train_step = jax.jit(
    step_lib.make_train_step(
      graphdef=graphdef,
      optimizer=optimizer,
      schedule=schedule,
      loss=config.loss,
      balance=config.balance,
      ema=config.ema,
      qk_clip=qk_clip.make(config.model, threshold=config.optimizer.qk_clip),
      accumulation=config.run.accumulation,
    ),
    donate_argnums=0,
    out_shardings=(shardings, jax.sharding.NamedSharding(mesh, P())),
  )
  traced: dict[tuple[int, ...], jax.stages.Traced] = {}
  for stage in config.stages():
    shape = (stage.batch_size, stage.seq_len)
    if shape not in traced and stage.first_step < config.run.steps:
      traced[shape] = train_step.trace(
        sharding.with_shardings(shapes, shardings), _batch_shapes(shape, mesh)
      )
  return Traced(
    graphdef=graphdef,
    shapes=shapes,
    shardings=shardings,
    init=jax.jit(init_state, out_shardings=shardings),
    begin=jax.jit(
      lambda params: step_lib.init_state(lambda: params, optimizer, config.ema),
      donate_argnums=0,
      out_shardings=shardings,
    ),
    train_steps=traced,
  )


def build(config: config_lib.RunConfig, mesh: jax.sharding.Mesh) -> Program:
  """Compiles a run's functions; call with `mesh` set (jax.set_mesh).

  Raises:
    ValueError: Batch or parameters do not divide over the mesh.
  """
  start = time.perf_counter()
  traced = trace(config, mesh)
  compiled = {
    shape: compile_step(step, mesh)
    for shape, step in traced.train_steps.items()
  }
  compile_seconds = time.perf_counter() - start
  _return_free_memory()
  return Program(
    graphdef=traced.graphdef,
    shapes=traced.shapes,
    shardings=traced.shardings,
    init=traced.init,
    begin=traced.begin,
    train_steps=compiled,
    eval_step=jax.jit(
      step_lib.make_eval_step(graphdef=traced.graphdef, loss=config.loss)
    ),
    compile_seconds=compile_seconds,
  )


def compile_step(
  traced: jax.stages.Traced, mesh: jax.sharding.Mesh
) -> jax.stages.Compiled:
  """Compiles a traced step, with the options of the mesh's devices."""
  options = compiler_options.for_device(mesh.devices.flat[0].device_kind)
  return traced.lower().compile(compiler_options=options or None)


def _batch_shapes(
  shape: tuple[int, int], mesh: jax.sharding.Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
  return {
    name: jax.ShapeDtypeStruct(
      shape, dtype, sharding=sharding.batch_sharding(mesh)
    )
    for name, dtype in _BATCH_DTYPES.items()
  }


def _return_free_memory() -> None:
  """Gives the compiler's freed memory back, where the C library can (glibc).

  LLVM leaves some 150 MB of it in the heaps of its threads.
  """
  libc = ctypes.CDLL(None)
  if hasattr(libc, "malloc_trim"):
    libc.malloc_trim(0)
