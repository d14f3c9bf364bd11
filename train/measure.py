"""Measures the train step, as //train:benchmark prints it."""

import dataclasses
import resource
import statistics
import time
from typing import Any

import jax

from data import pipeline
from data import recipes
from model import flops
from model import sharding
from train import config as config_lib
from train import hardware
from train import program as program_lib

_UNTIMED_STEPS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Timing:
  """One step, its input included: seconds, CPU-seconds, loss."""

  wall: float
  cpu: float
  loss: float


def measure(
  config: config_lib.RunConfig, *, num_steps: int, profile: str | None = None
) -> dict[str, Any]:
  """Times `num_steps` steps, each to its end.

  Args:
    config: The run.
    num_steps: How many.
    profile: Directory for a trace of one more step.

  Returns:
    What the JSON line says. Seconds are wall time unless the name says CPU;
    CPU time is of all threads of this process.
  """
  start = time.perf_counter()
  mesh = sharding.make_mesh(config.mesh, jax.devices())
  rows = sharding.host_rows(mesh)
  batches = pipeline.make(
    recipes.resolve(config.data),
    seq_len=config.run.seq_len,
    global_batch_size=config.run.batch_size,
    shard_index=rows.index,
    shard_count=rows.count,
    num_steps=config.run.steps,
  )
  shape = config.stages()[0]
  with jax.set_mesh(mesh):
    program = program_lib.build(config, mesh)
    state = program.init()
    timings = []
    first_step_seconds = first_step_cpu_seconds = 0.0
    for step in range(_UNTIMED_STEPS + num_steps):
      wall, cpu = time.perf_counter(), time.process_time()
      batch = sharding.put_batch(next(batches), mesh)
      state, metrics = program.train_step(state, batch)
      loss = float(metrics["loss"])
      timings.append(
        _Timing(
          wall=time.perf_counter() - wall,
          cpu=time.process_time() - cpu,
          loss=loss,
        )
      )
      if step == 0:
        first_step_seconds = time.perf_counter() - start
        first_step_cpu_seconds = time.process_time()
    if profile is not None:
      with jax.profiler.trace(profile):
        batch = sharding.put_batch(next(batches), mesh)
        state, metrics = program.train_step(state, batch)
        jax.block_until_ready(state)
  batches.close()
  peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  timed = timings[_UNTIMED_STEPS:]
  median = statistics.median(timing.wall for timing in timed)
  median_cpu = statistics.median(timing.cpu for timing in timed)
  tokens = shape.batch_size * shape.seq_len
  flops_per_step = tokens * flops.train_per_token(
    config.model, seq_len=shape.seq_len
  )
  peak = hardware.peak(config.execution.compute_dtype)
  return {
    "model": config.model.name,
    "parameters": flops.count_parameters(config.model).total,
    "batch_size": shape.batch_size,
    "seq_len": shape.seq_len,
    "compute_dtype": config.execution.compute_dtype,
    "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
    "steps": num_steps,
    "tokens_per_second": round(tokens / median, 1),
    "median_step_ms": round(1000 * median, 1),
    "median_step_cpu_seconds": round(median_cpu, 3),
    "tflop_per_step": round(flops_per_step / 1e12, 4),
    "mfu": round(flops_per_step / median / peak.flops, 4)
    if peak.flops
    else None,
    "peak_tflops": round(peak.flops / 1e12, 3),
    "peak_source": peak.source,
    "compile_seconds": round(program.compile_seconds, 2),
    "first_step_seconds": round(first_step_seconds, 2),
    "first_step_process_cpu_seconds": round(first_step_cpu_seconds, 2),
    "peak_rss_mb": round(peak_rss),
    "last_loss": round(timed[-1].loss, 4),
    "jax": jax.__version__,
  }
