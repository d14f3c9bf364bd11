"""How well a trained model predicts a text: its loss, every token scored once.

    bazel run //tools/evaluate -- --checkpoint=DIR --input=FILE_OR_FOLDER

The text is tokenized with the model's own tokenizer, so between models bits per
byte are comparable, nats per token and perplexity are not.
"""

from collections.abc import Iterable, Iterator
import dataclasses
import json
import math
import os
import pathlib
import shutil
import tempfile
import time

from absl import flags
import jax
import numpy as np
import tqdm

from data import batch as batch_lib
from data import config as data_config
from data import documents
from data import held_out
from data import manifest
from data import pipeline
from data import tokenization
from model import sharding
from tools import command_line
from tools import trained_model
from train import evaluate
from train import step

_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", "", "A run's workdir, its checkpoints, or one of them."
)
_INPUT = flags.DEFINE_multi_string(
  "input", [], "File or folder of text; give it again for more."
)
_FORMAT = flags.DEFINE_enum_class(
  "format",
  documents.Format.AUTO,
  documents.Format,
  "text: a file is a document; lines: a line is; jsonl, parquet: see --field;"
  " auto: by suffix.",
)
_FIELD = flags.DEFINE_string("field", "text", "JSONL field or Parquet column.")
_SEQ_LEN = flags.DEFINE_integer(
  "seq_len", 1024, "Tokens of a row: how far back a token can see, at most."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 4, "Rows of a batch.")
_MAX_BATCHES = flags.DEFINE_integer(
  "max_batches", None, "Score the beginning only.", lower_bound=1
)
_MASK_DOCUMENTS = flags.DEFINE_bool(
  "mask_documents", False, "No token sees another document."
)
_SCORE_ENDS = flags.DEFINE_bool(
  "score_ends", True, "Score the token that ends each document, too."
)
_SEPARATOR = flags.DEFINE_string(
  "separator",
  "",
  "Token before and between documents, as the model was trained (Llama 3:"
  " <|begin_of_text|>); the tokenizer's eos_token if not given.",
)
_VERIFY = flags.DEFINE_bool(
  "verify", True, "Decode every document and compare it with its text."
)
_COMPUTE_DTYPE = flags.DEFINE_enum(
  "compute_dtype", "bfloat16", ["bfloat16", "float32"], "Of the activations."
)
_TENSOR = flags.DEFINE_integer(
  "tensor", 1, "Devices that share each matrix; the others share rows."
)

_SOURCE = "input"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """What an evaluation found.

  Attributes:
    loss: The loss.
    num_bytes: Of the text that was scored.
    seconds: Scoring took; compiling not counted.
    compile_seconds: Compiling took.
  """

  loss: evaluate.HeldOut
  num_bytes: float
  seconds: float
  compile_seconds: float


def tokenize(
  inputs: list[pathlib.Path],
  folder: pathlib.Path,
  *,
  tokenizer: pathlib.Path,
  separator: str,
  options: tokenization.Options,
) -> manifest.Manifest:
  """Makes the dataset `folder/tokens` and the tokenizer `folder/tokenizer`.

  Args:
    inputs: Files and folders.
    folder: Where to write.
    tokenizer: Folder of the model's tokenizer.
    separator: Name of the token that ends documents; its eos_token if empty.
    options: How to read the input.

  Raises:
    ValueError: The input cannot be read, or the separator is no token.
  """
  shutil.copytree(tokenizer, folder / "tokenizer")
  if separator:
    file = folder / "tokenizer" / "tokenizer_config.json"
    config = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(config | {"eos_token": separator}))
  return tokenization.run(
    inputs,
    folder / "tokens",
    tokenizer=folder / "tokenizer",
    options=options,
  )


def open_batches(
  folder: pathlib.Path,
  *,
  seq_len: int,
  batch_size: int,
  max_batches: int | None,
  mask_documents: bool,
) -> held_out.EvalBatches:
  """The batches of what `tokenize` made, in order."""
  tokens = str(folder / "tokens")
  config = data_config.DataConfig(
    kind=data_config.Kind.DATASETS,
    sources=(
      data_config.SourceConfig(name=_SOURCE, path=tokens, eval_path=tokens),
    ),
    tokenizer=str(folder / "tokenizer"),
    mask_documents=mask_documents,
  )

  def make(num_batches: int | None) -> held_out.EvalBatches:
    return pipeline.make_eval(
      config,
      source=_SOURCE,
      seq_len=seq_len,
      batch_size=batch_size,
      num_batches=num_batches,
    )

  batches = make(None)
  if max_batches is None or max_batches >= len(batches):
    return batches
  return make(max_batches)


