"""A batch of a run as text: where its rows come from, and what they say."""

import collections.abc
import dataclasses

import numpy as np

from data import config as config_lib
from data import pipeline
from data import tokenizer as tokenizer_lib

_MOST_DOCUMENTS = 8


def lines(
  config: config_lib.DataConfig,
  *,
  seq_len: int,
  batch_size: int,
  num_steps: int,
  step: int,
  width: int,
) -> collections.abc.Iterator[str]:
  """Lines about each row of a batch, over all hosts.

  Args:
    config: what the run trains on, resolved.
    seq_len: of the run.
    batch_size: of the run.
    num_steps: of the run.
    step: number of the batch, from 0.
    width: characters of each row's text that are shown; 0: all.

  Raises:
    ValueError: there is no such batch, or a setting is wrong.
  """
  if not 0 <= step < num_steps:
    raise ValueError(
      f"there is no batch {step}: the run has run.steps={num_steps}, so give"
      f" one from 0 to {num_steps - 1}"
    )
  batches = pipeline.make(
    dataclasses.replace(config, prefetch_batches=0, num_workers=0),
    seq_len=seq_len,
    global_batch_size=batch_size,
    num_steps=num_steps,
  )
  batches.set_state(batches.get_state() | {"step": step})
  batch = next(batches)
  batches.close()
  tokenizer = None
  if config.tokenizer:
    tokenizer = tokenizer_lib.Tokenizer.load(config.tokenizer)
  rows, length = batch["tokens"].shape
  yield f"batch {step} (update {step + 1}): {rows} rows of {length} tokens"
  for number, row in enumerate(batches.locate(step)):
    there = batch["segment_ids"][number] > 0
    tokens = batch["tokens"][number][there]
    num_targets = int(batch["loss_weights"][number].sum())
    yield (
      f"row {number}: {row.source}, epoch {row.epoch}, sequence {row.number},"
      f" {len(tokens)} tokens, {num_targets} targets"
    )
    yield "  documents " + _documents(row)
    text = _text(tokens, tokenizer)
    cut = width and len(text) > width
    yield "  " + (text[:width] + "..." if cut else text)


def visible(text: str) -> str:
  """The text in one line, control characters as Python writes them."""
  return "".join(
    character if character.isprintable() else repr(character)[1:-1]
    for character in text
  )


def _documents(row: pipeline.Row) -> str:
  parts = [
    f"{span.document}[{span.start}:{span.stop}]"
    for span in row.documents[:_MOST_DOCUMENTS]
  ]
  left = len(row.documents) - len(parts)
  return ", ".join(parts) + (f" and {left} more" if left else "")


def _text(tokens: np.ndarray, tokenizer: tokenizer_lib.Tokenizer | None) -> str:
  if tokenizer is None:
    return " ".join(map(str, tokens.tolist()))
  return visible(tokenizer.decode(tokens))
