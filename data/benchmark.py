r"""How fast batches are made: one line of JSON for each case.

  bazel run -c opt //data:benchmark
  bazel run -c opt //data:benchmark -- --peers=grain --peers=megatron

The corpus is made in a temporary folder: three sources of uint16 tokens, mixed
.7, .2 and .1. A peer reads the same files in the same run. Rates are the best
of some rounds; CPU seconds are those of all threads of this process.
"""

import collections.abc
import dataclasses
import gc
import json
import multiprocessing
import pathlib
import tempfile
import time
from typing import Any

from absl import app
from absl import flags
import grain
import numpy as np

from data import config as config_lib
from data import indexed
from data import pipeline
from data import recipes
from data import tokenizer as tokenizer_lib

_RECIPE = flags.DEFINE_string(
  "recipe", "", "Read this recipe's ArrayRecord files, too."
)
_ROOT = flags.DEFINE_string("root", "", "Where the recipe is prepared.")
_SEQ_LEN = flags.DEFINE_integer("seq_len", 2048, "T.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Rows of a batch.")
_TOKENS = flags.DEFINE_integer(
  "tokens", 20_000_000, "Of each source of the corpus."
)
_DOCUMENT = flags.DEFINE_integer("document", 700, "Tokens of a document.")
_SECONDS = flags.DEFINE_float("seconds", 1.0, "Time for each round.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds; the best one counts.")
_PEERS = flags.DEFINE_multi_enum(
  "peers", [], ["grain", "megatron"], "Measured beside ours, if installed."
)

_WEIGHTS = (0.7, 0.2, 0.1)
_VOCAB_SIZE = 300
_MANY_SOURCES = 20
_FAR = 10**9


def main(argv: list[str]) -> None:
  """Measures each case."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; all are --flags")
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    config = _write_corpus(folder)
    many = _many_sources(config)
    # The files are checked once, when they are first opened; and memory is
    # counted in a process that has done nothing else.
    _make(config).close()
    with multiprocessing.get_context("spawn").Pool(1) as fresh:
      arguments = (many, _SEQ_LEN.value, _BATCH_SIZE.value)
      _report("start", fresh.apply(_measure_start, arguments))
    _report("resume", _measure_resume(config))
    for mask_documents in (False, True):
      masked = dataclasses.replace(config, mask_documents=mask_documents)
      case = "segment ids and positions" if mask_documents else "plain"
      _report(f".bin, {case}", _measure_batches(masked))
    synthetic = config_lib.DataConfig(
      kind=config_lib.Kind.SYNTHETIC, vocab_size=32_768
    )
    _report("synthetic", _measure_batches(synthetic))
    if _RECIPE.value:
      recipe = config_lib.DataConfig(
        kind=config_lib.Kind.RECIPE, recipe=_RECIPE.value, root=_ROOT.value
      )
      _report("ArrayRecord", _measure_batches(recipes.resolve(recipe)))
    if "grain" in _PEERS.value:
      for batch_size in (1, _BATCH_SIZE.value):
        rows = iter(_grain_rows(config, batch_size))
        _report(
          f"peer: Grain's mix, batch {batch_size}", _rate(rows, batch_size)
        )
    if "megatron" in _PEERS.value:
      _report("peer: megatron-core", _rate(_megatron_rows(config), 1))


def _report(case: str, values: dict[str, Any]) -> None:
  print(json.dumps({"case": case, **values}), flush=True)


def _write_corpus(folder: pathlib.Path) -> config_lib.DataConfig:
  """Three sources of random tokens, in documents of random lengths."""
  rng = np.random.default_rng(0)
  texts = [str(rng.integers(0, 1 << 60)) for _ in range(2000)]
  tokenizer = tokenizer_lib.Tokenizer.train(texts, vocab_size=_VOCAB_SIZE)
  tokenizer.save(folder / "tokenizer")
  sources = []
  for number, weight in enumerate(_WEIGHTS):
    left = _TOKENS.value
    prefix = folder / f"source{number}"
    with indexed.Writer(prefix, np.uint16) as writer:
      while left:
        length = min(left, int(rng.exponential(_DOCUMENT.value)) + 1)
        tokens = rng.integers(16, _VOCAB_SIZE, length)
        tokens[-1] = tokenizer.eos_id
        writer.add_document([tokens])
        left -= length
    source = config_lib.SourceConfig(
      name=f"source{number}", weight=weight, path=str(prefix)
    )
    sources.append(source)
  return config_lib.DataConfig(
    kind=config_lib.Kind.DATASETS,
    sources=tuple(sources),
    tokenizer=str(folder / "tokenizer"),
  )


def _many_sources(config: config_lib.DataConfig) -> config_lib.DataConfig:
  """Twenty sources, with weights that repeat after a million samples."""
  weights = np.random.default_rng(1).dirichlet(np.ones(_MANY_SOURCES))
  counts = np.maximum(1, weights * 999_000).astype(int).tolist()
  counts[0] += 999_999 - sum(counts)
  sources = tuple(
    dataclasses.replace(
      config.sources[number % len(_WEIGHTS)],
      name=f"source{number}",
      weight=float(count),
    )
    for number, count in enumerate(counts)
  )
  return dataclasses.replace(config, sources=sources)


def _make(config: config_lib.DataConfig) -> pipeline.Batches:
  return pipeline.make(
    config, seq_len=_SEQ_LEN.value, global_batch_size=_BATCH_SIZE.value
  )


def _measure_start(
  config: config_lib.DataConfig, seq_len: int, batch_size: int
) -> dict[str, Any]:
  """From the config to the first batch, of a run of 1e9 samples."""
  gc.collect()
  pathlib.Path("/proc/self/clear_refs").write_text("5")  # Forget the peak.
  before = _peak_rss_mb()
  started, cpu_started = time.perf_counter(), time.process_time()
  batches = pipeline.make(
    config,
    seq_len=seq_len,
    global_batch_size=batch_size,
    num_steps=_FAR // batch_size,
  )
  made = time.perf_counter()
  next(batches)
  seconds = time.perf_counter() - started
  values = {
    "sources": len(config.sources),
    "samples": _FAR,
    "make_seconds": round(made - started, 3),
    "first_batch_seconds": round(seconds, 3),
    "cpu_seconds": round(time.process_time() - cpu_started, 3),
    "rss_before_mb": round(before),
    "rss_added_mb": round(_peak_rss_mb() - before),
  }
  batches.close()
  return values


def _measure_resume(config: config_lib.DataConfig) -> dict[str, Any]:
  """From the state at sample 1e9 to the batch that follows."""
  batches = _make(config)
  next(batches)
  state = batches.get_state() | {"step": _FAR // _BATCH_SIZE.value}
  batches.close()
  resumed = _make(config)
  started = time.perf_counter()
  resumed.set_state(state)
  placed = time.perf_counter()
  next(resumed)
  seconds = time.perf_counter() - started
  resumed.close()
  return {
    "sample": _FAR,
    "set_state_ms": round(1e3 * (placed - started), 2),
    "first_batch_ms": round(1e3 * seconds, 1),
  }


def _measure_batches(config: config_lib.DataConfig) -> dict[str, Any]:
  batches = _make(config)
  values = _rate(batches, _BATCH_SIZE.value)
  batches.close()
  return values


def _rate(batches: collections.abc.Iterator, batch_size: int) -> dict[str, Any]:
  """Samples per second of an iterator, the best of some rounds."""
  for _ in range(max(3, 64 // batch_size)):
    next(batches)
  walls, cpus = [], []
  for _ in range(_ROUNDS.value):
    started, cpu_started = time.perf_counter(), time.process_time()
    count = 0
    while time.perf_counter() - started < _SECONDS.value:
      next(batches)
      count += batch_size
    walls.append(count / (time.perf_counter() - started))
    cpus.append(count / (time.process_time() - cpu_started))
  return {
    "seq_len": _SEQ_LEN.value,
    "batch_size": batch_size,
    "samples_per_cpu_second": round(max(cpus)),
    "samples_per_second": round(max(walls)),
    "rounds_per_cpu_second": [round(cpu) for cpu in cpus],
  }


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Mapped:
  """Ready-made records for Grain: seq_len + 1 tokens each of a file."""

  tokens: np.ndarray
  seq_len: int

  def __len__(self) -> int:
    return (len(self.tokens) - 1) // self.seq_len

  def __getitem__(self, index: int) -> np.ndarray:
    start = int(index) * self.seq_len
    return self.tokens[start : start + self.seq_len + 1]


def _grain_rows(
  config: config_lib.DataConfig, batch_size: int
) -> collections.abc.Iterable:
  """Grain's own mix of shuffled records; it makes tokens and targets alone."""

  def split(tokens: np.ndarray) -> dict[str, np.ndarray]:
    tokens = tokens.astype(np.int32)
    return {"tokens": tokens[:-1], "targets": tokens[1:]}

  parts = []
  for number, source in enumerate(config.sources):
    tokens = np.memmap(f"{source.path}.bin", np.uint16, "r")
    records = grain.MapDataset.source(
      _Mapped(tokens=tokens, seq_len=_SEQ_LEN.value)
    )
    parts.append(records.seed(number).shuffle().repeat().map(split))
  mixed = grain.MapDataset.mix(parts, list(_WEIGHTS))
  if batch_size > 1:
    mixed = mixed.batch(batch_size)
  # Without threads: for records in memory Grain is ten times as fast so.
  return mixed.to_iter_dataset(
    grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  )


