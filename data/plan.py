"""The data of a run, opened and planned: its stages, mixture and sequences.

Also what is kept of it with a checkpoint (the identity), and whether a run that
goes on gives the rows that were given before.
"""

import collections.abc
import dataclasses
import itertools
from typing import Any

from data import catalog
from data import chunk
from data import config as config_lib
from data import conversations
from data import fill_middle
from data import pack
from data import preference
from data import rows as rows_lib
from data import stages as stages_lib
from data import tokenizer as tokenizer_lib
from data import weighted
from data.megatron import mixture as megatron

# Settings that every row depends on.
_FIXED = ("mixture", "seed", "shuffle", "mask_documents", "sequence")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """What every batch of a run is made of.

  Attributes:
    stages: parts of the run, at least one.
    names: of the sources.
    mixture: which source gives each sample.
    sections: for each, its first step and the sequences of all sources.
    rows_per_sample: a sample takes so many neighbouring rows.
    num_steps: how many whole batches there are; None: without end.
    identity: of the data, for `json`.
  """

  stages: list[stages_lib.Stage]
  names: list[str]
  mixture: rows_lib.Mixture
  sections: list[tuple[int, list[rows_lib.Sequences]]]
  rows_per_sample: int
  num_steps: int | None
  identity: dict[str, Any]

  def stage(self, step: int) -> stages_lib.Stage:
    """The stage of a batch."""
    return stages_lib.at(self.stages, step)

  def sequences(self, step: int) -> list[rows_lib.Sequences]:
    """The sequences that a batch takes its samples from, by source."""
    return [found for first, found in self.sections if first <= step][-1]

  def check(self, theirs: dict[str, Any], *, step: int) -> None:
    """Refuses data that differs from what another plan gave.

    Args:
      theirs: identity of the other plan.
      step: its batches before this one were given.

    Raises:
      ValueError: some row of them is another one here.
    """
    mine = self.identity
    for field in _FIXED:
      if theirs.get(field) != mine[field]:
        raise ValueError(
          f"the checkpoint's data has {field} {theirs.get(field)}, the config"
          f" gives {mine[field]}; restore that setting, or start a new run"
        )
    digests = dict(theirs["sources"])
    for name, digest in mine["sources"]:
      if digests.get(name, digest) != digest:
        raise ValueError(
          f"data.sources[{name}] is not what the checkpoint was trained on: its"
          f" files have the fingerprint {digest}, not {digests[name]}; restore"
          " them, or start a new run"
        )
    if theirs["plan"] != mine["plan"] or theirs["sources"] != mine["sources"]:
      _compare(self, theirs, step)


def make(
  config: config_lib.DataConfig,
  *,
  seq_len: int,
  batch_size: int,
  num_steps: int | None,
) -> Plan:
  """Opens the sources and plans the run.

  Args:
    config: what to train on, resolved.
    seq_len: tokens of a row, for stages without their own.
    batch_size: rows of a batch over all hosts, for stages without their own.
    num_steps: batches that the run needs; None: as many as there are.

  Raises:
    ValueError: a setting or a source is wrong, or the data ends before
      num_steps.
  """
  stages = stages_lib.resolve(
    config.stages, seq_len=seq_len, batch_size=batch_size
  )
  if config.mixture == "megatron":
    plan = _make_megatron(config, stages, num_steps)
  else:
    plan = _make_weighted(config, stages)
  _check_enough(config, plan, num_steps or 1)
  return plan


def _make_weighted(
  config: config_lib.DataConfig, stages: list[stages_lib.Stage]
) -> Plan:
  sources = catalog.open_train(config)
  names = [source.name for source in sources]
  if config.sequence.kind == "chunk":
    for source in sources:
      catalog.require_length(source, seq_len=max(s.seq_len for s in stages))
  opened = [sequences(config, source, stages[0].seq_len) for source in sources]
  rows_per_sample = getattr(opened[0], "rows_per_sample", 1)
  _check_pairs(stages, rows_per_sample)
  description = {
    "max_epochs": [source.max_epochs for source in sources],
    "stop": config.on_exhaustion == "stop",
    "stages": [
      {
        "num_steps": stage.num_steps,
        "batch_size": stage.batch_size,
        "seq_len": stage.seq_len,
        "weights": list(stage.weights or [s.weight for s in sources]),
      }
      for stage in stages
    ],
  }
  mixture = _mixture(description, opened, rows_per_sample)
  firsts = [section.first * rows_per_sample for section in mixture.sections]
  return Plan(
    stages=stages,
    names=names,
    mixture=mixture,
    sections=[
      (_step(stages, first), _section(opened, section))
      for first, section in zip(firsts, mixture.sections, strict=True)
    ],
    rows_per_sample=rows_per_sample,
    num_steps=_num_steps(stages, mixture, rows_per_sample),
    identity={
      **_identity(config),
      "sources": [
        [source.name, getattr(of_source, "digest", source.digest)]
        for source, of_source in zip(sources, opened, strict=True)
      ],
      "plan": description,
    },
  )


