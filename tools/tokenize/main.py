"""Text files to a tokenized dataset that `data` can train on.

    ./bazelw run //tools/tokenize -- --input=corpus/ --output=tokens/ \
      --tokenizer=tokenizer.json

Run the same command again after an interruption: it does what is missing.
"""

import os
import time

from absl import flags

from data import documents
from data import tokenization
from tools import command_line

_INPUT = flags.DEFINE_multi_string(
  "input", [], "File or folder; give it again for more."
)
_OUTPUT = flags.DEFINE_string("output", "", "Directory of the dataset.")
_TOKENIZER = flags.DEFINE_string(
  "tokenizer", "", "tokenizer.json, or the folder with it."
)
_FORMAT = flags.DEFINE_enum_class(
  "format",
  documents.Format.AUTO,
  documents.Format,
  "text: a file is a document; lines: a line is; jsonl, parquet: see --field;"
  " auto: by suffix.",
)
_FIELD = flags.DEFINE_string("field", "text", "JSONL field or Parquet column.")
_NUM_SHARDS = flags.DEFINE_integer(
  "num_shards", 8, "Files to make, and the most workers that can help."
)
_NUM_WORKERS = flags.DEFINE_integer(
  "num_workers",
  os.cpu_count() or 1,
  "Processes. The output does not depend on it.",
)
_VERIFY = flags.DEFINE_bool(
  "verify", True, "Decode every document and compare it with its text."
)


def main() -> None:
  """Makes the dataset that the flags ask for."""
  output = command_line.user_path(_OUTPUT.value)
  started = time.monotonic()
  result = tokenization.run(
    [command_line.user_path(path) for path in _INPUT.value],
    output,
    tokenizer=command_line.user_path(_TOKENIZER.value),
    options=tokenization.Options(
      format=_FORMAT.value,
      field=_FIELD.value,
      num_shards=_NUM_SHARDS.value,
      num_workers=_NUM_WORKERS.value,
      verify=_VERIFY.value,
    ),
  )
  seconds = time.monotonic() - started
  print(
    f"{output}: {result.num_documents:,} documents,"
    f" {result.num_tokens:,} tokens, {result.num_bytes:,} bytes of text"
    f" ({result.num_bytes / result.num_tokens:.2f} a token),"
    f" {sum(shard.num_empty for shard in result.shards)} empty documents left"
    f" out, {seconds:.1f} s"
  )


if __name__ == "__main__":
  command_line.run(main, required=("input", "output", "tokenizer"))
