"""One writer for a directory, over all processes of a machine."""

import collections.abc
import contextlib
import fcntl
import pathlib


@contextlib.contextmanager
def hold(directory: pathlib.Path) -> collections.abc.Iterator[None]:
  """Makes the directory and holds its lock, waiting for another holder.

  The lock goes with the process that holds it, so a killed one leaves none.

  Raises:
    ValueError: the directory cannot be written.
  """
  try:
    directory.mkdir(parents=True, exist_ok=True)
    stream = (directory / ".lock").open("w")
  except OSError as error:
    raise ValueError(
      f"{str(directory)!r} cannot be written ({error.strerror}); choose another"
      " directory or change its permissions"
    ) from error
  with stream:
    try:
      fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      print(f"Waiting for another process that writes {directory}", flush=True)
      fcntl.flock(stream, fcntl.LOCK_EX)
    yield
