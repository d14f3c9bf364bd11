"""What the tree's programs share: paths as the user means them, and errors.

`bazel run` starts a program in its runfiles and names the user's directory in
$BUILD_WORKING_DIRECTORY: paths are meant relative to that.
"""

from collections.abc import Callable
import os
import pathlib
import sys
from typing import NoReturn

from absl import app
from absl import flags
from absl import logging


def user_path(path: str) -> pathlib.Path:
  """A path as the user means it, absolute."""
  base = os.environ.get("BUILD_WORKING_DIRECTORY") or os.getcwd()
  return pathlib.Path(base, os.path.expanduser(path))


def run(
  main: Callable[[], None],
  *,
  required: tuple[str, ...] = (),
  errors: tuple[type[Exception], ...] = (ValueError,),
) -> NoReturn:
  """Runs `main` under absl; bad input ends in one line and exit code 1.

  Libraries print only their warnings, unless --v asks for more.

  Args:
    main: Reads its flags itself.
    required: Flags that must be given.
    errors: What is the user's to mend; --v=1 shows the traceback too.
  """

  def checked(argv: list[str]) -> None:
    if len(argv) > 1:
      raise app.UsageError(f"unknown arguments {argv[1:]}; all are --flags")
    for name in required:
      if not flags.FLAGS[name].value:
        raise app.UsageError(f"--{name} is not set; it is required")
    if logging.get_verbosity() == logging.INFO:
      logging.set_verbosity(logging.WARNING)
    try:
      main()
    except errors as error:
      if logging.vlog_is_on(1):
        raise
      print(f"Error: {error}", file=sys.stderr)
      sys.exit(1)

  app.run(checked)
