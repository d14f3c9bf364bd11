"""Measures the decode server: binary //serve:benchmark; prints one JSON line.

Of a model in this process, the engine without HTTP:

  bazel run -c opt //serve:benchmark -- --random=100m --clients=8

Of a server that runs, HTTP included:

  bazel run -c opt //serve:benchmark -- --random=100m --write=/tmp/random
  bazel run -c opt //serve:decode_server -- --checkpoint=/tmp/random
  bazel run -c opt //serve:benchmark -- --url=http://127.0.0.1:8000 \
      --model=random-100m --clients=8

Each client asks for the next answer as soon as it has one. A first round, of as
many requests as there are clients, is not measured.
"""

import asyncio
import dataclasses
import json
import pathlib
import time
from typing import Any

from absl import app
from absl import flags
import jax
from ml_collections import config_flags

from serve import assembly
from serve import checkpoints
from serve import command_line
from serve import config as config_lib
from serve import random_model
from serve import workload as workload_lib

_CONFIG = config_flags.DEFINE_config_file(
  "config", help_string="As of the server."
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "A model to measure.")
_RANDOM = flags.DEFINE_enum(
  "random", None, list(random_model.SIZES), "A random model instead."
)
_WRITE = flags.DEFINE_string(
  "write", "", "Write the random model to this folder, and end."
)
_URL = flags.DEFINE_string("url", "", "A server to measure instead.")
_MODEL = flags.DEFINE_string("model", "", "As the server calls it.")
_API_KEY = flags.DEFINE_string("api_key", "", "If the server wants one.")
_CLIENTS = flags.DEFINE_integer("clients", 8, "That ask at a time.")
_REQUESTS = flags.DEFINE_integer(
  "requests", None, "In all; unset: four for each client."
)
_PROMPT_TOKENS = flags.DEFINE_integer("prompt_tokens", 128, "Of each prompt.")
_NEW_TOKENS = flags.DEFINE_integer("new_tokens", 128, "Of each answer.")
_SHARED_TOKENS = flags.DEFINE_integer(
  "shared_tokens", 0, "With which all prompts begin."
)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0: greedy.")
_VOCAB_SIZE = flags.DEFINE_integer(
  "vocab_size", 32_000, "With --url: ids of prompts are smaller."
)
_PROFILE = flags.DEFINE_string(
  "profile", "", "Folder for a trace of the measured requests."
)


def measure(config: config_lib.ServeConfig) -> dict[str, Any]:
  """Measures an engine in this process."""
  began = time.monotonic()
  models = _load(config)
  drafts: list[checkpoints.Model] = []
  speculation = config.engine.speculation
  if speculation.method == "draft":
    drafts = _load_drafts(config)
  loaded = time.monotonic()
  made = assembly.assemble(models, config, drafts=drafts)
  compiled = time.monotonic()
  engine = made.engine
  engine.start()
  vocab_size = models[0].config.vocab_size
  workload = _workload(vocab_size)
  workload_lib.drive(engine, _first_round(workload))
  before = engine.stats()
  num_compiled = sum(runner.num_compiled for runner in made.runners)
  if _PROFILE.value:
    jax.profiler.start_trace(str(command_line.user_path(_PROFILE.value)))
  timings, seconds = workload_lib.drive(engine, workload)
  if _PROFILE.value:
    jax.profiler.stop_trace()
  after = engine.stats()
  engine.stop()
  return {
    "mode": "engine",
    "model": models[0].name,
    "device": jax.devices()[0].device_kind,
    "num_devices": jax.device_count(),
    "compute_dtype": models[0].execution.compute_dtype,
    "weights": config.runner.weights,
    "cache": config.runner.cache,
    "speculation": speculation.method,
    "load_seconds": round(loaded - began, 2),
    "compile_seconds": round(compiled - loaded, 2),
    "num_compiled": num_compiled,
    **_describe(workload),
    **workload_lib.summarize(timings, seconds),
    **workload_lib.summarize_engine(before, after, seconds),
  }


def measure_http() -> dict[str, Any]:
  """Measures a server."""
  workload = _workload(_VOCAB_SIZE.value)
  url = _URL.value.rstrip("/")

  async def run() -> tuple[list[workload_lib.Timing], float]:
    options = {"model": _MODEL.value, "api_key": _API_KEY.value}
    await workload_lib.drive_http(url, _first_round(workload), **options)
    return await workload_lib.drive_http(url, workload, **options)

  timings, seconds = asyncio.run(run())
  return {
    "mode": "http",
    "model": _MODEL.value,
    **_describe(workload),
    **workload_lib.summarize(timings, seconds),
  }


def _workload(vocab_size: int) -> workload_lib.Workload:
  return workload_lib.Workload(
    num_clients=_CLIENTS.value,
    num_requests=_REQUESTS.value or 4 * _CLIENTS.value,
    prompt_tokens=_PROMPT_TOKENS.value,
    new_tokens=_NEW_TOKENS.value,
    shared_tokens=_SHARED_TOKENS.value,
    temperature=_TEMPERATURE.value,
    vocab_size=vocab_size,
  )


def _first_round(workload: workload_lib.Workload) -> workload_lib.Workload:
  return dataclasses.replace(
    workload,
    num_requests=workload.num_clients,
    new_tokens=min(16, workload.new_tokens),
    seed=1,
  )


def _describe(workload: workload_lib.Workload) -> dict[str, Any]:
  return {
    "clients": workload.num_clients,
    "requests": workload.num_requests,
    "prompt_tokens": workload.prompt_tokens,
    "new_tokens": workload.new_tokens,
    "shared_tokens": workload.shared_tokens,
    "temperature": workload.temperature,
  }


def _load(config: config_lib.ServeConfig) -> list[checkpoints.Model]:
  if _RANDOM.value:
    return [
      random_model.make(
        _RANDOM.value, mesh, assembly.compute_dtype(config.runner)
      )
      for mesh in assembly.make_meshes(config.runner.mesh)
    ]
  if not _CHECKPOINT.value:
    raise ValueError("Give one of --checkpoint, --random and --url.")
  return _load_checkpoint(command_line.user_path(_CHECKPOINT.value), config)


def _load_drafts(config: config_lib.ServeConfig) -> list[checkpoints.Model]:
  return _load_checkpoint(config.engine.speculation.checkpoint, config)


def _load_checkpoint(
  path: str, config: config_lib.ServeConfig
) -> list[checkpoints.Model]:
  return assembly.load(
    pathlib.Path(path),
    config.runner,
    import_folder=checkpoints.default_import_folder(),
    keep_imports=config.keep_imports,
  )


def main(argv: list[str]) -> None:
  """Prints the measurement."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}; use --flag=value.")
  command_line.set_up_logging()
  try:
    if _WRITE.value:
      if not _RANDOM.value:
        raise ValueError("--write writes a random model; name it by --random.")
      folder = pathlib.Path(command_line.user_path(_WRITE.value))
      print(random_model.write(_RANDOM.value, folder))
      return
    if _URL.value:
      result = measure_http()
    else:
      result = measure(command_line.read_config(_CONFIG))
  except checkpoints.ERRORS as error:
    command_line.fail(error)
  print(json.dumps(result))


if __name__ == "__main__":
  command_line.run(main)