def without(
  batches: Iterable[batch_lib.Batch], token: int
) -> Iterator[batch_lib.Batch]:
  """The batches, with `token` not scored."""
  for batch in batches:
    weights = np.where(batch["targets"] == token, 0, batch["loss_weights"])
    yield batch | {"loss_weights": weights.astype(np.float32)}


def score(
  model: trained_model.TrainedModel,
  batches: held_out.EvalBatches,
  *,
  unscored: int | None,
) -> Result:
  """The loss over all of `batches`.

  Args:
    model: The model.
    batches: From `open_batches`.
    unscored: A token that is not scored, if any.
  """
  scored = batches if unscored is None else without(batches, unscored)
  with jax.set_mesh(model.mesh):
    eval_step = jax.jit(
      step.make_eval_step(graphdef=model.graphdef, loss=step.LossConfig())
    )
    first = sharding.put_batch(next(iter(batches)), model.mesh)
    start = time.perf_counter()
    compiled = eval_step.lower(model.params, first).compile()
    compile_seconds = time.perf_counter() - start
    start = time.perf_counter()
    loss = evaluate.score(
      model.params,
      tqdm.tqdm(scored, desc="Scoring", unit="batch", total=len(batches)),
      num_bytes=batches.num_bytes,
      eval_step=compiled,
      mesh=model.mesh,
    )
    seconds = time.perf_counter() - start
  return Result(
    loss=loss,
    num_bytes=batches.num_bytes,
    seconds=seconds,
    compile_seconds=compile_seconds,
  )


def main() -> None:
  """Prints the loss that the flags ask for."""
  model = trained_model.load(
    command_line.user_path(_CHECKPOINT.value),
    compute_dtype=_COMPUTE_DTYPE.value,
    tensor=_TENSOR.value,
  )
  _check_sizes(model)
  with tempfile.TemporaryDirectory() as folder:
    made = tokenize(
      [command_line.user_path(path) for path in _INPUT.value],
      pathlib.Path(folder),
      tokenizer=model.tokenizer,
      separator=_SEPARATOR.value,
      options=tokenization.Options(
        format=_FORMAT.value,
        field=_FIELD.value,
        num_workers=os.cpu_count() or 1,
        verify=_VERIFY.value,
      ),
    )
    print(
      f"{made.num_documents:,} documents, {made.num_tokens:,} tokens (an end to"
      f" each document), {made.num_bytes:,} bytes of text"
    )
    batches = open_batches(
      pathlib.Path(folder),
      seq_len=_SEQ_LEN.value,
      batch_size=_BATCH_SIZE.value,
      max_batches=_MAX_BATCHES.value,
      mask_documents=_MASK_DOCUMENTS.value,
    )
    result = score(
      model, batches, unscored=None if _SCORE_ENDS.value else made.eos_id
    )
  loss = result.loss
  rate = loss.num_tokens / result.seconds
  print(
    f"scored: {loss.num_tokens:,} tokens, {result.num_bytes:,.0f} bytes in"
    f" {result.seconds:.1f} s: {rate:,.1f} tokens/s; compiled in"
    f" {result.compile_seconds:.1f} s"
  )
  print(
    f"loss: {loss.nats_per_token:.4f} nats/token (perplexity"
    f" {math.exp(loss.nats_per_token):.3f}), {loss.bits_per_byte:.4f} bits/byte"
  )


def _check_sizes(model: trained_model.TrainedModel) -> None:
  """Refuses rows that the model or the mesh cannot take."""
  if not 0 < _SEQ_LEN.value <= model.config.max_seq_len:
    raise ValueError(
      f"--seq_len={_SEQ_LEN.value} must be from 1 to the model's context of "
      f"{model.config.max_seq_len}."
    )
  shards = sharding.num_batch_shards(model.mesh)
  if _BATCH_SIZE.value < 1 or _BATCH_SIZE.value % shards:
    raise ValueError(
      f"--batch_size={_BATCH_SIZE.value} must be a multiple of {shards}: that "
      "many groups of devices share the rows."
    )


if __name__ == "__main__":
  command_line.run(
    main,
    required=("checkpoint", "input"),
    errors=trained_model.ERRORS,
  )
