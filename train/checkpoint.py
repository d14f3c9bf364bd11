"""Training checkpoints: state, place in the data, configuration, tokenizer.

`params` is what the run evaluates and others serve. Where that is an average,
the parameters that training goes on from lie with the optimizer's state.

Saved asynchronously, committed by one rename, verified when restored. A
checkpoint that is damaged is set aside, never deleted, and the one before it
is taken.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import functools
import pathlib
import typing
from typing import Any

from absl import logging
import jax
import orbax.checkpoint as ocp

from model import checkpoint as model_checkpoint
from model import schema
from model import sharding
from train import config as config_lib
from train import distributed
from train import step as step_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
  """A training state and where the data stood."""

  state: step_lib.TrainState
  data: dict[str, Any]


class Checkpoints:
  """The checkpoints of one run, in `<workdir>/checkpoints`."""

  def __init__(
    self,
    workdir: pathlib.Path,
    *,
    config: config_lib.RunConfig,
    tokenizer: pathlib.Path | None,
    allow_changes: bool = False,
  ):
    """Opens the folder.

    Args:
      workdir: The run's directory.
      config: The run; stored in every checkpoint and compared on restore.
      tokenizer: Folder to store with every checkpoint, if the run has one.
      allow_changes: Restore although settings of the run have changed.
    """
    self.folder = workdir.absolute() / "checkpoints"
    self._config = config
    self._allow_changes = allow_changes
    self._tokenizer = _read_folder(tokenizer)
    self._manager = ocp.CheckpointManager(
      self.folder,
      item_handlers={
        "params": ocp.StandardCheckpointHandler(),
        "optimizer": ocp.StandardCheckpointHandler(),
        "meta": model_checkpoint.FilesHandler(),
      },
      options=ocp.CheckpointManagerOptions(
        max_to_keep=config.checkpoint.keep,
        keep_period=config.checkpoint.keep_every,
        cleanup_tmp_directories=True,
      ),
    )

  def steps(self) -> list[int]:
    """Steps that the run has saved, ascending; the same on all processes."""
    return distributed.from_first(model_checkpoint.steps(self.folder))

  def check(self) -> None:
    """Compares this run with the newest readable checkpoint; reads no arrays.

    `restore_latest` does so too: this is for asking before compiling.

    Raises:
      ValueError: The checkpoint is of another run: a setting differs.
    """
    for step in reversed(self.steps()):
      try:
        meta = model_checkpoint.read_meta(self.folder / str(step))
      except model_checkpoint.CorruptCheckpointError:
        continue
      self._check_same_run(meta)
      return

  def save(self, state: step_lib.TrainState, data: dict[str, Any]) -> None:
    """Starts saving; returns when `state` may be donated to the next step.

    Args:
      state: The training state; its step names the checkpoint.
      data: JSON-able state of the data iterator.

    Raises:
      Exception: Whatever made the save before this one fail.
    """
    self._manager.check_for_errors()
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    items = _items(state, step_lib.result(state))
    meta = model_checkpoint.pack_meta(
      {
        model_checkpoint.CONFIG_FILE: schema.to_dict(self._config),
        model_checkpoint.DATA_FILE: data,
      },
      arrays=items,
      tokenizer=self._tokenizer,
    )
    self._manager.save(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardSave(items["params"]),
        optimizer=ocp.args.StandardSave(items["optimizer"]),
        meta=meta,
      ),
    )

  def restore_latest(
    self, shapes: step_lib.TrainState, shardings: step_lib.TrainState
  ) -> Restored | None:
    """The newest good checkpoint, or None if the run has none yet.

    Args:
      shapes: The state's arrays, abstractly.
      shardings: Where they go.

    Raises:
      ValueError: The checkpoint is of another run: a setting differs.
      CorruptCheckpointError: There are checkpoints, but none is good.
    """
    steps = self.steps()
    damaged = []
    for step in reversed(steps):
      try:
        folder = self.folder / str(step)
        meta = _by_all(functools.partial(model_checkpoint.read_meta, folder))
        self._check_same_run(meta)
        restored = self._restore(step, meta, shapes, shardings)
      except model_checkpoint.CorruptCheckpointError as error:
        logging.error("%s", error)
        damaged.append(step)
        continue
      # Only now: were none of them good, the fault may lie elsewhere.
      for bad in damaged:
        logging.error("Moved step %d to %s.", bad, self._set_aside(bad))
      return restored
    if steps:
      raise model_checkpoint.CorruptCheckpointError(
        f"None of the checkpoints {steps} in {self.folder} can be restored; "
        "they were left in place. Mend what the messages above say, restore "
        "one from a copy, or choose another --workdir to start again."
      )
    return None

  def wait(self) -> None:
    """Returns when the last save is committed; raises what made it fail."""
    self._manager.wait_until_finished()
    self._manager.check_for_errors()

  def close(self) -> None:
    """Waits, and stops the threads that save."""
    try:
      self.wait()
    finally:
      self._manager.close()

  def _check_same_run(self, meta: model_checkpoint.Meta) -> None:
    saved = config_lib.from_saved(meta.json(model_checkpoint.CONFIG_FILE))
    differ = config_lib.changes(saved, self._config)
    shown = "; ".join(f"{k}: {a!r} -> {b!r}" for k, (a, b) in differ.items())
    fixed = [key for key in differ if key.startswith(config_lib.FIXED)]
    if differ and (fixed or not self._allow_changes):
      hint = (
        f"undo the change of {', '.join(fixed)}, or choose another --workdir."
        if fixed
        else "undo the change, choose another --workdir, or pass "
        "--allow_config_changes to go on with it."
      )
      raise ValueError(
        f"--workdir has a checkpoint of another run in {self.folder}. "
        f"Settings that differ (saved -> now): {shown}. Fix: {hint}"
      )
    if differ:
      logging.warning("Going on with changed settings: %s", shown)
    for name, content in self._tokenizer.items():
      stored = meta.files.get(f"{model_checkpoint.TOKENIZER_FOLDER}/{name}")
      if name == "tokenizer.json" and stored != content:
        raise ValueError(
          f"data.tokenizer is not the tokenizer of the checkpoint in "
          f"{self.folder}: {name} differs, so token ids have another meaning. "
          "Use the tokenizer that is stored there, or another --workdir."
        )

  def _restore(self, step, meta, shapes, shardings) -> Restored:
    target = sharding.with_shardings(
      _items(shapes, shapes.params), _items(shardings, shardings.params)
    )
    folder = self.folder / str(step)
    restored = _by_all(functools.partial(_read_arrays, folder, target))
    model_checkpoint.check_digests(
      restored, meta.array_digests, where=str(folder)
    )
    has_ema = shapes.ema is not None
    state = step_lib.TrainState(
      step=restored["optimizer"]["step"],
      params=restored["optimizer"].get("params", restored["params"]),
      optimizer=restored["optimizer"]["state"],
      ema=restored["params"] if has_ema else None,
    )
    return Restored(state=state, data=meta.json(model_checkpoint.DATA_FILE))

  def _set_aside(self, step: int) -> pathlib.Path:
    """Moves a damaged checkpoint out of the way, keeping it."""
    graveyard = self.folder.with_name(self.folder.name + ".corrupt")
    name = ""
    if jax.process_index() == 0:
      graveyard.mkdir(exist_ok=True)
      taken = {p.name for p in graveyard.iterdir()}
      name = next(
        n for i in range(len(taken) + 1) if (n := f"{step}-{i}") not in taken
      )
      (self.folder / str(step)).rename(graveyard / name)
    name = distributed.from_first(name)  # It also waits for the move.
    self._manager.reload()
    return graveyard / name


def _by_all[T](read: Callable[[], T]) -> T:
  """What `read` gives, if it does on every process: all go on, or none.

  Raises:
    CorruptCheckpointError: It raised that, here or elsewhere.
  """
  result, error = None, None
  try:
    result = read()
  except model_checkpoint.CorruptCheckpointError as caught:
    error = caught
  if distributed.all_agree(error is None):
    return typing.cast(T, result)
  raise error or model_checkpoint.CorruptCheckpointError(
    "Another process cannot read its part; its log says why."
  )


def _read_arrays(folder: pathlib.Path, target: dict[str, Any]) -> Any:
  """The items of a step, on their devices; waits for no other process."""
  places: dict[str, Any] = {item: folder / item for item in target}
  try:
    # The manager's own `restore` ends with a barrier.
    with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
      return {
        item: handler.restore(
          place, args=ocp.args.StandardRestore(target[item])
        )
        for item, place in places.items()
      }
  except Exception as error:  # Orbax raises what its storage raises.
    raise model_checkpoint.CorruptCheckpointError(
      f"{folder} cannot be read: {error}"
    ) from error


def _items(state: step_lib.TrainState, result: Any) -> dict[str, Any]:
  """A state as the items that are saved; also of shapes and shardings.

  Args:
    state: The training state.
    result: The parameters that it gives (step.result).
  """
  trained = {"params": state.params} if step_lib.has_average(state) else {}
  return {
    "params": result,
    "optimizer": {"step": state.step, "state": state.optimizer} | trained,
  }


def _read_folder(folder: pathlib.Path | None) -> dict[str, bytes]:
  """Files of a folder, by name."""
  if folder is None or not folder.is_dir():
    return {}
  return {
    path.name: path.read_bytes()
    for path in sorted(folder.iterdir())
    if path.is_file()
  }
