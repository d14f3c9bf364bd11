"""A run's numbers at Weights & Biases, if `observe.wandb_project` names one.

The package `wandb` is not among ours; a run that asks for it needs it on its
import path:

  pip install --target=$HOME/wandb wandb
  PYTHONPATH=$HOME/wandb bazel run //train:main -- \
      --config.observe.wandb_project=NAME ...

Where to send to, and by whose key, wandb reads from its own settings
(WANDB_API_KEY, WANDB_ENTITY, WANDB_BASE_URL, WANDB_MODE=offline).
"""

import importlib
import pathlib
import secrets
from typing import Any

_ID_FILE = "wandb_id"


def load(project: str) -> Any:
  """The package.

  Raises:
    ValueError: It is not there.
  """
  try:
    return importlib.import_module("wandb")
  except ImportError as error:
    raise ValueError(
      f"observe.wandb_project={project!r} needs the package wandb, which is "
      f"not to be imported ({error}). Install it "
      "(pip install --target=DIR wandb) and start with PYTHONPATH=DIR, or "
      "leave the setting empty: metrics.jsonl and TensorBoard have all of it."
    ) from error


class Run:
  """One run there; the same one again when a run is resumed."""

  def __init__(
    self, workdir: pathlib.Path, *, project: str, config: dict[str, Any]
  ):
    """Opens it.

    Args:
      workdir: Its name is the run's; keeps the run's id.
      project: Where it belongs.
      config: The resolved settings.

    Raises:
      ValueError: wandb is missing, or refuses.
    """
    self._wandb = load(project)
    id_file = workdir / _ID_FILE
    if not id_file.exists():
      id_file.write_text(secrets.token_hex(8) + "\n", encoding="utf-8")
    try:
      self._run = self._wandb.init(
        project=project,
        name=workdir.name,
        id=id_file.read_text(encoding="utf-8").strip(),
        resume="allow",
        config=config,
        dir=str(workdir),
      )
    except self._wandb.Error as error:
      raise ValueError(
        f"observe.wandb_project={project!r}: wandb says: {error}. Set "
        "WANDB_API_KEY, or WANDB_MODE=offline to send it later, or leave the "
        "setting empty."
      ) from error
    # wandb's own count of steps only grows, but a resumed run goes back.
    self._run.define_metric("step")
    self._run.define_metric("*", step_metric="step")

  def log(self, step: int, kind: str, values: dict[str, Any]) -> None:
    """One record, as `kind/name`; lists of numbers as histograms."""
    record = {
      f"{kind}/{name}": self._wandb.Histogram(value)
      if isinstance(value, list)
      else value
      for name, value in values.items()
    }
    self._run.log({"step": step} | record)

  def close(self, kind: type[BaseException] | None = None, *unused) -> None:
    """Sends what is left, and marks the run as ended or, by `kind`, failed.

    Takes what a context manager's `__exit__` takes.
    """
    self._run.finish(exit_code=0 if kind is None else 1)
