"""Several processes as one run: they meet, agree, speak and end together.

Each runs the same program over its own devices. What is decided by looking at
files, or by luck, is decided by the first process or by all (`from_first`,
`all_agree`): were one to take another turn, the others would wait for it in
their next collective for ever. For the same reason a process that fails says so
and all end (`ending_together`); one that is lost without a word is missed after
`_HEARTBEAT_SECONDS`, and JAX ends the others.

Everything here does nothing in a run of one process.
"""

import atexit
from collections.abc import Iterator
import contextlib
import json
import logging as python_logging
import os
import pathlib
import sys
import threading
import time
from typing import Any
import uuid

from absl import logging
import jax
from jax._src import distributed as jax_distributed
from jax.experimental import multihost_utils
import numpy as np

from train import cluster as cluster_lib

LOG_FOLDER = "logs"

_HEARTBEAT_SECONDS = 100
_START_SECONDS = 300
# The last evaluation's baselines and curve are the first process's alone.
_FINISH_SECONDS = 3600

_FAILED_KEY = "run/failed"
_POLL_SECONDS = 1.0
_GATHER_SECONDS = 30
# Between the word that one has failed and the end: long enough for every
# process to hear it, which needs the first process, and to say what it has to.
_GRACE_SECONDS = 5.0


def start(cluster: cluster_lib.Cluster | None) -> None:
  """Joins the other processes; call before JAX has looked for devices.

  Args:
    cluster: As `cluster.find` gives it; None for a run of one process.

  Raises:
    ValueError: The others cannot be reached.
  """
  if cluster is None:
    return
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  # It would take SIGTERM from //train:preemption, and counts only checkpoints.
  jax.config.update("jax_enable_preemption_service", False)
  try:
    jax.distributed.initialize(
      cluster.coordinator,
      num_processes=cluster.num_processes,
      process_id=cluster.process_id,
      local_device_ids=cluster.local_devices,
      # It would fill in what is None here by rules of its own.
      cluster_detection_method="deactivate",
      initialization_timeout=_START_SECONDS,
      heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=_FINISH_SECONDS,
    )
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(
      f"Process {cluster.process_id} of {cluster.num_processes} could not join "
      f"the others at {cluster.coordinator} within {_START_SECONDS} s "
      f"({cluster.source}); see that all were started, that process 0 runs on "
      f"that host and that its port is open. JAX says: {error}"
    ) from error
  _speak_as(cluster.process_id)
  stopped = threading.Event()
  watch = threading.Thread(target=_watch, args=(stopped,), daemon=True)
  watch.start()

  def stop():
    stopped.set()
    watch.join()

  # Before JAX's own, registered when it was imported, leaves the others.
  atexit.register(stop)


def from_first(value: Any) -> Any:
  """The first process's `value`, on all of them; it must fit JSON.

  The others' is not looked at. All must call it.
  """
  if jax.process_count() == 1:
    return value
  content = json.dumps(value).encode() if jax.process_index() == 0 else b""
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
  buffer = np.zeros(size, np.uint8)
  if jax.process_index() == 0:
    buffer[:] = np.frombuffer(content, np.uint8)
  received = multihost_utils.broadcast_one_to_all(buffer)
  return json.loads(np.asarray(received).astype(np.uint8).tobytes())


def all_agree(holds: bool) -> bool:
  """Whether it holds on every process. All must call it."""
  if jax.process_count() == 1:
    return holds
  return bool(np.all(multihost_utils.process_allgather(np.array(holds))))


def has_others() -> bool:
  """Whether `start` has joined several processes."""
  return jax_distributed.global_state.client is not None


def post(key: str, value: str) -> None:
  """Leaves word for all processes; what was left first stands."""
  # Someone has left word already, or the first process is gone.
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    _client().key_value_set(key, value)


def read(key: str) -> str | None:
  """What a process has left, or None; does not wait."""
  try:
    return _client().key_value_try_get(key)
  except jax.errors.JaxRuntimeError:
    # Nothing there; or the first process is gone, which JAX notices itself.
    return None


