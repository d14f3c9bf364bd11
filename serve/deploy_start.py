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

# Closed when this process ends: deploy_unpack.py deletes no tree whose `main`
# somebody has locked.
_in_use = contextlib.ExitStack()


def start(folder: str, argv: list[str]) -> None:
  """Runs the program with `argv`, which begins with its name."""
  app = os.path.join(folder, "app")
  sys.path[:0] = [app, os.path.join(folder, "packages")]
  sys.argv = argv
  file = _in_use.enter_context(open(os.path.join(folder, "main")))
  with contextlib.suppress(OSError):
    fcntl.flock(file, fcntl.LOCK_SH)
    os.utime(file.fileno())
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
