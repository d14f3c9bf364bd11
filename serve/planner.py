"""The rows of the next step.

A step either reads texts, in chunks, or continues those that are read, token by
token. While there is both to do they take turns, so that new requests start
soon and the others' tokens keep coming.

If a text finds no page to go on, whoever deserves it least (by priority, then
as the newest) gives up its stay and waits for another; what it had is computed
again, unless its pages are still found then. Only the less deserving make room:
two requests never take turns in ousting each other, and the first always ends.
"""

from collections.abc import Callable
import dataclasses

from serve import batch
from serve import chunks
from serve import fairness
from serve import rows
from serve import scheduler_config
from serve import stays as stays_lib
from serve import task as task_lib
from serve import waiting as waiting_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """A step, and what comes with it.

  Attributes:
    stays: Whose rows they are.
    rows: At least one.
    admissions: Since the plan before.
  """

  stays: tuple[task_lib.Stay, ...]
  rows: tuple[batch.Row, ...]
  admissions: tuple[batch.Admission, ...]


class Planner:
  """Gives slots and pages to those who wait, and takes them back.

  Attributes:
    failed: Tasks whose constraint failed, and how; to be ended.
    num_prefix_queries: Prompt tokens that were looked for, ever.
    num_prefix_hits: Of them, found.
    num_preemptions: Stays that were ended for want of pages, ever.
  """

  def __init__(
    self,
    config: scheduler_config.SchedulerConfig,
    *,
    waiting: waiting_lib.Waiting,
    pace: waiting_lib.Pace,
    stays: stays_lib.Stays,
    served: fairness.Fairness,
  ):
    """Plans with what others know of, too.

    Args:
      config: Limits.
      waiting: Tasks without a slot.
      pace: How fast they get one.
      stays: Tasks with a slot.
      served: What the users have had.
    """
    self._config = config
    self._waiting = waiting
    self._pace = pace
    self._stays = stays
    self._served = served
    self._made: list[tuple[task_lib.Stay, batch.Row]] = []
    self._admissions: list[batch.Admission] = []
    self._reads_next = True
    self.failed: list[tuple[task_lib.Task, str]] = []
    self.num_prefix_queries = 0
    self.num_prefix_hits = 0
    self.num_preemptions = 0

  def plan(self, now: float) -> Plan | None:
    """The next step; None if nobody can go on.

    Args:
      now: In seconds.
    """
    self._made = []
    self._leave_turned()
    plans = (self._read, self._continue)
    for make_rows in plans if self._reads_next else plans[::-1]:
      make_rows(now)
      if self._made:
        return self._take_made()
    return None

  def is_fed_back(self, stay: task_lib.Stay) -> bool:
    """Whether its tokens must be known before it goes on."""
    return bool(self._config.num_drafts or stay.task.request.constraint)

  def forget(self) -> None:
    """No step is under way, and none is planned."""
    self._admissions.clear()
    self.failed.clear()

  def _take_made(self) -> Plan:
    stays, made = zip(*self._made, strict=True)
    admissions = tuple(self._admissions)
    self._admissions.clear()
    self._reads_next = not made[0].tokens
    return Plan(stays=stays, rows=made, admissions=admissions)

  def _read(self, now: float) -> None:
    """A step of prompts, and of texts that are read again."""
    self._admit(now)
    stays = [stay for stay in self._stays if stay.is_reading]
    if not stays:
      return
    sizes = chunks.plan(
      [stay.num_unread for stay in stays],
      self._config.prefill_tokens,
      step_tokens=self._config.step_tokens,
    )
    for stay, size in zip(stays, sizes, strict=True):
      if size and not stay.is_over and self._has_room(stay, size):
        self._make(stay, rows.read, size)
    # Only now can blocks be found: not by rows of the step that computes them.
    for stay, row in self._made:
      stay.computed += len(row.tokens)
      stay.is_reading = stay.num_unread > 0
      stay.num_unknown = int(row.samples)
      stay.task.is_prompt_launched |= not stay.is_reading
      self._stays.name_blocks(stay)

  def _admit(self, now: float) -> None:
    """Gives slots to as many as the next step can read.

    Whoever is first and finds no pages lets nobody pass: small requests would
    keep it waiting.
    """
    left = self._config.prefill_tokens - sum(
      stay.num_unread for stay in self._stays if stay.is_reading
    )
    while left > 0 and self._stays.num_slots:
      task = self._waiting.first()
      stay = None if task is None else self._stays.open(task)
      if task is None or stay is None:
        return
      self._waiting.remove(task)
      self._admissions.append(
        batch.Admission(
          slot=stay.slot, request=task.request, tokens=tuple(task.tokens)
        )
      )
      if task.num_cached is None:
        self._count_first(stay, now)
      left -= stay.num_unread

  def _count_first(self, stay: task_lib.Stay, now: float) -> None:
    """A task has a slot for the first time."""
    task = stay.task
    task.leader = None
    task.num_cached = stay.num_found
    if task.can_find:
      self.num_prefix_queries += len(task.tokens)
      self.num_prefix_hits += stay.num_found
    self._served.charge(
      task.request.user, fairness.PROMPT_TOKEN * stay.num_unread
    )
    self._pace.tick(now, is_busy=len(self._waiting) > 0)

  def _continue(self, now: float) -> None:
    """A step of the next token of each text that was read."""
    del now
    for stay in tuple(self._stays):
      if stay.is_over or not self._can_continue(stay):
        continue
      num_drafts = rows.most_drafts(stay, self._config)
      if num_drafts and not self._stays.grow(stay, 1 + num_drafts):
        num_drafts = 0
      if self._has_room(stay, 1):
        self._make(stay, rows.continued, num_drafts)
    for stay, _ in self._made:
      stay.computed += 1
      stay.num_unknown += 1

  def _can_continue(self, stay: task_lib.Stay) -> bool:
    if stay.is_reading or stay.length >= stay.task.max_len:
      return False
    if stay.num_unknown and self.is_fed_back(stay):
      return False
    return not self._is_turned(stay)

  def _is_turned(self, stay: task_lib.Stay) -> bool:
    """Whether all its states are others by now (LongRoPE)."""
    turns = self._config.turns
    return bool(turns) and self._stays.regime(stay.length) != stay.regime

  def _leave_turned(self) -> None:
    """Texts that are past a turn are read again, once they are known."""
    if self._config.turns:
      for stay in tuple(self._stays):
        if self._is_turned(stay) and not stay.num_unknown:
          self._leave(stay)

  def _has_room(self, stay: task_lib.Stay, size: int) -> bool:
    """Gets pages for the next tokens, from less deserving stays if need be.

    The most deserving one always gets them: one text fits. Others that get none
    wait, and keep what they have until a more deserving one needs it.
    """
    while not self._stays.grow(stay, size):
      last = self._stays.last
      if last is stay:
        return False
      self._leave(last)
      self.num_preemptions += 1
    return True

  def _leave(self, stay: task_lib.Stay) -> None:
    """Ends a stay; its task waits for another one."""
    self._stays.close(stay)
    self._waiting.put_back(stay.task)

  def _make(
    self,
    stay: task_lib.Stay,
    make_row: Callable[[task_lib.Stay, int], batch.Row],
    num: int,
  ) -> None:
    """Adds a row, unless the request's constraint fails."""
    try:
      self._made.append((stay, make_row(stay, num)))
    except ValueError as error:
      self.failed.append((stay.task, str(error)))
