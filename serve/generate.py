"""Offline: a file of prompts in, a file of answers out, by the server's engine.

    bazel run -c opt //serve:generate -- --checkpoint=DIR \
      --input=prompts.jsonl --output=answers.jsonl --max_tokens=256

What the lines are: serve/offline.py. Answers come in the order of the input.
Whoever starts the program again with the same files gets what is missing: ids
that the output has are left out, and a line that was torn when the machine went
down is made again.

    bazel run -c opt //serve:generate -- --checkpoint=DIR --prompt="Once upon"
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import json
import pathlib
import sys
import time
from typing import Any, TextIO

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from serve import assembly
from serve import checkpoints
from serve import command_line
from serve import config as config_lib
from serve import offline

_CONFIG = config_flags.DEFINE_config_file(
  "config", help_string="As of the server."
)
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", "", "A run's workdir, one of its checkpoints, or a model."
)
_IMPORT_FOLDER = flags.DEFINE_string(
  "import_folder", "", "Keeps imported models; unset: ~/.cache/cacao/imported."
)
_INPUT = flags.DEFINE_string("input", "", "JSONL with prompts or messages.")
_OUTPUT = flags.DEFINE_string("output", "", "JSONL to write, or to complete.")
_PROMPT = flags.DEFINE_multi_string(
  "prompt", [], "Instead of files: its answer is printed; may be repeated."
)
_CHAT = flags.DEFINE_bool("chat", False, "A --prompt is a user's message.")
_MAX_TOKENS = flags.DEFINE_integer(
  "max_tokens", 256, "Of an answer.", lower_bound=1
)
_TEMPERATURE = flags.DEFINE_float(
  "temperature", None, "0: greedy. Unset: as the model is meant, or 1."
)
_TOP_P = flags.DEFINE_float("top_p", None, "Unset: as the model is meant.")
_TOP_K = flags.DEFINE_integer(
  "top_k", None, "Unset: as the model is meant.", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "Of all random choices.")
_REPORT_SECONDS = 10.0


def read_input() -> list[offline.Line]:
  """What the flags ask for.

  Raises:
    ValueError: They do not say it, or a line is wrong.
  """
  if bool(_INPUT.value) == bool(_PROMPT.value):
    raise ValueError("Give either --input=FILE or --prompt=TEXT.")
  if not _INPUT.value:
    if _OUTPUT.value:
      raise ValueError(
        "--output is for --input; answers to --prompt are shown."
      )
    return [_prompt_line(i, prompt) for i, prompt in enumerate(_PROMPT.value)]
  if not _OUTPUT.value:
    raise ValueError("Give --output=FILE for the answers.")
  return offline.read_lines(pathlib.Path(command_line.user_path(_INPUT.value)))


def _prompt_line(number: int, prompt: str) -> offline.Line:
  if _CHAT.value:
    messages = [{"role": "user", "content": prompt}]
    return offline.Line(id=number, messages=messages)
  return offline.Line(id=number, prompt=prompt)


def defaults(model: checkpoints.Model) -> offline.Defaults:
  """What the flags, and else the model, say of every line."""
  given: dict[str, Any] = {
    "temperature": _TEMPERATURE.value,
    "top_p": _TOP_P.value,
    "top_k": _TOP_K.value,
  }
  given = {name: value for name, value in given.items() if value is not None}
  return offline.Defaults(
    max_tokens=_MAX_TOKENS.value,
    generation=dataclasses.replace(model.generation, **given),
    seed=_SEED.value,
    end_ids=model.end_ids,
    start=model.start,
    vocab_size=model.config.vocab_size,
  )


def run(config: config_lib.ServeConfig) -> offline.Totals:
  """Answers what is asked and not answered yet."""
  lines = read_input()
  output = None
  if _OUTPUT.value:
    output = pathlib.Path(command_line.user_path(_OUTPUT.value))
    answered = offline.find_answered(output)
    if answered:
      logging.info("%s has %d answers already.", output, len(answered))
    lines = [line for line in lines if line.id not in answered]
  models = _load(_CHECKPOINT.value, config)
  drafts: list[checkpoints.Model] = []
  if config.engine.speculation.method == "draft":
    drafts = _load(config.engine.speculation.checkpoint, config)
  words = offline.Words(models[0].tokenizer) if models[0].tokenizer else None
  made = assembly.assemble(
    models,
    config,
    drafts=drafts,
    report=_report_compiled,
    # Few lines ask for few of the programs.
    warms_up=len(lines) > config.runner.max_rows,
  )
  made.engine.start()
  begin = defaults(models[0])
  jobs = (
    offline.make_job(line, place, begin, words)
    for place, line in enumerate(lines)
  )
  try:
    with contextlib.ExitStack() as stack:
      write: Callable[[Mapping[str, Any]], None] = _show
      if output is not None:
        stream = stack.enter_context(open(output, "a", encoding="utf-8"))
        write = _Writer(stream).write
      return offline.run(
        made.engine,
        jobs,
        write,
        vocabulary=words.vocabulary if words else None,
        # So that slots never wait for this program.
        num_parallel=2 * config.runner.max_rows * len(models),
        report=_Reporter(made.engine, len(lines)),
      )
  finally:
    made.engine.stop()


class _Writer:
  """Lines of the output; each is in the file when the next one is made."""

  def __init__(self, stream: TextIO):
    self._stream = stream

  def write(self, line: Mapping[str, Any]) -> None:
    self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")
    self._stream.flush()


class _Reporter:
  """A line about what is done, now and then."""

  def __init__(self, engine: offline.Engine, num_jobs: int):
    self._engine = engine
    self._num_jobs = num_jobs
    self._next = time.monotonic() + _REPORT_SECONDS

  def __call__(self, totals: offline.Totals) -> None:
    if time.monotonic() < self._next:
      return
    self._next = time.monotonic() + _REPORT_SECONDS
    stats = self._engine.stats()
    logging.info(
      "%d of %d; %s; %d running, %.0f %% of the cache.",
      *(totals.num_jobs, self._num_jobs, totals),
      *(stats.num_running, 100 * stats.pages_used),
    )


def _show(line: Mapping[str, Any]) -> None:
  print(line.get("text", line))


def _report_compiled(num: int, total: int) -> None:
  if num == total:
    logging.info("Compiled %d programs.", total)


def _load(path: str, config: config_lib.ServeConfig) -> list[checkpoints.Model]:
  folder = checkpoints.default_import_folder()
  if _IMPORT_FOLDER.value:
    folder = pathlib.Path(command_line.user_path(_IMPORT_FOLDER.value))
  place = pathlib.Path(command_line.user_path(path))
  return assembly.load(
    place,
    config.runner,
    import_folder=folder,
    keep_imports=config.keep_imports,
  )


def main(argv: list[str]) -> None:
  """Answers, and says how fast."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}; use --flag=value.")
  command_line.set_up_logging()
  try:
    totals = run(command_line.read_config(_CONFIG))
  except checkpoints.ERRORS as error:
    command_line.fail(error)
  logging.info("%s", totals)
  if totals.num_errors:
    sys.exit(1)


if __name__ == "__main__":
  flags.register_validator(
    "checkpoint", bool, message="is missing; name a run's workdir or a model."
  )
  command_line.run(main)
