"""How much of a run's wall time made progress, over all its restarts.

`goodput.jsonl` in the workdir has a line for each start and for each stretch of
time since then. Lines are only ever added, so a crash loses at most one:

  {"start": 1790000000.0, "from_step": 40}
  {"time": 1790000012.5, "step": 40, "seconds": {"startup": 9.5, ...}}

A stretch ends where a checkpoint is saved. A start from step R therefore tells
which stretches of earlier starts were made in vain: those that end after R.
What lies between the last line of one start and the next start is downtime. So
all that is counted adds up to the time since the first start.
"""

from collections.abc import Iterable
import dataclasses
import json
import pathlib
from typing import Any

import jax

from train import phases

LEDGER_FILE = "goodput.jsonl"

_PRODUCTIVE = (phases.Phase.DISPATCH, phases.Phase.DEVICE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Account:
  """Seconds since a run's first start.

  Attributes:
    seconds: By phase, of what was not in vain.
    repeated: From a checkpoint to the crash after it: made again later.
    down: Between starts.
    starts: How often it was started.
  """

  seconds: dict[str, float]
  repeated: float
  down: float
  starts: int

  @property
  def total(self) -> float:
    """Wall time."""
    return sum(self.seconds.values()) + self.repeated + self.down

  @property
  def goodput(self) -> float:
    """The share of wall time in which devices made progress; 0 if none."""
    productive = sum(self.seconds.get(phase, 0.0) for phase in _PRODUCTIVE)
    return productive / self.total if self.total else 0.0

  def flat(self) -> dict[str, float]:
    """All of it, for the metrics."""
    return self.seconds | {
      "repeated": self.repeated,
      "down": self.down,
      "total": self.total,
      "starts": self.starts,
      "goodput": self.goodput,
    }


class Ledger:
  """Writes this start's part of the ledger; only the first process does."""

  def __init__(
    self, workdir: pathlib.Path, clock: phases.Clock, *, start_step: int
  ):
    """Begins at `start_step`, the step of the state the run goes on from."""
    self._clock = clock
    self._step = start_step
    self._file = None
    earlier: list[dict[str, Any]] = []
    if jax.process_index() == 0:
      path = workdir / LEDGER_FILE
      earlier = read_lines(path)
      _drop_cut_line(path)
      self._file = path.open("a", encoding="utf-8")
    start = {"start": clock.began, "from_step": start_step}
    self._past = fold([*earlier, start])
    self._written = dict.fromkeys(phases.Phase, 0.0)
    self._append(start)
    self.write(start_step)

  def write(self, step: int) -> None:
    """Ends a stretch with update number `step`; call where one is saved."""
    seconds = self._clock.seconds()
    spent = {
      phase.value: seconds[phase] - before
      for phase, before in self._written.items()
      if seconds[phase] > before
    }
    time = self._clock.began + sum(seconds.values())
    self._append({"time": time, "step": step, "seconds": spent})
    self._written = seconds
    self._step = step

  def account(self) -> Account:
    """The run so far, up to now."""
    seconds = self._past.seconds.copy()
    for phase, spent in self._clock.seconds().items():
      seconds[str(phase)] += spent
    return dataclasses.replace(self._past, seconds=seconds)

  def close(self) -> None:
    """Writes what is not yet written."""
    if self._file is not None:
      self.write(self._step)
      self._file.close()
      self._file = None

  def _append(self, line: dict[str, Any]) -> None:
    if self._file is not None:
      self._file.write(json.dumps(line) + "\n")
      self._file.flush()


def read(workdir: pathlib.Path) -> Account:
  """The account of a run, which may be under way."""
  return fold(read_lines(workdir / LEDGER_FILE))


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
  """The ledger's whole lines; none if there is no ledger."""
  if not path.exists():
    return []
  with path.open(encoding="utf-8") as lines:
    return [json.loads(line) for line in lines if line.endswith("\n")]


def fold(lines: Iterable[dict[str, Any]]) -> Account:
  """Adds up a ledger's lines."""
  kept: list[tuple[int, dict[str, float]]] = []
  repeated = down = 0.0
  starts, end = 0, None
  for line in lines:
    if "start" in line:
      starts += 1
      if end is not None:
        # Clocks of two hosts may differ.
        down += max(0.0, line["start"] - end)
      end = line["start"]
      while kept and kept[-1][0] > line["from_step"]:
        repeated += sum(kept.pop()[1].values())
    else:
      kept.append((line["step"], line["seconds"]))
      end = line["time"]
  seconds = dict.fromkeys(map(str, phases.Phase), 0.0)
  for _, spent in kept:
    for phase, value in spent.items():
      seconds[phase] = seconds.get(phase, 0.0) + value
  return Account(seconds=seconds, repeated=repeated, down=down, starts=starts)


def table(account: Account) -> str:
  """The account for people, all times adding up to the last line."""
  rows = [
    (phase.value, account.seconds.get(phase, 0.0)) for phase in phases.Phase
  ]
  rows += [("repeated", account.repeated), ("down", account.down)]
  rows = [(name, spent) for name, spent in rows if spent > 0]
  rows.append(("total", account.total))
  lines = [
    f"{name:<12}{phases.duration(spent):>10}{_percent(spent, account):>9}"
    for name, spent in rows
  ]
  times = "once" if account.starts == 1 else f"{account.starts} times"
  lines.append(
    f"goodput (dispatch and device) {100 * account.goodput:.1f} %; "
    f"started {times}"
  )
  return "\n".join(lines)


def _percent(spent: float, account: Account) -> str:
  share = spent / account.total if account.total else 0.0
  return f"{100 * share:.1f} %"


def _drop_cut_line(path: pathlib.Path) -> None:
  """Cuts off what a crash left of a line."""
  if not path.exists():
    return
  content = path.read_bytes()
  whole = content.rfind(b"\n") + 1
  if whole < len(content):
    with path.open("r+b") as file:
      file.truncate(whole)
