"""Megatron's samples as a mixture: opens what a config names.

What Megatron-LM would train on with the same files, weights, split, seed,
sequence length and number of samples, sample for sample.
"""

import collections.abc
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib

from jaxtyping import Int
import numpy as np

from data import config as config_lib
from data import indexed
from data import rows as rows_lib
from data import tokenizer as tokenizer_lib
from data.megatron import blend as blend_lib
from data.megatron import blended
from data.megatron import cache
from data.megatron import index as index_lib
from data.megatron import sequences as sequences_lib
from data.megatron import split as split_lib
from data.sources import formats
from data.sources import megatron as megatron_source
from data.sources import storage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
  """Which source gives each row; see `rows.Mixture`."""

  split: blended.Blended

  @property
  def num_rows(self) -> int:
    return self.split.size

  def locate(
    self, rows: Int[np.ndarray, "N"]
  ) -> tuple[Int[np.ndarray, "N"], Int[np.ndarray, "N"]]:
    """Source of each row, and how many samples it gave before."""
    return self.split.locate(rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
  """A split, ready to be read.

  Attributes:
    mixture: which source gives each row.
    sequences: the samples of each source.
    names: of the sources.
    fingerprints: of the sources' files.
    digest: changes when any sample does.
    eos_id: of the tokenizer.
  """

  mixture: Mixture
  sequences: list[rows_lib.Sequences]
  names: list[str]
  fingerprints: list[str]
  digest: str
  eos_id: int

  def share(self, name: str) -> "Share":
    """The samples that a source gives of the split.

    So a held-out split is scored source by source.
    """
    source, split = self.names.index(name), self.mixture.split
    counts = [split.size]
    if split.blend is not None:
      counts = split.blend.counts_before(split.size).tolist()
    return Share(sequences=self.sequences[source], size=counts[source])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
  """The first samples of a source; see `rows.Sequences`.

  Attributes:
    sequences: all its samples.
    size: how many of them; they count as one epoch.
  """

  sequences: rows_lib.Sequences
  size: int

  def fill(
    self,
    samples: Int[np.ndarray, "N"],
    rows: rows_lib.Rows,
    places: Int[np.ndarray, "N"],
  ) -> None:
    """Writes samples into rows."""
    self.sequences.fill(samples, rows, places)

  def describe(self, sample: int) -> rows_lib.Sample:
    """What a sample is made of."""
    return self.sequences.describe(sample)

  def num_samples(self, epochs: float) -> int:
    """How many samples so many epochs give."""
    return int(epochs * self.size)


def open_train(
  config: config_lib.DataConfig, *, seq_len: int, num_rows: int
) -> Opened:
  """The training split.

  Args:
    config: with the mixture `megatron`.
    seq_len: Megatron's --seq-length.
    num_rows: its number of training samples: steps times batch size. Megatron's
      order depends on it, by the number of epochs it takes of each source.

  Raises:
    ValueError: a setting is wrong; a file is missing, damaged or has tokens
      that the tokenizer has not; a source is too short.
  """
  return _open(
    config,
    [(source.name, source.path, source.weight) for source in config.sources],
    split=split_lib.Split.TRAIN,
    book_ends=split_lib.parse(config.megatron.split)[0],
    seq_len=seq_len,
    num_rows=num_rows,
  )


def open_eval(config: config_lib.DataConfig, *, seq_len: int) -> Opened:
  """The validation split, of data.megatron.eval_samples.

  Sources with an `eval_path` give that one whole (--valid-data-path of
  Megatron); if none has one, all give their share of data.megatron.split.

  Args:
    config: with the mixture `megatron`.
    seq_len: Megatron's --seq-length.

  Raises:
    ValueError: as `open_train`, or there is no validation split.
  """
  if not config.megatron.eval_samples:
    raise ValueError(
      "data.megatron.eval_samples is 0; give the number of samples that"
      " Megatron was asked for, (train_iters // eval_interval + 1) * eval_iters"
      " * global_batch_size"
    )
  own = [
    (source.name, source.eval_path, source.weight)
    for source in config.sources
    if source.eval_path
  ]
  book_ends: tuple[float, float] | None = split_lib.EVERYTHING
  if not own:
    own = [
      (source.name, source.path, source.weight) for source in config.sources
    ]
    book_ends = split_lib.parse(config.megatron.split)[1]
  return _open(
    config,
    own,
    split=split_lib.Split.VALID,
    book_ends=book_ends,
    seq_len=seq_len,
    num_rows=config.megatron.eval_samples,
  )


def _open(
  config: config_lib.DataConfig,
  sources: collections.abc.Sequence[tuple[str, str, float]],
  *,
  split: split_lib.Split,
  book_ends: tuple[float, float] | None,
  seq_len: int,
  num_rows: int,
) -> Opened:
  settings = config.megatron
  _require(config, seq_len=seq_len, num_rows=num_rows)
  if book_ends is None:
    raise ValueError(
      f"data.megatron.split is {settings.split!r}, which leaves nothing for"
      f" {split.name.lower()}; give it a share above 0"
    )
  options = blended.Options(
    seq_len=seq_len,
    seed=config.seed,
    split=split,
    extra=int(settings.add_extra_token),
    surplus=settings.surplus,
    rounding=settings.rounding,
  )
  by_length = settings.blend == "lengths"
  request = blended.Request(
    weights=None if by_length else [weight for _, _, weight in sources],
    size=num_rows,
  )
  tokenizer = tokenizer_lib.Tokenizer.load(config.tokenizer)
  folder = storage.local_path(settings.cache) if settings.cache else None
  shares = blended.shares(
    request, num_sources=len(sources), surplus=settings.surplus
  )
  names = [f"data.sources[{name}]" for name, _, _ in sources]
  corpora, indices, described = [], [], []
  for (name, path, _), asked in zip(sources, shares.asked, strict=True):
    with _errors_of(name, path):
      corpus = _corpus(path, vocab_size=tokenizer.vocab_size)
      index, key = _index(corpus, asked, book_ends, options, folder)
    corpora.append(corpus)
    indices.append(index)
    described.append(key)
  made = blended.combine(indices, request, names=names, options=options)
  blend = made.blend
  if blend is not None and folder is not None:
    key = ["counts", made.size, _blend_key(made, settings.rounding)]
    kept = cache.arrays(folder, key, lambda: {"counts": blend.counts()})
    blend.know(kept["counts"])
  content = json.dumps([described, _blend_key(made, settings.rounding)])
  return Opened(
    mixture=Mixture(split=made),
    sequences=[
      sequences_lib.IndexSequences(index, corpus, name=name)
      for index, corpus, (name, _, _) in zip(
        indices, corpora, sources, strict=True
      )
    ],
    names=[name for name, _, _ in sources],
    fingerprints=[corpus.fingerprint for corpus in corpora],
    digest=hashlib.sha256(content.encode()).hexdigest(),
    eos_id=tokenizer.eos_id,
  )


def _require(
  config: config_lib.DataConfig, *, seq_len: int, num_rows: int
) -> None:
  if config.seed >= 1 << 32:
    raise ValueError(
      f"data.seed is {config.seed}, but data.mixture is megatron, whose seeds"
      " are below 2**32"
    )
  for field, value in (("seq_len", seq_len), ("num_rows", num_rows)):
    if value < 1:
      raise ValueError(f"{field} is {value}; it must be 1 or more")
  if seq_len >= 1 << 31:
    raise ValueError(f"seq_len is {seq_len}; it must be below 2**31")


def _corpus(path: str, *, vocab_size: int) -> indexed.Indexed:
  """The files of a source, all tokens checked."""
  prefix = formats.megatron_prefix(path)
  # Refuses files without tokens and tokens beyond the vocabulary.
  megatron_source.MegatronSource(prefix, vocab_size=vocab_size)
  return indexed.Indexed(prefix)


def _index(
  corpus: indexed.Indexed,
  asked: int | None,
  book_ends: tuple[float, float],
  options: blended.Options,
  folder: pathlib.Path | None,
) -> tuple[index_lib.Index, list]:
  """The index of a source, and all that decides it."""
  lengths = corpus.sequence_lengths
  bounds = split_lib.bounds(book_ends, len(lengths))
  num_tokens = int(lengths[bounds[0] : bounds[1]].sum(dtype=np.int64))
  if num_tokens < options.seq_len + options.extra:
    raise ValueError(
      f"its {options.split.name.lower()} split has {num_tokens} tokens in"
      f" {bounds[1] - bounds[0]} sequences, fewer than the"
      f" {options.seq_len + options.extra} of a sample; make seq_len smaller,"
      " give the split a larger share (data.megatron.split), or leave the"
      " source out"
    )
  plan = index_lib.plan(
    num_tokens=num_tokens,
    seq_len=options.seq_len,
    num_samples=asked,
    extra=options.extra,
  )
  _check_memory(plan, num_sequences=bounds[1] - bounds[0])
  key = [
    "index",
    corpus.fingerprint,
    bounds,
    options.seed,
    dataclasses.asdict(plan),
  ]

  def make() -> dict[str, np.ndarray]:
    made = blended.build_source(
      lengths, asked, book_ends=book_ends, name=corpus.prefix, options=options
    )
    return {
      "documents": made.documents,
      "starts": made.starts,
      "shuffle": made.shuffle,
    }

  return index_lib.Index(plan=plan, **cache.arrays(folder, key, make)), key


def _check_memory(plan: index_lib.Plan, *, num_sequences: int) -> None:
  """Refuses an index that this machine could not make.

  Megatron would go on until it is killed.
  """
  needed = 20 * plan.num_epochs * num_sequences + 8 * plan.num_samples
  there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  if needed > there:
    raise ValueError(
      f"its {plan.num_samples} samples take {plan.num_epochs} epochs of"
      f" {plan.num_tokens} tokens, and {needed >> 30} GiB of memory to be"
      f" indexed ({there >> 30} GiB are there); make its weight smaller, or"
      " train for fewer steps"
    )


def _blend_key(made: blended.Blended, rounding: blend_lib.Rounding) -> list:
  """All that decides the order of a blend up to its end."""
  if made.weights is None:
    return ["one"]
  weights = [weight.hex() for weight in made.weights]
  return [rounding, weights, made.limits]


@contextlib.contextmanager
def _errors_of(name: str, path: str):
  """Says of which source an error is."""
  try:
    yield
  except ValueError as error:
    raise ValueError(f"data.sources[{name}] ({path}): {error}") from error
