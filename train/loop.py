"""The training loop: next batch, step, log, evaluate, save."""

import collections.abc
import contextlib
import dataclasses
import json
import pathlib
import tempfile

from absl import logging
import jax

from data import catalog
from data import pipeline
from data import recipes
from data import stages as stages_lib
from model import flops
from model import schema
from model import sharding
from train import checkpoint
from train import config as config_lib
from train import evaluate
from train import evaluator as evaluator_lib
from train import hardware
from train import initial
from train import metrics as metrics_lib
from train import preemption
from train import program as program_lib
from train import samples as samples_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """How a run ended.

  Attributes:
    step: Updates made, over all its restarts.
    stopped_by: Signal number if one ended it early, else 0.
    held_out: Loss by source, and `blend`; empty if it was ended early.
  """

  step: int
  stopped_by: int
  held_out: dict[str, evaluate.HeldOut]


def run(
  config: config_lib.RunConfig,
  workdir: pathlib.Path,
  *,
  allow_config_changes: bool = False,
) -> Result:
  """Trains to run.steps, going on from the newest checkpoint if there is one.

  Args:
    config: The run.
    workdir: Checkpoints, metrics and reports go here.
    allow_config_changes: Go on from a checkpoint although settings differ.

  Raises:
    ValueError: A setting, the data or the checkpoint does not fit.
    CorruptCheckpointError: There are checkpoints, but none is good.
    NonFiniteError: The loss has become NaN or infinite.
  """
  data = recipes.resolve(config.data)
  _check_vocabulary(config, data)
  mesh = sharding.make_mesh(config.mesh, jax.devices())
  program_lib.check_batch(config, mesh)
  batches = _train_batches(config, data)
  _make_workdir(workdir)
  with contextlib.ExitStack() as stack:
    stack.callback(batches.close)
    stack.enter_context(jax.set_mesh(mesh))
    stop = stack.enter_context(preemption.StopRequest())
    checkpoints = checkpoint.Checkpoints(
      workdir,
      config=config,
      tokenizer=pathlib.Path(data.tokenizer) if data.tokenizer else None,
      allow_changes=allow_config_changes,
    )
    stack.callback(checkpoints.close)
    checkpoints.check()
    if config.checkpoint.init_from and not checkpoints.steps():
      initial.check(config, data)
    program = program_lib.build(config, mesh)
    logging.info("Compiled the step in %.1f s.", program.compile_seconds)

    restored = checkpoints.restore_latest(program.shapes, program.shardings)
    if restored is None and config.checkpoint.init_from:
      state, start = program.begin(initial.load(config, mesh)), 0
    elif restored is None:
      state, start = program.init(), 0
    else:
      state, start = restored.state, int(restored.state.step)
      batches.set_state(restored.data)
      logging.info("Going on from step %d in %s.", start, workdir)
    if start > config.run.steps:
      raise ValueError(
        f"run.steps={config.run.steps}, but the run in {workdir} is at step "
        f"{start}; set run.steps to {start} or more, or choose another "
        "--workdir."
      )
    _write_config(config, workdir)

    writer = metrics_lib.Writer(workdir, start_step=start)
    stack.callback(writer.close)
    samples = None
    if config.run.log_samples:
      samples = samples_lib.Log(workdir, start_step=start)
      stack.callback(samples.close)
    evaluator = evaluator_lib.Evaluator(config, data, program, mesh, writer)
    progress = _progress(config, writer, start)
    for step in range(start + 1, config.run.steps + 1):
      batch = sharding.put_batch(next(batches), mesh)
      state, metrics = program.train_step(state, batch)
      progress.record(step, metrics)
      if samples is not None:
        samples.write(step, batches.locate(step - 1))
      last = step == config.run.steps
      stopped_by = stop.signal  # Read once: it may change at any moment.
      if step % config.checkpoint.every == 0 or last or stopped_by:
        paused = progress.pause()
        checkpoints.save(state, batches.get_state())
        progress.resume(paused)
      if stopped_by:
        return Result(step=step, stopped_by=stopped_by, held_out={})
      if step % config.eval.every == 0 and not last:
        paused = progress.pause()
        evaluator.score(state.params, step, config.eval.max_batches)
        evaluator.sample(state.params, step)
        progress.resume(paused)
    checkpoints.wait()
    held_out = evaluator.finish(state.params, config.run.steps, workdir)
    return Result(step=config.run.steps, stopped_by=0, held_out=held_out)


def _train_batches(config, data) -> pipeline.Batches:
  return pipeline.make(
    data,
    seq_len=config.run.seq_len,
    global_batch_size=config.run.batch_size,
    shard_index=jax.process_index(),
    shard_count=jax.process_count(),
    num_steps=config.run.steps,
  )


def _check_vocabulary(config, data) -> None:
  needed = catalog.vocab_size(data)
  if config.model.vocab_size < needed:
    raise ValueError(
      f"model.vocab_size={config.model.vocab_size} is smaller than the "
      f"{needed} token ids of the data; set it to {needed} or more."
    )


def _make_workdir(workdir: pathlib.Path) -> None:
  """Makes the workdir, or says why it cannot be written."""
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=workdir):
      pass
  except OSError as error:
    raise ValueError(
      f"--workdir={workdir} cannot be written: {error.strerror}. Name a "
      "directory that this user can write to."
    ) from error


def _write_config(config: config_lib.RunConfig, workdir: pathlib.Path) -> None:
  """Keeps the resolved config in the workdir, for people."""
  text = json.dumps(schema.to_dict(config), indent=2, ensure_ascii=False)
  logging.info("Config:\n%s", text)
  if jax.process_index() == 0:
    (workdir / "config.json").write_text(text + "\n", encoding="utf-8")


def _flops_per_token(
  config: config_lib.RunConfig,
) -> collections.abc.Callable[[int], float]:
  """By the number of an update (1 is the first)."""
  stages = config.stages()
  by_length = {
    stage.seq_len: flops.train_per_token(config.model, seq_len=stage.seq_len)
    for stage in stages
  }
  return lambda step: by_length[stages_lib.at(stages, step - 1).seq_len]


def _progress(config, writer, start: int) -> metrics_lib.Progress:
  peak = hardware.peak(config.execution.compute_dtype)
  logging.info(
    "%s: %s parameters; %d %s device(s); MFU against %.3g TFLOP/s (%s)",
    config.model.name,
    f"{flops.count_parameters(config.model).total:,}",
    jax.device_count(),
    jax.devices()[0].device_kind,
    peak.flops / 1e12,
    peak.source,
  )
  return metrics_lib.Progress(
    writer,
    start_step=start,
    total_steps=config.run.steps,
    log_every=config.run.log_every,
    flops_per_token=_flops_per_token(config),
    peak_flops=peak.flops,
  )
