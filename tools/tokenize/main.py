"""Text files to a tokenized dataset that `data` can train on.

    ./bazelw run //tools/tokenize -- --input=corpus/ --output=tokens/ \
      --tokenizer=tokenizer.json

Run the same command again after an interruption: it does what is missing.

For Megatron's PREFIX_text_document.bin and .idx:

    ./bazelw run //tools/tokenize -- --input=corpus/ --output=PREFIX \
      --output_format=megatron --tokenizer=tokenizer.json

On many machines by Apache Beam, whose own arguments come after another `--`:

    ./bazelw run --config=beam //tools/tokenize:beam -- --runner=beam \
      --input=gs://bucket/corpus/ --output=/shared/tokens \
      --tokenizer=/shared/tokenizer.json --num_shards=1000 \
      -- --runner=FlinkRunner --flink_master=host:8081
"""

import enum
import os
import pathlib
import sys
import time

from absl import flags

from data import contamination
from data import documents
from data import filters
from data import indexed_corpus
from data import manifest
from data import screening
from data import tokenization
from data import worker_pool
from tools import command_line
from tools.tokenize import beam_runner


class OutputFormat(enum.StrEnum):
  """What is written."""

  DATASET = "dataset"  # a folder with a manifest
  MEGATRON = "megatron"  # PREFIX_text_document.bin and .idx


class Runner(enum.StrEnum):
  """What has the shards made."""

  PROCESSES = "processes"
  BEAM = "beam"


_INPUT = flags.DEFINE_multi_string(
  "input",
  [],
  "File, folder, glob or URL (gs://...); give it again for more.",
)
_OUTPUT = flags.DEFINE_string(
  "output", "", "Directory of the dataset, or prefix of Megatron's files."
)
_OUTPUT_FORMAT = flags.DEFINE_enum_class(
  "output_format",
  OutputFormat.DATASET,
  OutputFormat,
  "dataset: a folder; megatron: a pair PREFIX_text_document.bin and .idx, as"
  " preprocess_data.py --append-eod makes it.",
)
_TOKENIZER = flags.DEFINE_string(
  "tokenizer", "", "tokenizer.json, or the folder with it."
)
_FORMAT = flags.DEFINE_enum_class(
  "format",
  documents.Format.AUTO,
  documents.Format,
  "text: a file is a document; lines: a line is; jsonl, parquet, arrow: see"
  " --field; auto: by suffix. Text and lines may be .gz, .bz2 or .zst.",
)
_FIELD = flags.DEFINE_string("field", "text", "JSONL field, or column.")
_NUM_SHARDS = flags.DEFINE_integer(
  "num_shards", 8, "Files to make, and the most workers that can help."
)
_RUNNER = flags.DEFINE_enum_class(
  "runner",
  Runner.PROCESSES,
  Runner,
  "processes: of this machine; beam: Apache Beam, with its own arguments after"
  " another --, such as -- --runner=FlinkRunner. The output is the same.",
)
_NUM_WORKERS = flags.DEFINE_integer(
  "num_workers",
  os.cpu_count() or 1,
  "Processes. The output does not depend on it.",
)
_VERIFY = flags.DEFINE_bool(
  "verify", True, "Decode every document and compare it with its text."
)
_MIN_CHARS = flags.DEFINE_integer(
  "min_chars", 0, "Leave out documents with fewer characters."
)
_MAX_CHARS = flags.DEFINE_integer(
  "max_chars", 0, "Leave out documents with more characters; 0: none."
)
_LANGUAGES = flags.DEFINE_list(
  "languages",
  [],
  "Leave out documents in other languages than these (en,ko); empty: none.",
)
_MIN_CONFIDENCE = flags.DEFINE_float(
  "min_confidence",
  0.5,
  "Probability, 0 to 1, that a document is in one of --languages.",
)
_DROP_COPIES = flags.DEFINE_bool(
  "drop_copies", False, "Leave out documents with the text of an earlier one."
)
_NEAR_COPIES = flags.DEFINE_float(
  "near_copies",
  0.0,
  "Leave out documents as similar as this to an earlier one, 0 to 1, by"
  " MinHash over runs of five words; 0.8 is usual, 0: none.",
)
_EVALUATION = flags.DEFINE_multi_string(
  "evaluation",
  [],
  "File, folder or URL with an evaluation set: documents with a part of it are"
  " reported in contamination.jsonl. A field other than --evaluation_field is"
  " given as FILE#FIELD.",
)
_EVALUATION_FIELD = flags.DEFINE_string(
  "evaluation_field", "text", "JSONL field, or column, of evaluation sets."
)
_EVALUATION_NGRAM = flags.DEFINE_integer(
  "evaluation_ngram", 13, "Words in a row that make a part."
)
_DROP_CONTAMINATED = flags.DEFINE_bool(
  "drop_contaminated", False, "Leave those documents out."
)