def _megatron_rows(
  config: config_lib.DataConfig,
) -> collections.abc.Iterator[dict]:
  """Megatron-Core's own dataset, if it is installed; it needs PyTorch."""
  try:
    # pyrefly: ignore[missing-import]
    from megatron.core.datasets import blended_megatron_dataset_builder

    # pyrefly: ignore[missing-import]
    from megatron.core.datasets import gpt_dataset
  except ImportError as error:
    raise app.UsageError(
      f"--peers=megatron: megatron-core cannot be imported ({error}); install"
      " it beside this program, or leave it out"
    ) from error

  class Tokenizer:
    vocab_size, eod, pad = _VOCAB_SIZE, 0, 1

    def __init__(self):
      self.unique_identifiers = {"name": "benchmark"}

  options = gpt_dataset.GPTDatasetConfig(
    random_seed=0,
    sequence_length=_SEQ_LEN.value,
    blend=([source.path for source in config.sources], list(_WEIGHTS)),
    split="1,0,0",
    tokenizer=Tokenizer(),
    reset_position_ids=False,
    reset_attention_mask=False,
    eod_mask_loss=False,
    create_attention_mask=False,
  )
  builder = blended_megatron_dataset_builder.BlendedMegatronDatasetBuilder(
    gpt_dataset.GPTDataset, [100_000, 0, 0], lambda: True, options
  )
  dataset = builder.build()[0]
  while True:
    for index in range(len(dataset)):
      yield dataset[index]


def _peak_rss_mb() -> float:
  status = pathlib.Path("/proc/self/status").read_text()
  fields = dict(line.split(":", 1) for line in status.splitlines())
  return int(fields["VmHWM"].split()[0]) / 1024


if __name__ == "__main__":
  app.run(main)