def gather(key: str, value: str) -> list[str] | None:
  """Each process's value, by no device: it may be called beside the loop.

  Args:
    key: Used once in a run.
    value: This process's.

  Returns:
    All values, or None if some process has not called in time.
  """
  post(f"{key}/{jax_distributed.global_state.process_id}", value)
  try:
    _client().wait_at_barrier(key, _GATHER_SECONDS * 1000)
    pairs = _client().key_value_dir_get(f"{key}/")
  except jax.errors.JaxRuntimeError:
    return None
  return [found for _, found in pairs]


def _client() -> Any:
  """JAX's own connection to what all processes share: words and barriers."""
  return jax_distributed.global_state.client


def check_shared(folder: pathlib.Path) -> None:
  """Sees that all processes mean the same directory by `folder`.

  Raises:
    ValueError: On some host it is another one.
  """
  if jax.process_count() == 1:
    return
  name = from_first(f".shared-{uuid.uuid4().hex}")
  if jax.process_index() == 0:
    (folder / name).touch()
  multihost_utils.sync_global_devices(name)
  seen = _appears(folder / name)
  everywhere = all_agree(seen)
  if jax.process_index() == 0:
    (folder / name).unlink()
  if not everywhere:
    where = "another process" if seen else f"process {jax.process_index()}"
    raise ValueError(
      f"--workdir={folder} is not the same directory on all hosts: what "
      f"process 0 writes there {where} does not find. Name one on a file "
      "system that they share."
    )


def log_to_file(workdir: pathlib.Path) -> None:
  """Sends this process's log to `workdir`/logs, unless it is the first.

  On the console it says only what is wrong.
  """
  process = jax.process_index()
  if process == 0:
    return
  folder = workdir / LOG_FOLDER
  folder.mkdir(exist_ok=True)
  console = logging.get_absl_handler()
  file = python_logging.FileHandler(
    folder / f"process-{process}.log", encoding="utf-8"
  )
  file.setFormatter(
    python_logging.Formatter(
      "%(levelname).1s %(asctime)s] %(message)s", "%Y-%m-%d %H:%M:%S"
    )
  )
  for each in console.filters:
    file.addFilter(each)
  python_logging.getLogger().addHandler(file)


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
  """Where an exception that leaves it ends all processes.

  The others are told, and this one ends soon whatever it still waits for.
  """
  try:
    yield
  except BaseException as error:
    if has_others():
      process = jax_distributed.global_state.process_id
      reason = f"{type(error).__name__}: {error}"
      word = {"process": process, "reason": reason[:2000]}
      post(_FAILED_KEY, json.dumps(word))
      _end_soon()
      if isinstance(error, jax.errors.JaxRuntimeError):
        _say(
          "If another process was lost, its own log says why; the same command "
          "goes on from the newest checkpoint."
        )
    raise


def _watch(stopped: threading.Event) -> None:
  """Ends this process when another has left word that it failed."""
  while not stopped.wait(_POLL_SECONDS):
    found = read(_FAILED_KEY)
    if found is None:
      continue
    word = json.loads(found)
    if word["process"] != jax_distributed.global_state.process_id:
      _end_soon()
      _say(f"Process {word['process']} failed, so all end: {word['reason']}")
    return


def _end_soon() -> None:
  """Ends this process with code 1 after a moment, or when it exits by itself.

  Leaving the usual way waits for the other processes, which would not come.
  """

  def end():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)

  def wait():
    time.sleep(_GRACE_SECONDS)
    end()

  threading.Thread(target=wait, daemon=True).start()
  if jax_distributed.global_state.process_id != 0:
    atexit.register(end)
  else:  # The others hear of it from here.
    atexit.register(wait)


def _say(message: str) -> None:
  """To the console: absl's logger may be busy in the main thread."""
  process = jax_distributed.global_state.process_id
  print(f"Error (process {process}): {message}", file=sys.stderr, flush=True)


def _appears(path: pathlib.Path, seconds: float = 10.0) -> bool:
  """Whether a file is there, or soon: network file systems take a moment."""
  deadline = time.monotonic() + seconds
  while not path.exists():
    if time.monotonic() > deadline:
      return False
    time.sleep(0.2)
  return True


def _speak_as(process: int) -> None:
  """Leaves the console to the first process; the others only warn there."""
  if process == 0:
    return
  console = logging.get_absl_handler()
  console.setFormatter(
    python_logging.Formatter(
      f"%(levelname).1s %(asctime)s process {process}] %(message)s", "%H:%M:%S"
    )
  )
  console.setLevel(python_logging.WARNING)