def _identity(config: config_lib.DataConfig) -> dict[str, Any]:
  return {
    "mixture": config.mixture,
    "seed": config.seed,
    "shuffle": config.shuffle,
    "mask_documents": config.mask_documents,
    "sequence": dataclasses.asdict(config.sequence),
  }


def _mixture(
  description: dict[str, Any],
  sequences: collections.abc.Sequence[rows_lib.Sequences | None],
  rows_per_sample: int,
) -> weighted.Weighted:
  """The mixture that a plan describes; a source that is gone has None."""

  def capacity(source: int, seq_len: int, begin: int) -> int | None:
    epochs = description["max_epochs"][source]
    if not epochs:
      return None
    of_source = sequences[source]
    if of_source is None:
      return None
    if isinstance(of_source, chunk.Chunks):
      of_source = of_source.section(seq_len=seq_len, begin=begin, limit=None)
    return of_source.num_samples(epochs)

  parts = []
  for stage in description["stages"]:
    steps, rows = stage["num_steps"], stage["batch_size"]
    part = weighted.Part(
      num_samples=None if steps is None else steps * rows // rows_per_sample,
      seq_len=stage["seq_len"],
      weights=tuple(stage["weights"]),
    )
    parts.append(part)
  return weighted.Weighted(parts, capacity=capacity, stop=description["stop"])


def _section(
  sequences: collections.abc.Sequence[rows_lib.Sequences | None],
  section: weighted.Section,
) -> list[Any]:
  """The sources' sequences in a section."""
  limits = section.limits or [None] * len(sequences)
  return [
    of_source.section(seq_len=section.seq_len, begin=begin, limit=limit)
    if isinstance(of_source, chunk.Chunks)
    else of_source
    for of_source, begin, limit in zip(
      sequences, section.begins, limits, strict=True
    )
  ]


def sequences(
  config: config_lib.DataConfig, source: catalog.Source, seq_len: int
) -> rows_lib.Sequences:
  """The samples of a source, as data.sequence says."""
  shared: dict[str, Any] = {
    "name": source.name,
    "seq_len": seq_len,
    "seed": config.seed,
    "shuffle": config.shuffle,
  }
  kind = config.sequence.kind
  if kind in ("chunk", "pack"):
    tokens = source.tokens
    if config.sequence.fim_rate:
      tokenizer = tokenizer_lib.Tokenizer.load(config.tokenizer)
      tokens = fill_middle.FillMiddle(
        tokens,
        name=source.name,
        seed=config.seed,
        config=config.sequence,
        sentinels=fill_middle.sentinels(tokenizer),
        eos_id=source.eos_id,
      )
    if kind == "chunk":
      return chunk.Chunks(tokens, **shared)
    return pack.Packs(tokens, **shared, config=config.sequence)
  assert source.records is not None
  make_sequences = conversations.Chats if kind == "chat" else preference.Pairs
  return make_sequences(
    source.records,
    tokenizer=tokenizer_lib.Tokenizer.load(config.tokenizer),
    tokenizer_folder=config.tokenizer,
    field=config.source(source.name).field,
    config=config.sequence,
    **shared,
  )


def _make_megatron(
  config: config_lib.DataConfig,
  stages: list[stages_lib.Stage],
  num_steps: int | None,
) -> Plan:
  if num_steps is None:
    raise ValueError(
      "data.mixture is megatron, whose order depends on the number of rows that"
      " the run takes; give num_steps"
    )
  (stage,) = stages
  opened = megatron.open_train(
    config, seq_len=stage.seq_len, num_rows=num_steps * stage.batch_size
  )
  shape = {"batch_size": stage.batch_size, "seq_len": stage.seq_len}
  return Plan(
    stages=stages,
    names=opened.names,
    mixture=opened.mixture,
    sections=[(0, opened.sequences)],
    rows_per_sample=1,
    num_steps=_num_steps(stages, opened.mixture, 1),
    identity={
      **_identity(config),
      "sources": [
        list(pair)
        for pair in zip(opened.names, opened.fingerprints, strict=True)
      ],
      "plan": {
        "digest": opened.digest,
        "stages": [{"num_steps": None, **shape}],
      },
    },
  )


def _check_pairs(
  stages: collections.abc.Sequence[stages_lib.Stage], rows_per_sample: int
) -> None:
  for stage in stages:
    if stage.batch_size % rows_per_sample:
      raise ValueError(
        f"the batch size is {stage.batch_size}, but a sample takes"
        f" {rows_per_sample} rows; make it a multiple of {rows_per_sample}"
      )


def _num_steps(
  stages: list[stages_lib.Stage],
  mixture: rows_lib.Mixture,
  rows_per_sample: int,
) -> int | None:
  """Whole batches of a mixture."""
  if mixture.num_rows is None:
    return None
  return _step(stages, mixture.num_rows * rows_per_sample)


def _step(stages: list[stages_lib.Stage], row: int) -> int:
  """The batch that a row is in."""
  stage = [stage for stage in stages if stage.first_row <= row][-1]
  return stage.first_step + (row - stage.first_row) // stage.batch_size


