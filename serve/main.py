r"""Serves a model over HTTP: binary //serve:decode_server.

  bazel run -c opt //serve:decode_server -- --checkpoint=DIR

DIR is a training run's workdir, one of its checkpoints, or a model of another
form that is imported first (a folder with config.json and safetensors, or a
.gguf file). The API is OpenAI's, at http://127.0.0.1:8000/v1; a page to try it
is at /. Any setting can be overridden, --config.runner.max_rows=64; all of them
are in serve/config.py.

Exit codes: 0 ended by SIGTERM or SIGINT; 1 it could not start, or the engine
died.
"""

import asyncio
import logging as python_logging
import os
import pathlib
import sys
from typing import NoReturn

from absl import app
from absl import flags
from absl import logging
import ml_collections
from ml_collections import config_flags

from serve import checkpoints
from serve import command_line
from serve import config as config_lib
from serve import loading
from serve import server

_CONFIG = config_flags.DEFINE_config_file(
  "config", help_string="File with settings, such as serve/configs/default.py."
)
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", "", "A run's workdir, one of its checkpoints, or a model."
)
_WATCH = flags.DEFINE_bool(
  "watch", False, "Serve newer checkpoints of the run as they appear."
)
_IMPORT_FOLDER = flags.DEFINE_string(
  "import_folder", "", "Keeps imported models; unset: ~/.cache/cacao/imported."
)
_HOST = flags.DEFINE_string("host", None, "Short for --config.api.host.")
_PORT = flags.DEFINE_integer("port", None, "Short for --config.api.port.")
_API_KEYS = flags.DEFINE_string(
  "api_keys", None, "Short for --config.api.api_keys: a file, one key a line."
)


def read_config() -> config_lib.ServeConfig:
  """The settings that all flags describe.

  Raises:
    ValueError: One is wrong.
  """
  short = {"host": _HOST, "port": _PORT, "api_keys": _API_KEYS}
  if isinstance(_CONFIG.value, ml_collections.ConfigDict):
    for name, flag in short.items():
      if flag.value is not None:
        _CONFIG.value.api[name] = flag.value
  return command_line.read_config(_CONFIG)


def main(argv: list[str]) -> NoReturn:
  """Serves until a signal, and turns what went wrong into a message."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}; use --flag=value.")
  command_line.set_up_logging()
  try:
    config = read_config()
    path = pathlib.Path(command_line.user_path(_CHECKPOINT.value))
    if not path.exists():
      raise ValueError(f"--checkpoint={path} does not exist.")
    folder = checkpoints.default_import_folder()
    if _IMPORT_FOLDER.value:
      folder = pathlib.Path(command_line.user_path(_IMPORT_FOLDER.value))
    load = loading.Loader(
      path=path, config=config, import_folder=folder, watches=_WATCH.value
    )
    ended = asyncio.run(server.Server(config.api, load=load).run())
  except checkpoints.ERRORS as error:
    command_line.fail(error)
  if not ended.is_clean:
    # A thread is in the midst of something: Python cannot tear it down.
    logging.flush()
    python_logging.shutdown()
    sys.stderr.flush()
    os._exit(ended.code)
  sys.exit(ended.code)


if __name__ == "__main__":
  flags.register_validator(
    "checkpoint", bool, message="is missing; name a run's workdir or a model."
  )
  command_line.run(main)
