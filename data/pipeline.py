"""The batches of a run. The first file of `data` to read.

The rows of all batches are numbered. What row g holds is a pure function of the
config and g: the mixture says which source gives it and which of its samples,
the source's sequences say which tokens that is. So the whole state is one
integer, hosts need not talk to each other (each makes a block of every batch's
rows), and any batch can be made again.

B global batch size, T sequence length.
"""

import dataclasses
from typing import Any

import grain
import numpy as np

from data import batch as batch_lib
from data import buffers
from data import catalog
from data import config as config_lib
from data import held_out
from data import plan as plan_lib
from data import rows as rows_lib
from data import tokenizer as tokenizer_lib
from data.megatron import mixture as megatron

# More batches than any run has; Grain wants a length.
_ENDLESS = 1 << 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """What a row of a batch is made of, for logs and post-mortems.

  Attributes:
    source: its name.
    epoch: of the source, in which the row begins.
    number: which sequence of the source it is.
    documents: the pieces of documents, in order.
  """

  source: str
  epoch: int
  number: int
  documents: tuple[rows_lib.Span, ...]


class Batches:
  """An iterator of this host's part of each batch.

  Attributes:
    step: the number of the next batch.
    num_steps: how many batches there are; None: without end.
  """

  def __init__(
    self, *, plan: plan_lib.Plan, rows: "_Rows", prefetch: dict[str, int]
  ):
    self.step = 0
    self.num_steps = plan.num_steps
    self._plan = plan
    self._rows = rows
    self._prefetch = prefetch
    self._iterator = None

  def __iter__(self) -> "Batches":
    return self

  def __next__(self) -> batch_lib.Batch:
    if self._iterator is None:
      self._iterator = self._start()
    batch = next(self._iterator)
    self.step += 1
    return batch

  def get_state(self) -> dict:
    """Where the iterator is, for `json`; the same on every host."""
    return {"step": self.step, "identity": self._plan.identity}

  def set_state(self, state: dict) -> None:
    """Goes to where an iterator was.

    What is to come may be planned otherwise by now (weights, stages, sources);
    what was given before must be the same.

    Raises:
      ValueError: that one gave other batches, by its data, seed or shape.
    """
    self._plan.check(state["identity"], step=state["step"])
    self.close()
    self.step = state["step"]

  def locate(self, step: int) -> list[Row]:
    """What this host's rows of batch `step` are made of."""
    return self._rows.locate(step)

  def close(self) -> None:
    """Stops the threads and processes that prefetch."""
    if self._iterator is not None:
      self._iterator.close()
      self._iterator = None

  def _start(self) -> Any:
    rows = dataclasses.replace(self._rows, first_step=self.step)
    if not len(rows):
      return (batch for batch in ())
    dataset = grain.MapDataset.source(rows)
    workers, ahead = self._prefetch["workers"], self._prefetch["batches"]
    if not workers:
      threads = 1 if ahead else 0
      return iter(dataset.to_iter_dataset(grain.ReadOptions(threads, ahead)))
    options = grain.MultiprocessingOptions(
      num_workers=workers, per_worker_buffer_size=max(1, ahead // workers)
    )
    in_process = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return iter(dataset.to_iter_dataset(in_process).mp_prefetch(options))


def make(
  config: config_lib.DataConfig,
  *,
  seq_len: int,
  global_batch_size: int,
  shard_index: int = 0,
  shard_count: int = 1,
  num_steps: int | None = None,
) -> Batches:
  """The training batches.

  Args:
    config: what to train on; a recipe must be resolved (`data.recipes`).
    seq_len: T, for stages without their own.
    global_batch_size: B, rows of a batch over all hosts; for stages without
      their own.
    shard_index: this host.
    shard_count: number of hosts.
    num_steps: batches that the run needs; None: as many as there are.

  Returns:
    An iterator of dicts of [B / shard_count, T] arrays: tokens, targets,
    positions, segment_ids (int32) and loss_weights (float32). Host h has the
    h-th block of the batch's rows, whatever the number of hosts.

  Raises:
    ValueError: a setting or a source is wrong, or the data ends before
      num_steps.
  """
  _require_positive("seq_len", seq_len)
  _rows_of_shard(
    "global_batch_size", global_batch_size, shard_index, shard_count
  )
  if num_steps is not None:
    _require_positive("num_steps", num_steps)
  plan = plan_lib.make(
    config, seq_len=seq_len, batch_size=global_batch_size, num_steps=num_steps
  )
  for number, stage in enumerate(plan.stages):
    size = f"data.stages[{number}].batch_size"
    if stage.batch_size == global_batch_size:
      size = "global_batch_size"
    _rows_of_shard(size, stage.batch_size, shard_index, shard_count)
    rows_of_host = stage.batch_size // shard_count
    if rows_of_host % plan.rows_per_sample:
      raise ValueError(
        f"{size} is {stage.batch_size}, {rows_of_host} rows for each of"
        f" {shard_count} hosts; a pair takes {plan.rows_per_sample} of them, so"
        f" make it a multiple of {plan.rows_per_sample * shard_count}"
      )
  rows = _Rows(
    plan=plan,
    shard_index=shard_index,
    shard_count=shard_count,
    mask_documents=config.mask_documents,
  )
  prefetch = {"workers": config.num_workers, "batches": config.prefetch_batches}
  return Batches(plan=plan, rows=rows, prefetch=prefetch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rows:
  """This host's rows of each batch, by batch number, for Grain.

  A whole batch is one element: its rows are found and read together, and
  Grain's cost for each element (0.3 ms with threads) is paid once a batch.
  """

  plan: plan_lib.Plan
  shard_index: int
  shard_count: int
  mask_documents: bool
  first_step: int = 0
  memory: buffers.Buffers = dataclasses.field(default_factory=buffers.Buffers)

  def __len__(self) -> int:
    if self.plan.num_steps is None:
      return _ENDLESS
    return max(0, self.plan.num_steps - self.first_step)

  def __getitem__(self, index: int) -> batch_lib.Batch:
    step = self.first_step + int(index)
    stage = self.plan.stage(step)
    num_rows = stage.batch_size // self.shard_count
    rows = rows_lib.empty(num_rows, stage.seq_len, self.memory)
    sequences, sources, samples = self._locate(step)
    for source in np.unique(sources).tolist():
      mine = np.flatnonzero(sources == source)
      places = mine * self.plan.rows_per_sample
      sequences[source].fill(samples[mine], rows, places)
    return batch_lib.make(
      rows, mask_documents=self.mask_documents, memory=self.memory
    )

  def locate(self, step: int) -> list[Row]:
    """What each row of batch `step` is made of."""
    sequences, sources, samples = self._locate(step)
    located = []
    for source, number in zip(sources.tolist(), samples.tolist(), strict=True):
      sample = sequences[source].describe(number)
      row = Row(
        source=self.plan.names[source],
        epoch=sample.epoch,
        number=sample.number,
        documents=sample.documents,
      )
      located += [row] * self.plan.rows_per_sample
    return located

  def _locate(
    self, step: int
  ) -> tuple[list[rows_lib.Sequences], np.ndarray, np.ndarray]:
    """The sources' sequences; source and sample of each sample of the batch."""
    stage, each = self.plan.stage(step), self.plan.rows_per_sample
    count = stage.batch_size // self.shard_count // each
    first = stage.row(step) // each + self.shard_index * count
    sources, samples = self.plan.mixture.locate(first + np.arange(count))
    return self.plan.sequences(step), sources, samples


def make_eval(
  config: config_lib.DataConfig,
  *,
  source: str,
  seq_len: int,
  batch_size: int,
  num_batches: int | None = None,
  shard_index: int = 0,
  shard_count: int = 1,
) -> held_out.EvalBatches:
  """A pass over the held-out split of a source, in order.

  Every token is a target exactly once: the first is predicted from an eos, and
  the last batch is filled up with places of loss weight 0 (segment id 0). Of
  conversations and pairs, what is a target in training is one here. Of
  `data.megatron.eval_samples`, those of the source are given.

  Args:
    config: as for `make`.
    source: its name.
    seq_len: T.
    batch_size: rows of a batch over all hosts.
    num_batches: how many to give; None for the whole split.
    shard_index: this host.
    shard_count: number of hosts; all get equally many batches.

  Raises:
    ValueError: a setting or a dataset is wrong.
  """
  num_rows = _rows_of_shard("batch_size", batch_size, shard_index, shard_count)
  _require_positive("seq_len", seq_len)
  if num_batches is not None:
    _require_positive("num_batches", num_batches)
  shape: dict[str, Any] = {
    "seq_len": seq_len,
    "batch_size": batch_size,
    "num_batches": num_batches,
    "first_row": shard_index * num_rows,
    "num_rows": num_rows,
    "mask_documents": config.mask_documents,
  }
  if config.megatron.eval_samples:
    return _validation(config, source, shape)
  opened = catalog.open_eval(config, source)
  if opened.records is None:
    return held_out.TokenBatches(opened, **shape)
  in_order = dataclasses.replace(config, shuffle=False)
  sequences = plan_lib.sequences(in_order, opened, seq_len)
  each = getattr(sequences, "rows_per_sample", 1)
  if num_rows % each:
    raise ValueError(
      f"batch_size is {batch_size}, {num_rows} rows for each of {shard_count}"
      f" hosts; a pair takes {each} of them, so make it a multiple of"
      f" {each * shard_count}"
    )
  return held_out.SampleBatches(
    sequences,
    name=source,
    tokenizer=tokenizer_lib.Tokenizer.load(config.tokenizer),
    **shape,
  )


def _validation(
  config: config_lib.DataConfig, source: str, shape: dict[str, Any]
) -> held_out.SampleBatches:
  """A source's samples of Megatron's validation split."""
  opened = megatron.open_eval(config, seq_len=shape["seq_len"])
  if source not in opened.names:
    raise ValueError(
      f"data.sources[{source}] has no validation split; it is there for"
      f" {', '.join(opened.names)}"
    )
  share = opened.share(source)
  if not share.size:
    raise ValueError(
      f"data.megatron.eval_samples is {config.megatron.eval_samples}, of which"
      f" data.sources[{source}] gives none; ask for more"
    )
  return held_out.SampleBatches(
    share,
    name=source,
    tokenizer=tokenizer_lib.Tokenizer.load(config.tokenizer),
    **shape,
  )


def _rows_of_shard(field: str, size: int, index: int, count: int) -> int:
  _require_positive(field, size)
  _require_positive("shard_count", count)
  if not 0 <= index < count:
    raise ValueError(f"shard_index is {index}; it must be in [0, {count})")
  if size % count:
    raise ValueError(
      f"{field} is {size}, which {count} hosts cannot share evenly; make it a"
      f" multiple of {count}"
    )
  return size // count


def _require_positive(field: str, value: int) -> None:
  if value < 1:
    raise ValueError(f"{field} is {value}; it must be 1 or more")
