"""What there is of each source of a run, before it starts."""

import collections.abc
import dataclasses

from data import catalog
from data import config as config_lib
from data import forecast_counts
from data import plan as plan_lib
from data.megatron import mixture as megatron
from data.sources import formats


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """What there is of a source.

  Attributes:
    name: its own.
    format: of its files.
    num_documents: to train on; rows of the files if they are conversations,
      sequences if they are Megatron's.
    num_tokens: of an epoch, as they come in sequences.
    num_bytes: UTF-8 text of it; None: not known.
    num_cut: documents that are cut, being too long.
    num_dropped: documents that are left out, being too long.
    num_untrainable: documents or rows that are left out, having no target.
    held_out_documents: kept for evaluation; None: there is no held-out part.
    held_out_tokens: of these; None: not known, of conversations.
  """

  name: str
  format: str
  num_documents: int
  num_tokens: int
  num_bytes: int | None
  num_cut: int
  num_dropped: int
  num_untrainable: int
  held_out_documents: int | None
  held_out_tokens: int | None


def describe(
  config: config_lib.DataConfig,
  plan: plan_lib.Plan,
  counters: collections.abc.Sequence[forecast_counts.Counter],
) -> list[Source]:
  """The sources, in their order.

  Args:
    config: of the run, resolved.
    plan: of the run.
    counters: of the sources.

  Raises:
    ValueError: a held-out part cannot be read.
  """
  opened: list[catalog.Source | None] = [None] * len(plan.names)
  if not isinstance(plan.mixture, megatron.Mixture):
    opened = list(catalog.open_train(config))
  sequences = plan.sequences(0)
  described = []
  for index, (name, source) in enumerate(zip(plan.names, opened, strict=True)):
    summary = getattr(sequences[index], "summary", None)
    held_out_documents, held_out_tokens = _held_out(config, name)
    found = Source(
      name=name,
      format=_format(config, name),
      num_documents=_num_documents(plan, index, source),
      num_tokens=counters[index].tokens_of_epoch,
      num_bytes=(source.num_bytes or None) if source else None,
      num_cut=summary.num_cut if summary else 0,
      num_dropped=summary.num_dropped if summary else 0,
      num_untrainable=summary.num_untrainable if summary else 0,
      held_out_documents=held_out_documents,
      held_out_tokens=held_out_tokens,
    )
    described.append(found)
  return described


def _num_documents(
  plan: plan_lib.Plan, index: int, source: catalog.Source | None
) -> int:
  if source is None:
    assert isinstance(plan.mixture, megatron.Mixture)
    made = plan.mixture.split.indices[index]
    return len(made.documents) // made.plan.num_epochs
  if source.records is not None:
    return len(source.records)
  return len(source.tokens.document_lengths)


def _format(config: config_lib.DataConfig, name: str) -> str:
  if not config.sources:
    return "synthetic"
  source = config.source(name)
  if source.format == "auto":
    return formats.detect(source.path)
  return source.format


def _held_out(
  config: config_lib.DataConfig, name: str
) -> tuple[int | None, int | None]:
  """Documents and tokens of the held-out part."""
  if name not in catalog.eval_sources(config):
    return None, None
  if config.megatron.eval_samples:
    return None, None  # Samples of a split: megatron/mixture.py
  source = catalog.open_eval(config, name)
  if source.records is not None:
    return len(source.records), None
  lengths = source.tokens.document_lengths
  return len(lengths), int(source.tokens.num_tokens)