def main(beam_arguments: tuple[str, ...] = ()) -> None:
  """Makes what the flags ask for."""
  started = time.monotonic()
  for name, path in (("output", _OUTPUT), ("tokenizer", _TOKENIZER)):
    if documents.is_remote(path.value):
      raise ValueError(
        f"{name} is {path.value!r}; only input is read from URLs: give a path,"
        " of a folder that all machines share if there are several"
      )
  if _RUNNER.value is Runner.BEAM:
    runner = beam_runner.Beam(arguments=beam_arguments)
  elif beam_arguments:
    raise ValueError(
      f"{' '.join(beam_arguments)} after -- is for Apache Beam; set"
      " --runner=beam, or remove it"
    )
  else:
    runner = worker_pool.Pool(num_workers=_NUM_WORKERS.value)
  options = tokenization.Options(
    format=_FORMAT.value,
    field=_FIELD.value,
    num_shards=_NUM_SHARDS.value,
    num_workers=_NUM_WORKERS.value,
    verify=_VERIFY.value,
    screen=_screen(),
  )
  output = command_line.user_path(_OUTPUT.value)
  make = tokenization.run
  if _OUTPUT_FORMAT.value is OutputFormat.MEGATRON:
    output = indexed_corpus.prefix_of(output, _FIELD.value)
    make = indexed_corpus.run
  result = make(
    [_path_or_url(path) for path in _INPUT.value],
    output,
    tokenizer=command_line.user_path(_TOKENIZER.value),
    options=options,
    runner=runner,
  )
  _print(output, result, time.monotonic() - started)


def split_arguments(
  argv: list[str],
) -> tuple[list[str], tuple[str, ...]]:
  """Our arguments, and Beam's: those after the first `--`."""
  if "--" not in argv:
    return argv, ()
  at = argv.index("--")
  return argv[:at], tuple(argv[at + 1 :])


def _screen() -> screening.Screen:
  return screening.Screen(
    filters=filters.Filters(
      min_chars=_MIN_CHARS.value,
      max_chars=_MAX_CHARS.value,
      languages=tuple(_LANGUAGES.value),
      min_confidence=_MIN_CONFIDENCE.value,
    ),
    evaluations=contamination.Evaluations(
      paths=tuple(str(_path_or_url(path)) for path in _EVALUATION.value),
      field=_EVALUATION_FIELD.value,
      ngram=_EVALUATION_NGRAM.value,
      min_words=min(8, _EVALUATION_NGRAM.value),
      drop=_DROP_CONTAMINATED.value,
    ),
    drop_copies=_DROP_COPIES.value,
    near_copies=_NEAR_COPIES.value,
  )


def _path_or_url(path: str) -> str | pathlib.Path:
  if documents.is_remote(path):
    return path
  return command_line.user_path(path)


def _print(
  output: pathlib.Path, result: manifest.Manifest, seconds: float
) -> None:
  print(
    f"{output}: {result.num_documents:,} documents,"
    f" {result.num_tokens:,} tokens, {result.num_bytes:,} bytes of text"
    f" ({result.num_bytes / result.num_tokens:.2f} a token),"
    f" {sum(shard.num_empty for shard in result.shards):,} without text,"
    f" {seconds:.1f} s"
  )
  if not result.screening:
    return
  for reason, count in result.screening["dropped"].items():
    print(f"  left out, {reason.replace('_', ' ')}: {count:,} documents")
  for path, counts in result.screening["evaluations"].items():
    print(
      f"  {path}: in {counts['num_documents']:,} documents"
      f" ({counts['num_examples']:,} examples,"
      f" {counts['num_too_short']:,} too short to be looked for)"
    )


if __name__ == "__main__":
  sys.argv, _arguments = split_arguments(sys.argv)
  command_line.run(
    lambda: main(_arguments),
    required=("input", "output", "tokenizer"),
    errors=(ValueError, worker_pool.WorkerKilledError),
  )
