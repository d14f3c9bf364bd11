"""How fast batches are made, as a line of JSON for each setting.

bazel run //data:pipeline_benchmark -- --recipe=quickstart
"""

import dataclasses
import json
import time

from absl import app
from absl import flags

from data import config as config_lib
from data import pipeline
from data import recipes

_RECIPE = flags.DEFINE_string(
  "recipe", "", "Prepare and read this recipe; empty: synthetic tokens."
)
_ROOT = flags.DEFINE_string("root", "", "Where the recipe is prepared.")
_SEQ_LEN = flags.DEFINE_multi_integer("seq_len", [512, 2048, 8192], "T.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Rows of a batch.")
_SECONDS = flags.DEFINE_float("seconds", 3.0, "Time for each setting.")


def main(argv: list[str]) -> None:
  """Measures each setting."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; all are --flags")
  if _RECIPE.value:
    config = config_lib.DataConfig(
      kind=config_lib.Kind.RECIPE, recipe=_RECIPE.value, root=_ROOT.value
    )
  else:
    config = config_lib.DataConfig(
      kind=config_lib.Kind.SYNTHETIC, vocab_size=32_768
    )
  config = recipes.resolve(config)
  for seq_len in _SEQ_LEN.value:
    for mask_documents in (False, True):
      config = dataclasses.replace(config, mask_documents=mask_documents)
      print(json.dumps(_measure(config, seq_len)), flush=True)


def _measure(config: config_lib.DataConfig, seq_len: int) -> dict:
  batches = pipeline.make(
    config, seq_len=seq_len, global_batch_size=_BATCH_SIZE.value
  )
  # The first batch also opens files and orders documents.
  opening = time.perf_counter()
  next(batches)
  started, cpu_started = time.perf_counter(), time.process_time()
  num_batches = 0
  while time.perf_counter() - started < _SECONDS.value:
    next(batches)
    num_batches += 1
  seconds = time.perf_counter() - started
  cpu_seconds = time.process_time() - cpu_started
  batches.close()
  num_samples = num_batches * _BATCH_SIZE.value
  return {
    "data": config.kind.value,
    "seq_len": seq_len,
    "batch_size": _BATCH_SIZE.value,
    "mask_documents": config.mask_documents,
    "first_batch_ms": round(1e3 * (started - opening), 1),
    "tokens_per_second": round(num_samples * seq_len / seconds),
    "samples_per_second": round(num_samples / seconds),
    "samples_per_cpu_second": round(num_samples / cpu_seconds),
  }


if __name__ == "__main__":
  app.run(main)
