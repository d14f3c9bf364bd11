"""A forecast as text: sources, stages, shares and warnings, in tables."""

import collections.abc
import fractions

from data import forecast as forecast_lib
from data import forecast_shares
from data import forecast_sources

# Numbers from here on are rounded; a fraction of more characters is not shown.
_LARGE = 1_000_000
_UNITS = "kMBTPE"
_LONG_FRACTION = 9
_NONE = "-"


def lines(
  forecast: forecast_lib.Forecast,
) -> collections.abc.Iterator[str]:
  """The tables of a forecast, line by line."""
  yield (
    f"{_plural(forecast.num_steps, 'step')}"
    f" (asked: {forecast.steps_asked}), {number(forecast.num_tokens)} tokens"
    f" in rows, {_plural(len(forecast.sources), 'source')}"
  )
  yield ""
  yield from _sources(forecast.sources)
  yield ""
  yield from _stages(forecast.stages)
  if len(forecast.stages) > 1:
    for index, stage in enumerate(forecast.stages):
      yield ""
      yield from _shares(f"stage {index}", stage.shares, exact=True)
  yield ""
  # The average of several stages is not what somebody wrote.
  exact = len(forecast.stages) == 1
  yield from _shares("whole run", forecast.total, exact=exact)
  yield ""
  if any(share.targets_are_estimate for share in forecast.total):
    yield "~ is an estimate: there is too much to count."
    yield ""
  if not forecast.warnings:
    yield "No warnings."
    return
  yield f"{_plural(len(forecast.warnings), 'warning')}:"
  for warning in forecast.warnings:
    yield f"- {warning}"


def number(value: int) -> str:
  """A count as people read it: whole below a million, then four digits."""
  if value < _LARGE:
    return f"{value:,}"
  power = 1
  while value >= 999.5 * 1000**power and power < len(_UNITS):
    power += 1
  scaled = value / 1000**power
  digits = max(0, 3 - len(str(int(scaled))))
  return f"{scaled:.{digits}f}{_UNITS[power - 1]}"


def table(
  rows: collections.abc.Sequence[collections.abc.Sequence[str]],
) -> collections.abc.Iterator[str]:
  """Lines of a table: the first column to the left, the others to the right.

  Args:
    rows: the first one names the columns.
  """
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  for index, row in enumerate(rows):
    cells = [
      cell.rjust(width) if place else cell.ljust(width)
      for place, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    yield "  ".join(cells).rstrip()
    if not index:
      yield "  ".join("-" * width for width in widths)


def _sources(
  sources: list[forecast_sources.Source],
) -> collections.abc.Iterator[str]:
  rows = [
    [
      "source",
      "format",
      "documents",
      "tokens",
      "text bytes",
      "held-out docs",
      "held-out tokens",
      "cut",
      "dropped",
      "untrainable",
    ]
  ]
  for source in sources:
    rows.append(
      [
        source.name,
        source.format,
        number(source.num_documents),
        number(source.num_tokens),
        _known(source.num_bytes),
        _known(source.held_out_documents),
        _known(source.held_out_tokens),
        number(source.num_cut),
        number(source.num_dropped),
        number(source.num_untrainable),
      ]
    )
  yield from table(rows)


def _stages(
  stages: list[forecast_shares.Stage],
) -> collections.abc.Iterator[str]:
  rows = [
    ["stage", "first step", "steps", "tokens", "seq_len", "batch", "padding"]
  ]
  for index, stage in enumerate(stages):
    padding = sum(share.num_padding for share in stage.shares)
    is_estimate = any(share.targets_are_estimate for share in stage.shares)
    rows.append(
      [
        str(index),
        f"{stage.first_step:,}",
        f"{stage.num_steps:,}",
        number(stage.num_tokens),
        f"{stage.seq_len:,}",
        f"{stage.batch_size:,}",
        _mark(is_estimate) + _percent(padding / stage.num_tokens),
      ]
    )
  yield from table(rows)


def _shares(
  title: str, shares: list[forecast_shares.Share], *, exact: bool
) -> collections.abc.Iterator[str]:
  rows = [
    [
      title,
      "asked",
      "",
      "delivered",
      "samples",
      "tokens",
      "targets",
      "padding",
      "epochs",
    ]
  ]
  for share in shares:
    mark = _mark(share.targets_are_estimate)
    padding = _NONE
    if share.num_tokens:
      padding = mark + _percent(share.num_padding / share.num_tokens)
    rows.append(
      [
        share.name,
        _fraction(share.asked) if exact else "",
        _percent(float(share.asked)),
        _percent(share.delivered),
        _mark(share.is_estimate) + number(share.num_samples),
        _mark(share.is_estimate) + number(share.num_tokens),
        mark + number(share.num_targets),
        padding,
        f"{share.epochs:.3f}",
      ]
    )
  if len(shares) > 1:
    num_tokens = sum(share.num_tokens for share in shares)
    padding = sum(share.num_padding for share in shares)
    mark = _mark(any(share.targets_are_estimate for share in shares))
    rows.append(
      [
        "all",
        "",
        _percent(float(sum(share.asked for share in shares))),
        _percent(sum(share.delivered for share in shares)),
        number(sum(share.num_samples for share in shares)),
        number(num_tokens),
        mark + number(sum(share.num_targets for share in shares)),
        mark + _percent(padding / num_tokens),
        "",
      ]
    )
  yield from table(rows)


def _fraction(share: fractions.Fraction) -> str:
  text = str(share)
  return text if len(text) <= _LONG_FRACTION else ""


def _percent(share: float) -> str:
  return f"{share:.2%}"


def _known(value: int | None) -> str:
  return _NONE if value is None else number(value)


def _mark(is_estimate: bool) -> str:
  return "~" if is_estimate else ""


def _plural(count: int, noun: str) -> str:
  return f"{count:,} {noun}{'' if count == 1 else 's'}"
