"""What the server's binaries share: paths, settings, errors and logging.

`bazel run` starts a binary in its runfiles, where the config files of the tree
are, and names the user's directory in $BUILD_WORKING_DIRECTORY: paths that a
user gives are meant relative to that.
"""

from collections.abc import Callable
import logging as python_logging
import os
import pathlib
import sys
from typing import NoReturn

from absl import app
from absl import flags
from absl import logging
import ml_collections

from serve import config as config_lib

_TREE = pathlib.Path(__file__).parent.parent
_DEFAULT_CONFIG = "serve/configs/default.py"


def user_directory() -> str:
  """Where the user stands."""
  return os.environ.get("BUILD_WORKING_DIRECTORY") or os.getcwd()


def user_path(path: str) -> str:
  """A path as the user means it, absolute."""
  return os.path.join(user_directory(), os.path.expanduser(path))


def resolve_config_path(argument: str) -> str:
  """`--config=PATH[:ARG]` with the path made absolute where it exists.

  The user's directory comes first, then the tree that this file is in, with its
  own config files.
  """
  name, separator, value = argument.partition("=")
  if name.lstrip("-") != "config" or not separator:
    return argument
  path, colon, rest = value.partition(":")
  for candidate in (user_path(path), str(_TREE / path)):
    if os.path.exists(candidate):
      return f"{name}={candidate}{colon}{rest}"
  return argument


def put_config_first(arguments: list[str]) -> list[str]:
  """The arguments with --config before its overrides, as ml_collections wants.

  The default is put there, too: as that of the flag it would be read, and
  overrides with it, while flags are defined, where a mistake cannot be
  explained.
  """
  for at, argument in enumerate(arguments):
    name, has_value, value = argument.partition("=")
    if name in ("--config", "-config"):
      end = at + (1 if has_value else 2)
      value = value if has_value else "".join(arguments[at + 1 : end])
      return [f"--config={value}", *arguments[:at], *arguments[end:]]
  return [f"--config={_DEFAULT_CONFIG}", *arguments]


def run(main: Callable[[list[str]], None]) -> NoReturn:
  """Runs `main` under absl; a bad setting or flag ends in one line, code 1.

  Args:
    main: Gets what is left of the arguments.
  """
  arguments = put_config_first(sys.argv[1:])
  argv = [sys.argv[0], *map(resolve_config_path, arguments)]
  app.run(main, argv=argv, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  except (flags.Error, ValueError, TypeError, OSError) as error:
    fail(error)
  except (KeyError, AttributeError) as error:
    # ml_collections about an override of a setting that is not there.
    fail(ValueError(f"--config: there is no such setting: {error.args[0]}"))


def read_config(
  flag: flags.FlagHolder[ml_collections.ConfigDict],
) -> config_lib.ServeConfig:
  """The settings that --config and its overrides describe.

  Raises:
    ValueError: The file is missing or a setting is wrong.
  """
  value = flag.value
  if not isinstance(value, ml_collections.ConfigDict):
    path = flags.FLAGS[flag.name].serialize().partition("=")[2]
    raise ValueError(
      f"--config={path} cannot be used: there is no such file, or its "
      "get_config() does not return a ConfigDict. Give a path from where you "
      "stand, or one in this tree such as serve/configs/default.py."
    )
  return config_lib.from_config_dict(value, base_dir=user_directory())


def fail(error: BaseException) -> NoReturn:
  """Ends with exit code 1 and the message; --v=1 shows the traceback too."""
  if flags.FLAGS.is_parsed() and logging.vlog_is_on(1):
    raise error
  print(f"Error: {error}", file=sys.stderr)
  sys.exit(1)


def set_up_logging() -> None:
  """Our own lines at INFO, other libraries' only when they warn."""
  if logging.get_verbosity() < logging.INFO:
    logging.set_verbosity(logging.INFO)
  handler = logging.get_absl_handler()
  handler.setFormatter(
    python_logging.Formatter(
      "%(levelname).1s %(asctime)s] %(message)s", "%H:%M:%S"
    )
  )
  handler.addFilter(_is_ours_or_warning)


def _is_ours_or_warning(record: python_logging.LogRecord) -> bool:
  return (
    record.levelno >= python_logging.WARNING
    or "site-packages" not in record.pathname
  )