def _check_enough(
  config: config_lib.DataConfig, plan: Plan, num_steps: int
) -> None:
  if plan.num_steps is None or num_steps <= plan.num_steps:
    return
  ended_by = getattr(plan.mixture, "ended_by", None)
  reason = "the last of data.stages has no more tokens"
  fix = "set its tokens to 0 (as long as the run)"
  if config.mixture == "megatron":
    reason = "Megatron reads each source once when it blends by length"
    fix = "set data.megatron.blend to 'weights'"
  if ended_by is not None:
    name = plan.names[ended_by]
    reason = (
      f"data.sources[{name}] has been read max_epochs="
      f"{config.source(name).max_epochs:g} times"
    )
    fix = f"raise data.sources[{name}].max_epochs"
    if config.on_exhaustion == "stop" and len(plan.names) > 1:
      fix += ", set data.on_exhaustion to 'renormalize'"
  if plan.num_steps:
    fix += f", or set run.steps to {plan.num_steps}"
  steps = "step" if num_steps == 1 else "steps"
  raise ValueError(
    f"the run needs {num_steps} {steps}, but the data ends after step"
    f" {plan.num_steps}: {reason}; {fix}"
  )


def _compare(plan: Plan, theirs: dict[str, Any], step: int) -> None:
  """Refuses a plan that gives other rows before `step` than another one."""
  keep = (
    f"before step {step}: keep the settings as they were up to there (what"
    " changes belongs in a new one of data.stages), or start a new run"
  )
  # The shapes of the batches.
  mine, other = plan.identity["plan"]["stages"], theirs["plan"]["stages"]
  first: float = 0
  while first < step:
    (end, shape), (other_end, other_shape) = (
      _shape(stages, first) for stages in (mine, other)
    )
    for field in shape:
      if shape[field] != other_shape[field]:
        raise ValueError(
          f"the checkpoint's data has {field} {other_shape[field]} at step"
          f" {first}, the config gives {shape[field]}, {keep}"
        )
    first = min(end, other_end)
  if plan.identity["mixture"] == "megatron":
    if step and theirs["plan"]["digest"] != plan.identity["plan"]["digest"]:
      raise ValueError(
        "the checkpoint's data has other samples of Megatron's than the config"
        " gives; weights, sources, data.megatron and the epochs of each source,"
        " by run.steps, decide them: restore these, or start a new run"
      )
    return

  assert isinstance(plan.mixture, weighted.Weighted)
  # Who gives the rows. All sources that are in one of the two are numbered.
  names = list(plan.names)
  names += [name for name, _ in theirs["sources"] if name not in names]
  their_names = [name for name, _ in theirs["sources"]]
  sections = dict(plan.sections)[0]
  their_sequences = [
    sections[plan.names.index(name)] if name in plan.names else None
    for name in their_names
  ]
  each = plan.rows_per_sample
  their_mixture = _mixture(theirs["plan"], their_sequences, each)
  num_samples = stages_lib.num_rows(plan.stages, step) // each
  deals = plan.mixture.deals(num_samples)
  their_deals = their_mixture.deals(num_samples)
  pairs = itertools.zip_longest(
    _named(deals, plan.names), _named(their_deals, their_names)
  )
  for deal, their_deal in pairs:
    if deal != their_deal:
      shown = [
        "nothing" if d is None else f"{d[1]} from row {d[0] * each} on"
        for d in (their_deal, deal)
      ]
      raise ValueError(
        f"the checkpoint's data has the weights {shown[0]}, the config gives"
        f" {shown[1]} (data.sources, data.stages, max_epochs), {keep}"
      )

  # Which of the sources' samples: the order of a section that has an end is of
  # its own.
  given = plan.mixture.given(num_samples)
  for counts, section, other_section in zip(
    given, plan.mixture.sections, their_mixture.sections, strict=False
  ):
    for source, count in enumerate(counts):
      if not count or not isinstance(sections[source], chunk.Chunks):
        continue
      index = their_names.index(plan.names[source])
      orders = [
        part[place].domain(count - 1)
        for part, place in (
          (_section(sections, section), source),
          (_section(their_sequences, other_section), index),
        )
      ]
      if orders[0] != orders[1]:
        raise ValueError(
          f"the checkpoint's data has another order of"
          f" data.sources[{plan.names[source]}], as data.stages then did not go"
          " on with another seq_len where it does now: that changes the epoch"
          f" that was begun, {keep}"
        )


def _shape(stages: list[dict], step: float) -> tuple[float, dict[str, int]]:
  """Where the stage of a batch ends, and the shape of its batches."""
  end = 0.0
  for stage in stages:
    end += float("inf") if stage["num_steps"] is None else stage["num_steps"]
    if step < end or stage is stages[-1]:
      shape = {
        "global_batch_size": stage["batch_size"],
        "seq_len": stage["seq_len"],
      }
      return (end if step < end else float("inf")), shape
  raise AssertionError("a plan has a stage")


def _named(
  deals: list[tuple[int, dict[int, int]]], names: list[str]
) -> list[tuple[int, list[tuple[str, int]]]]:
  return [
    (first, [(names[source], count) for source, count in counts.items()])
    for first, counts in deals
  ]
