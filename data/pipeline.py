"""The batches of a run. The first file of `data` to read.

The rows of all batches are numbered: batch s is rows s * B to (s + 1) * B - 1
of the run. What row g holds is a pure function of the config and g: the blend
says which source gives it and which of its samples, the source's chunks say
which tokens that is. So the whole state is one integer, hosts need not talk to
each other (each makes a block of every batch's rows), and any batch can be made
again.

B global batch size, T sequence length.
"""

import dataclasses

import grain
import numpy as np

from data import batch as batch_lib
from data import blend
from data import catalog
from data import chunk
from data import config as config_lib
from data import held_out

# More batches than any run has; Grain wants a length.
_ENDLESS = 1 << 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """What a row of a batch is made of, for logs and post-mortems."""

  source: str
  epoch: int
  chunk: int
  documents: tuple[chunk.Span, ...]


class Batches:
  """An endless iterator of this host's part of each batch.

  Attributes:
    step: the number of the next batch.
  """

  def __init__(self, rows: "_Rows", *, identity: dict, prefetch: dict):
    self.step = 0
    self._rows = rows
    self._identity = identity
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
    return {"step": self.step, "identity": self._identity}

  def set_state(self, state: dict) -> None:
    """Goes to where an iterator was.

    Raises:
      ValueError: that one gave other batches, by its data, seed or shape.
    """
    theirs = state["identity"]
    for field, value in self._identity.items():
      if theirs.get(field) != value:
        raise ValueError(
          f"the checkpoint's data has {field} {theirs.get(field)}, the config"
          f" gives {value}; restore that setting, or start a new run"
        )
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

  def _start(self) -> grain.DatasetIterator:
    rows = dataclasses.replace(self._rows, first_step=self.step)
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
) -> Batches:
  """The training batches.

  Args:
    config: what to train on; a recipe must be resolved (`data.recipes`).
    seq_len: T.
    global_batch_size: B, rows of a batch over all hosts.
    shard_index: this host.
    shard_count: number of hosts.

  Returns:
    An iterator of dicts of [B / shard_count, T] arrays: tokens, targets,
    positions, segment_ids (int32) and loss_weights (float32). Host h has the
    h-th block of the batch's rows, whatever the number of hosts.

  Raises:
    ValueError: a setting or a dataset is wrong.
  """
  num_rows = _rows_of_shard(
    "global_batch_size", global_batch_size, shard_index, shard_count
  )
  _require_positive("seq_len", seq_len)
  sources = catalog.open_train(config)
  identity = {
    "seed": config.seed,
    "shuffle": config.shuffle,
    "seq_len": seq_len,
    "global_batch_size": global_batch_size,
    "sources": [[s.name, str(s.weight), s.digest] for s in sources],
  }
  rows = _Rows(
    names=[source.name for source in sources],
    blend=blend.Blend([source.weight for source in sources]),
    chunks=[
      chunk.Chunks(
        source.tokens,
        name=source.name,
        seq_len=seq_len,
        seed=config.seed,
        shuffle=config.shuffle,
      )
      for source in sources
    ],
    batch_size=global_batch_size,
    first_row=shard_index * num_rows,
    num_rows=num_rows,
    eos_id=sources[0].eos_id,
    mask_documents=config.mask_documents,
  )
  prefetch = {"workers": config.num_workers, "batches": config.prefetch_batches}
  return Batches(rows, identity=identity, prefetch=prefetch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rows:
  """This host's rows of each batch, by batch number, for Grain.

  A whole batch is one element: its rows are found and read together, and
  Grain's cost for each element (0.3 ms with threads) is paid once a batch.
  """

  names: list[str]
  blend: blend.Blend
  chunks: list[chunk.Chunks]
  batch_size: int
  first_row: int
  num_rows: int
  eos_id: int
  mask_documents: bool
  first_step: int = 0

  def __len__(self) -> int:
    return _ENDLESS

  def __getitem__(self, index: int) -> batch_lib.Batch:
    sources, chunks = self._locate(self.first_step + index)
    rows = [
      self.chunks[source].read(number)
      for source, number in zip(sources, chunks, strict=True)
    ]
    return batch_lib.make(
      np.stack(rows), eos_id=self.eos_id, mask_documents=self.mask_documents
    )

  def locate(self, step: int) -> list[Row]:
    """What each row of batch `step` is made of."""
    return [
      Row(
        source=self.names[source],
        epoch=int(self.chunks[source].epoch(number)),
        chunk=number,
        documents=tuple(self.chunks[source].spans(number)),
      )
      for source, number in zip(*self._locate(step), strict=True)
    ]

  def _locate(self, step: int) -> tuple[list[int], list[int]]:
    """Source and chunk number of each row of batch `step`."""
    first = int(step) * self.batch_size + self.first_row
    sources, samples = self.blend.locate(first + np.arange(self.num_rows))
    chunks = np.empty_like(samples)
    for source in np.unique(sources):
      mine = sources == source
      chunks[mine] = self.chunks[source].draw(samples[mine])
    return sources.tolist(), chunks.tolist()


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
  the last batch is filled up with places of loss weight 0 (segment id 0).

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
  return held_out.EvalBatches(
    catalog.open_eval(config, source),
    seq_len=seq_len,
    batch_size=batch_size,
    num_batches=num_batches,
    first_row=shard_index * num_rows,
    num_rows=num_rows,
    mask_documents=config.mask_documents,
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
