"""Who has a slot and pages, most deserving first."""

import bisect
from collections.abc import Iterator, Sequence
import heapq

from serve import page_tables
from serve import prefix
from serve import scheduler_config
from serve import task as task_lib


class Stays:
  """The stays that are not over."""

  def __init__(self, config: scheduler_config.SchedulerConfig):
    self._config = config
    self._pages = page_tables.PageTables(config.num_pages, config.page_size)
    # The lowest is taken first.
    self._slots = list(range(1, config.max_rows + 1))
    self._stays: list[task_lib.Stay] = []
    self._num_swaps = 0

  def __len__(self) -> int:
    return len(self._stays)

  def __iter__(self) -> Iterator[task_lib.Stay]:
    return iter(self._stays)

  @property
  def last(self) -> task_lib.Stay:
    """The least deserving."""
    return self._stays[-1]

  @property
  def num_slots(self) -> int:
    """That are free."""
    return len(self._slots)

  @property
  def pages_used(self) -> float:
    """Share of the pages, of the window with most."""
    return self._pages.share_used

  def open(self, task: task_lib.Task) -> task_lib.Stay | None:
    """Gives a task a slot, and the pages of what was computed before.

    Returns:
      None if there is no slot, or there are no pages for the whole text and one
      for each of the others.
    """
    if not self._slots:
      return None
    regime = self.regime(len(task.tokens))
    found = self._find(task, regime)
    table = self._pages.open(found, len(found))
    if not self._pages.has_room(
      table,
      size=len(task.tokens),
      chunk=self._config.prefill_tokens,
      reserve=len(self._stays),
    ):
      self._pages.close(table)
      return None
    num_found = len(found) * self._config.page_size
    stay = task_lib.Stay(
      task=task,
      slot=heapq.heappop(self._slots),
      table=table,
      num_found=num_found,
      regime=regime,
      computed=num_found,
    )
    task.stay = stay
    bisect.insort(self._stays, stay, key=lambda other: other.task.rank)
    return stay

  def close(self, stay: task_lib.Stay) -> None:
    """Takes slot and pages back. What is known of them can still be found."""
    stay.is_over = True
    stay.task.stay = None
    self._stays.remove(stay)
    heapq.heappush(self._slots, stay.slot)
    self._pages.close(stay.table)

  def grow(self, stay: task_lib.Stay, size: int) -> bool:
    """Gets pages for the next tokens; False if there are not enough."""
    table = stay.table
    self._pages.release_unseen(table, stay.computed)
    return self._pages.grow(table, stay.computed + size)

  def name_blocks(self, stay: task_lib.Stay) -> None:
    """Makes blocks findable that are computed and whose tokens are known."""
    task = stay.task
    num = min(stay.computed, len(task.tokens)) // self._config.page_size
    if num <= stay.table.num_named or task.chain is None:
      return
    # What new parameters computed from old states is neither's.
    if task.chain.salt == self._salt(stay.regime):
      self._pages.name(stay.table, task.chain.blocks(task.tokens, num)[:num])

  def forget(self, stay: task_lib.Stay) -> None:
    """Nobody may find what this one found or computed: it is wrong."""
    self._pages.forget(stay.table)

  def forget_all(self) -> None:
    """What was computed before is not found any more, by anybody."""
    self._num_swaps += 1
    self._pages.forget_all()

  def regime(self, length: int) -> int:
    """How many of LongRoPE's turning points a text is longer than."""
    return bisect.bisect_left(self._config.turns, length)

  def _find(self, task: task_lib.Task, regime: int) -> Sequence[prefix.Block]:
    """The blocks that need not be computed."""
    if not self._config.can_find:
      return ()
    salt = self._salt(regime)
    if task.chain is None or task.chain.salt != salt:
      task.chain = prefix.Chain(salt, self._config.page_size)
    if not task.can_find:
      return ()
    # One token must be computed: it says what follows.
    num = (len(task.tokens) - 1) // self._config.page_size
    blocks = task.chain.blocks(task.tokens, num)[:num]
    return blocks[: self._pages.find(blocks)]

  def _salt(self, regime: int) -> str:
    return f"{self._num_swaps} {regime}"
