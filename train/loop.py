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
from train import distributed
from train import evaluate
from train import evaluator as evaluator_lib
from train import goodput
from train import hardware
from train import initial
from train import layer_stats
from train import metrics as metrics_lib
from train import phases
from train import preemption
from train import profiler
from train import program as program_lib
from train import progress as progress_lib
from train import samples as samples_lib
from train import step as step_lib
from train import weights_and_biases

_Phase = phases.Phase


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
  began: float | None = None,
) -> Result:
  """Trains to run.steps, going on from the newest checkpoint if there is one.

  Args:
    config: The run.
    workdir: Checkpoints, metrics and reports go here.
    allow_config_changes: Go on from a checkpoint although settings differ.
    began: When the process did (`phases.process_start`); now if not given.

  Raises:
    ValueError: A setting, the data or the checkpoint does not fit.
    CorruptCheckpointError: There are checkpoints, but none is good.
    NonFiniteError: The loss has become NaN or infinite.
  """
  clock = phases.Clock(began=began)
  data = recipes.resolve(config.data)
  _check_vocabulary(config, data)
  if config.observe.wandb_project:
    weights_and_biases.load(config.observe.wandb_project)
  mesh = sharding.make_mesh(config.mesh, jax.devices())
  program_lib.check_batch(config, mesh)
  batches = _train_batches(config, data, sharding.host_rows(mesh))
  _make_workdir(workdir)
  with contextlib.ExitStack() as stack:
    stack.callback(batches.close)
    stack.enter_context(jax.set_mesh(mesh))
    stop = stack.enter_context(preemption.StopRequest())
    distributed.log_to_file(workdir)
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
    clock.enter(_Phase.COMPILE)
    program = program_lib.build(config, mesh)
    logging.info("Compiled the step in %.1f s.", program.compile_seconds)

    clock.enter(_Phase.STATE)
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
    clock.enter(_Phase.STARTUP)
    _write_config(config, workdir)

    wandb = _open_wandb(config, workdir, stack)
    writer = metrics_lib.Writer(workdir, start_step=start, wandb=wandb)
    stack.callback(writer.close)
    ledger = goodput.Ledger(workdir, clock, start_step=start)
    stack.callback(ledger.close)
    traces = stack.enter_context(
      profiler.Profiler(workdir, config.observe, clock)
    )
    layers = layer_stats.Reporter(config, program.graphdef, writer)
    samples = None
    if config.run.log_samples:
      samples = samples_lib.Log(
        workdir, start_step=start, rows=sharding.host_rows(mesh)
      )
      stack.callback(samples.close)
    evaluator = evaluator_lib.Evaluator(config, data, program, mesh, writer)
    # The last to be entered: the others hear of a failure before this process
    # waits for anything.
    stack.enter_context(distributed.ending_together())
    progress = _progress(config, writer, clock, ledger, start)
    clock.enter(_Phase.OTHER)
    for step in range(start + 1, config.run.steps + 1):
      traces.begin(step, state)
      rows = progress.fetch(batches)
      with clock.phase(_Phase.DISPATCH):
        batch = sharding.put_batch(rows, mesh)
      if layers.is_due(step):
        with progress.outside(_Phase.LAYERS):
          layers.write(step, state.params, batch)
      with clock.phase(_Phase.DISPATCH):
        state, metrics = program.train_step(state, batch)
      progress.record(step, metrics)
      traces.end(step, state)
      if samples is not None:
        samples.write(step, batches.locate(step - 1))
      last = step == config.run.steps
      stopped_by = stop.after(step)  # Once: it may change at any moment.
      if step % config.checkpoint.every == 0 or last or stopped_by:
        with progress.outside(_Phase.CHECKPOINT):
          checkpoints.save(state, batches.get_state())
        ledger.write(step)
      if stopped_by:
        _report_goodput(ledger, writer, step)
        return Result(step=step, stopped_by=stopped_by, held_out={})
      if step % config.eval.every == 0 and not last:
        with progress.outside(_Phase.EVALUATE):
          params = step_lib.result(state)
          evaluator.score(params, step, config.eval.max_batches)
          evaluator.sample(params, step)
    with clock.phase(_Phase.CHECKPOINT):
      checkpoints.wait()
    with clock.phase(_Phase.EVALUATE):
      params = step_lib.result(state)
      held_out = evaluator.finish(params, config.run.steps, workdir)
    _report_goodput(ledger, writer, config.run.steps)
    return Result(step=config.run.steps, stopped_by=0, held_out=held_out)


def _train_batches(config, data, rows) -> pipeline.Batches:
  return pipeline.make(
    data,
    seq_len=config.run.seq_len,
    global_batch_size=config.run.batch_size,
    shard_index=rows.index,
    shard_count=rows.count,
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
  """Makes the workdir, or says why it cannot be written or shared."""
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=workdir):
      pass
  except OSError as error:
    raise ValueError(
      f"--workdir={workdir} cannot be written: {error.strerror}. Name a "
      "directory that this user can write to."
    ) from error
  distributed.check_shared(workdir)


def _write_config(config: config_lib.RunConfig, workdir: pathlib.Path) -> None:
  """Keeps the resolved config in the workdir, for people."""
  text = json.dumps(schema.to_dict(config), indent=2, ensure_ascii=False)
  logging.info("Config:\n%s", text)
  if jax.process_index() == 0:
    (workdir / "config.json").write_text(text + "\n", encoding="utf-8")


def _open_wandb(
  config: config_lib.RunConfig,
  workdir: pathlib.Path,
  stack: contextlib.ExitStack,
) -> weights_and_biases.Run | None:
  """The run at Weights & Biases, if one is asked for: the first process's."""
  if not config.observe.wandb_project or jax.process_index() != 0:
    return None
  run = weights_and_biases.Run(
    workdir,
    project=config.observe.wandb_project,
    config=schema.to_dict(config),
  )
  stack.push(run.close)
  return run


def _report_goodput(
  ledger: goodput.Ledger, writer: metrics_lib.Writer, step: int
) -> None:
  account = ledger.account()
  logging.info("Time since the first start:\n%s", goodput.table(account))
  writer.write(step, "goodput", account.flat())


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


def _progress(
  config, writer, clock, ledger, start: int
) -> progress_lib.Progress:
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
  return progress_lib.Progress(
    writer,
    clock=clock,
    ledger=ledger,
    start_step=start,
    total_steps=config.run.steps,
    log_every=config.run.log_every,
    flops_per_token=_flops_per_token(config),
    peak_flops=peak.flops,
  )
