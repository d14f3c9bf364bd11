"""Who has had how much of the machine: virtual token counters.

Of the users who wait, the one who was served least is served next
(arXiv:2401.00588, algorithm 2). Whoever comes back after a pause is lifted to
the least served of those who wait: nobody saves up for later, and nobody who
was served much gets rid of that by leaving.
"""

from collections.abc import Collection

# What a token costs: those of a prompt are computed many at a time.
PROMPT_TOKEN = 1.0
OUTPUT_TOKEN = 2.0

# Users to remember. Beyond, those are forgotten who came longest ago; what they
# had no longer counts against them.
_MAX_USERS = 10_000


class Fairness:
  """Counters by user."""

  def __init__(self):
    self._served: dict[str, float] = {}
    # Where those begin who come when nobody waits: at whoever left last.
    self._floor = 0.0

  def served(self, user: str) -> float:
    """What a user has had, as far as it counts against them."""
    return self._served.get(user, 0.0)

  def charge(self, user: str, cost: float) -> None:
    """A user was served."""
    self._served[user] = self._served.get(user, 0.0) + cost

  def arrive(self, user: str, waiting: Collection[str]) -> None:
    """A user who had nothing waiting has something now.

    Args:
      user: Who.
      waiting: The others who wait.
    """
    floor = min(map(self.served, waiting), default=self._floor)
    # The first entries are those who came longest ago.
    self._served[user] = max(self._served.pop(user, 0.0), floor)
    if len(self._served) > _MAX_USERS:
      self._shrink(user, waiting)

  def leave(self, user: str) -> None:
    """A user has nothing waiting any more."""
    self._floor = self.served(user)

  def _shrink(self, user: str, waiting: Collection[str]) -> None:
    for other in list(self._served):
      if len(self._served) <= _MAX_USERS // 2:
        return
      if other != user and other not in waiting:
        del self._served[other]
