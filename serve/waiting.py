"""Requests that wait for a slot: by priority, then fairly among users.

Within a priority come first those who had a slot and had to give it up, then
those of the user who was served least, earliest first.
"""

import collections
from collections.abc import Iterator

from serve import fairness
from serve import task as task_lib

# Of the mean interval between admissions: how much the newest one counts.
_NEWEST = 0.1

type _Tasks = collections.OrderedDict[int, task_lib.Task]


class _Class:
  """Tasks of a priority, by their order of arrival."""

  def __init__(self):
    self.returned: _Tasks = collections.OrderedDict()
    self.by_user: dict[str, _Tasks] = {}

  @property
  def is_empty(self) -> bool:
    return not self.returned and not self.by_user


class Waiting:
  """The tasks that wait."""

  def __init__(self, served: fairness.Fairness):
    """Begins empty.

    Args:
      served: What the users have had; arrivals change it.
    """
    self._served = served
    self._classes: dict[int, _Class] = {}
    # Of users with tasks that never had a slot: how many.
    self._num_of: collections.Counter[str] = collections.Counter()
    self.num_tokens = 0
    self._num_tasks = 0

  def __len__(self) -> int:
    return self._num_tasks

  def __iter__(self) -> Iterator[task_lib.Task]:
    """All, first to be served first."""
    for priority in sorted(self._classes):
      waiting = self._classes[priority]
      yield from waiting.returned.values()
      for user in sorted(waiting.by_user, key=self._served.served):
        yield from waiting.by_user[user].values()

  def add(self, task: task_lib.Task) -> None:
    """A task that never had a slot."""
    user = task.request.user
    if not self._num_of[user]:
      self._served.arrive(user, [u for u, n in self._num_of.items() if n])
    self._num_of[user] += 1
    tasks = self._class(task).by_user.setdefault(
      user, collections.OrderedDict()
    )
    tasks[task.order] = task
    self._count(task, 1)

  def put_back(self, task: task_lib.Task) -> None:
    """A task that had a slot and had to give it up: the first of its class."""
    returned = self._class(task).returned
    returned[task.order] = task
    returned.move_to_end(task.order, last=False)
    self._count(task, 1)

  def remove(self, task: task_lib.Task) -> None:
    """A task that gets a slot, or has ended."""
    waiting = self._classes[task.request.priority]
    user = task.request.user
    if waiting.returned.pop(task.order, None) is None:
      del waiting.by_user[user][task.order]
      if not waiting.by_user[user]:
        del waiting.by_user[user]
      self._num_of[user] -= 1
      if not self._num_of[user]:
        del self._num_of[user]
        self._served.leave(user)
    if waiting.is_empty:
      del self._classes[task.request.priority]
    self._count(task, -1)

  def first(self) -> task_lib.Task | None:
    """Who is next; whoever waits for another request lets others pass."""
    return next((task for task in self if task.is_ready), None)

  def _class(self, task: task_lib.Task) -> _Class:
    return self._classes.setdefault(task.request.priority, _Class())

  def _count(self, task: task_lib.Task, sign: int) -> None:
    self._num_tasks += sign
    self.num_tokens += sign * len(task.tokens)


class Pace:
  """How fast the queue moves."""

  def __init__(self):
    self._interval = 0.1
    self._since: float | None = None

  def tick(self, now: float, *, is_busy: bool) -> None:
    """A task gets its slot.

    Args:
      now: In seconds.
      is_busy: Whether others wait on: then the time until the next one counts.
    """
    if self._since is not None:
      self._interval += _NEWEST * (now - self._since - self._interval)
    self._since = now if is_busy else None

  def seconds(self, num: int) -> float:
    """Until so many have got their slots, within reason."""
    return min(max(1.0, num * self._interval), 60.0)
