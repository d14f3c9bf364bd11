"""Runs the program of an unpacked tree.

    python -I -S start.py NAME [ARGUMENT...]

Beside this file are `main`, which names the program's file, `app/`, the sources
by their path in the tree that they are from, and `packages/`.
"""

import contextlib
import fcntl
from importlib import machinery
import os
import sys
import types


def start(folder: str, argv: list[str]) -> None:
  """Runs the program with `argv`, which begins with its name."""
  app = os.path.join(folder, "app")
  sys.path[:0] = [app, os.path.join(folder, "packages")]
  sys.argv = argv
  name = os.path.join(folder, "main")
  # Closed when this process ends: deploy_unpack.py deletes no tree that
  # somebody has locked, or has started of late.
  in_use = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
  with contextlib.suppress(OSError):
    fcntl.flock(in_use, fcntl.LOCK_SH)
    os.utime(in_use)
  with open(name) as file:
    main = os.path.join(app, file.read())
  # As `python main`, but with the name it was started by: runpy changes that.
  module = types.ModuleType("__main__")
  module.__file__ = main
  sys.modules["__main__"] = module
  code = machinery.SourceFileLoader("__main__", main).get_code("__main__")
  assert code is not None
  exec(code, module.__dict__)


if __name__ == "__main__":
  start(os.path.dirname(os.path.abspath(__file__)), sys.argv[1:])
