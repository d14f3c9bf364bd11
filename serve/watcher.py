"""Newer steps of a training run, while the run goes on."""

from collections.abc import Callable
import dataclasses
import pathlib
import threading
import time
from typing import Any

from absl import logging

from model import checkpoint
from serve import checkpoints

# Between two tries of a step that cannot be read.
_MAX_SECONDS = 300.0


class Watcher:
  """A thread that loads newer steps; a context manager.

  It is for steps that a trainer renames into place. Others are let be: a step
  that is damaged, or still being copied, is tried again, ever more rarely, and
  meanwhile the newest of the others is taken; one that the run deletes while
  it is read is forgotten; one of another model is refused.

  The server's parameters and the new ones are in memory at the same time.
  """

  def __init__(
    self,
    path: pathlib.Path,
    model: checkpoints.Model,
    *,
    on_new: Callable[[checkpoints.Model], None],
    seconds: float,
    import_folder: pathlib.Path,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Looks at a folder of steps; `start` begins.

    Args:
      path: A run's workdir or its checkpoints folder.
      model: What is served now, loaded from there.
      on_new: Gets each newer model, on the watcher's thread, which waits for
        it. Whatever it raises is logged, and the step tried again.
      seconds: Between two looks.
      import_folder: As `checkpoints.load` takes it.
      clock: Seconds; for tests.

    Raises:
      ValueError: New steps cannot come there.
    """
    self._folder = check(path)
    # Its parameters are the engine's, which will let go of them.
    self._model = dataclasses.replace(model, params={})
    self._on_new = on_new
    self._seconds = seconds
    self._import_folder = import_folder
    self._clock = clock
    # By step: when it may be tried again, and how long was waited for that.
    self._failed: dict[int, tuple[float, float]] = {}
    self._refused: set[int] = set()
    self._stopping = threading.Event()
    self._thread = threading.Thread(
      target=self._run, name="checkpoint watcher", daemon=True
    )

  def __enter__(self) -> "Watcher":
    self.start()
    return self

  def __exit__(self, *exception) -> None:
    self.stop()

  @property
  def step(self) -> int:
    """Of the newest model that was handed on."""
    return self._model.step

  def start(self) -> None:
    """Begins to look."""
    self._thread.start()

  def stop(self) -> None:
    """Ends; waits for a step that is being loaded."""
    self._stopping.set()
    if self._thread.is_alive():
      self._thread.join()

  def look(self) -> int | None:
    """Looks once; the step that was handed on, if there was one.

    For the thread, and for tests and servers that have none.
    """
    steps = [s for s in checkpoint.steps(self._folder) if s > self._model.step]
    # What is no longer there may come back, and be good.
    self._failed = {s: v for s, v in self._failed.items() if s in steps}
    self._refused &= set(steps)
    for step in reversed(steps):
      if step in self._refused or self._is_waiting(step):
        continue
      if self._take(step):
        return step
    return None

  def _run(self) -> None:
    while not self._stopping.wait(self._seconds):
      try:
        self.look()
      except Exception:
        # Such as a file system that is away. The server serves on.
        logging.exception("Looking for new steps in %s failed.", self._folder)

  def _is_waiting(self, step: int) -> bool:
    return step in self._failed and self._clock() < self._failed[step][0]

  def _take(self, step: int) -> bool:
    """Loads a step and hands it on; whether that went well."""
    folder = self._folder / str(step)
    start = time.perf_counter()
    try:
      meta = checkpoint.read_meta(folder)
      difference = _difference(self._model, meta)
      if difference:
        self._refused.add(step)
        logging.error(
          "Step %d of %s is refused: %s. Start another server for it; this one"
          " goes on with step %d.",
          *(step, self._folder, difference, self._model.step),
        )
        return False
      model = checkpoints.load_step(
        folder,
        mesh=self._model.mesh,
        compute_dtype=self._model.execution.compute_dtype,
        import_folder=self._import_folder,
      )
      self._on_new(model)
    # Reading raises what Orbax does, and `on_new` anything.
    except Exception as error:
      self._put_off(step, folder, error)
      return False
    self._failed.pop(step, None)
    self._model = dataclasses.replace(model, params={})
    logging.info(
      "Step %d is served, loaded in %.1f s.", step, time.perf_counter() - start
    )
    return True

  def _put_off(self, step: int, folder: pathlib.Path, error: Exception) -> None:
    if not folder.exists():
      logging.info("Step %d was deleted while it was read.", step)
      return
    _, waited = self._failed.get(step, (0.0, self._seconds / 2))
    wait = min(2 * waited, max(self._seconds, _MAX_SECONDS))
    self._failed[step] = (self._clock() + wait, wait)
    logging.warning(
      "Step %d cannot be served; step %d still is, and step %d is tried again"
      " in %.0f s: %s",
      *(step, self._model.step, step, wait, error),
    )


def check(path: pathlib.Path) -> pathlib.Path:
  """The folder in which new steps of a run appear.

  Raises:
    ValueError: None can, at `path`.
  """
  if checkpoints.is_foreign(path):
    why = "is an imported model, which does not change"
  elif (path / "meta").is_dir():
    why = "is one step; name the folder it is in"
  elif checkpoint.steps(path):
    return path
  elif (path / "checkpoints").is_dir():
    return path / "checkpoints"
  else:
    why = "holds no checkpoint"
  raise ValueError(
    f"--checkpoint={path} {why}: there is nothing to watch. Watch a run's"
    " workdir or its checkpoints folder, or leave --watch out."
  )


def _difference(model: checkpoints.Model, meta: checkpoint.Meta) -> str:
  """What forbids to serve a checkpoint in the place of `model`; or nothing."""
  config = dataclasses.replace(meta.model, name=model.config.name)
  if config != model.config:
    names = [
      f.name
      for f in dataclasses.fields(config)
      if getattr(config, f.name) != getattr(model.config, f.name)
    ]
    return f"it is of another model, which differs in {', '.join(names)}"
  theirs = meta.execution.param_dtype
  if theirs != model.execution.param_dtype:
    return (
      f"its parameters are {theirs}, those that are served"
      f" {model.execution.param_dtype}"
    )
  files = checkpoints.tokenizer_files(meta)
  if files != _read(model.tokenizer):
    return "it has another tokenizer"
  return ""


def _read(folder: pathlib.Path | None) -> dict[str, Any]:
  if folder is None:
    return {}
  return {
    str(file.relative_to(folder)): file.read_bytes()
    for file in folder.rglob("*")
    if file.is_file()
  }
