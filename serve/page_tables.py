"""Which page holds which block of a text, for each attention window.

Layers with the same window share a pool and a table. Without a window a text
has a page for each of its blocks. With a window of w a token sees itself and
w - 1 tokens before it: blocks wholly before what the next one sees have no page
any more, their entry is the null page.

Pages may be released, and given to another text, while a step that reads or
writes them is still being computed: the device computes steps in the order in
which they were launched, so what another text writes comes later.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import sys

from serve import batch
from serve import pages
from serve import prefix


@dataclasses.dataclass(slots=True, kw_only=True)
class Table:
  """The pages of one text. Only `PageTables` changes it.

  Attributes:
    pages: By window, the page of each block.
    first: By window, the first block that has a page.
    size: Tokens that there are pages for.
    next_release: The next token from this position on needs fewer pages.
    num_named: Blocks that were made findable.
  """

  pages: dict[int, list[int]]
  first: dict[int, int]
  size: int
  next_release: int
  num_named: int
  _snapshot: dict[int, tuple[int, ...]] | None = None

  def snapshot(self) -> Mapping[int, tuple[int, ...]]:
    """The pages as they are now; steps under way go on reading it."""
    if self._snapshot is None:
      self._snapshot = {w: tuple(pages) for w, pages in self.pages.items()}
    return self._snapshot

  def change(self) -> None:
    """Must be called before the pages change."""
    self._snapshot = None


class PageTables:
  """The pools of a cache, and the tables of the texts in it."""

  def __init__(self, num_pages: Mapping[int, int], page_size: int):
    """Makes the pools.

    Args:
      num_pages: By window, the null page included.
      page_size: Tokens of a page.
    """
    self.pools = {w: pages.Pool(num) for w, num in num_pages.items()}
    self._page_size = page_size

  @property
  def share_used(self) -> float:
    """Pages in use, of the pool that is fullest."""
    return max(
      (1 - pool.num_free / pool.num_usable for pool in self.pools.values()),
      default=0.0,
    )

  def find(self, blocks: Sequence[prefix.Block]) -> int:
    """With how many of these blocks a text can begin without computing them.

    All that the token behind them sees must be there: with a window that is
    only the last of them.
    """
    # Of each window, the blocks found in a row up to the one at hand.
    in_row = dict.fromkeys(self.pools, 0)
    best = 0
    for i, block in enumerate(blocks):
      for window, pool in self.pools.items():
        found = pool.find(block) is not None
        in_row[window] = in_row[window] + 1 if found else 0
      end = i + 1
      if all(
        num >= end - self._first_seen(window, end * self._page_size)
        for window, num in in_row.items()
      ):
        best = end
      if in_row.get(batch.NO_WINDOW) == 0:
        break
    return best

  def open(self, blocks: Sequence[prefix.Block], num: int) -> Table:
    """The table of a text that begins with `num` of the blocks, as found."""
    end = num * self._page_size
    table = Table(
      pages={}, first={}, size=end, next_release=sys.maxsize, num_named=num
    )
    for window, pool in self.pools.items():
      first = self._first_seen(window, end)
      found = [pool.find(block) for block in blocks[first:num]]
      shared = [page for page in found if page is not None]
      assert len(shared) == num - first
      for page in shared:
        pool.share(page)
      table.pages[window] = [batch.NULL_PAGE] * first + shared
      table.first[window] = first
    self._set_next_release(table)
    return table

  def grow(self, table: Table, size: int) -> bool:
    """Gets pages for a text of this size, or, if some are missing, none."""
    if size <= table.size:
      return True
    num = -(-size // self._page_size)
    missing = {w: num - len(entries) for w, entries in table.pages.items()}
    if any(self.pools[w].num_free < m for w, m in missing.items()):
      return False
    table.change()
    for window, entries in table.pages.items():
      allocate = self.pools[window].allocate
      entries.extend(allocate() for _ in range(missing[window]))
    table.size = num * self._page_size
    return True

  def release_unseen(self, table: Table, position: int) -> None:
    """Releases what neither the token at `position` nor later ones see."""
    if position < table.next_release:
      return
    table.change()
    for window, entries in table.pages.items():
      end = min(self._first_seen(window, position), len(entries))
      for i in range(table.first[window], end):
        self.pools[window].release(entries[i])
        entries[i] = batch.NULL_PAGE
      table.first[window] = max(table.first[window], end)
    self._set_next_release(table)

  def close(self, table: Table) -> None:
    """Releases all. A text's end is forgotten before its beginning."""
    for window, entries in table.pages.items():
      for i in range(len(entries) - 1, table.first[window] - 1, -1):
        self.pools[window].release(entries[i])
    table.pages.clear()

  def name(self, table: Table, blocks: Sequence[prefix.Block]) -> None:
    """Makes the text's first blocks findable.

    They need not be computed yet, if the step that does so was launched.
    """
    for i in range(table.num_named, len(blocks)):
      for window, entries in table.pages.items():
        if i >= table.first[window]:
          self.pools[window].name(entries[i], blocks[i])
    table.num_named = max(table.num_named, len(blocks))

  def forget(self, table: Table) -> None:
    """The text's blocks are not to be found any more: they are wrong."""
    for window, entries in table.pages.items():
      for page in entries[table.first[window] :]:
        self.pools[window].forget(page)

  def forget_all(self) -> None:
    """No block is to be found any more."""
    for pool in self.pools.values():
      pool.forget_all()

  def has_room(
    self, table: Table, *, size: int, chunk: int, reserve: int
  ) -> bool:
    """Whether a text can grow to this size, and still leave some pages free.

    Args:
      table: Of the text.
      size: Tokens that it will have.
      chunk: Most that are computed at a time.
      reserve: Pages of each pool that must be left.
    """
    num = -(-size // self._page_size)
    for window, entries in table.pages.items():
      most = most_pages(
        window, size=size, chunk=chunk, page_size=self._page_size
      )
      held = len(entries) - table.first[window]
      needed = min(num - len(entries), most - held)
      if self.pools[window].num_free < needed + reserve:
        return False
    return True

  def _first_seen(self, window: int, position: int) -> int:
    """The first block that the token at a position sees."""
    if window == batch.NO_WINDOW:
      return 0
    return max(0, position - (window - 1)) // self._page_size

  def _set_next_release(self, table: Table) -> None:
    table.next_release = min(
      (
        (first + 1) * self._page_size + window - 1
        for window, first in table.first.items()
        if window != batch.NO_WINDOW
      ),
      default=sys.maxsize,
    )


def most_pages(window: int, *, size: int, chunk: int, page_size: int) -> int:
  """Pages that a text has at most.

  Args:
    window: Of the attention.
    size: Tokens that the text may have.
    chunk: Most that are computed at a time.
    page_size: Tokens of a page.
  """
  num = -(-size // page_size)
  if window == batch.NO_WINDOW:
    return num
  # The chunk and what its first token sees, lying across two edges of pages.
  return min(num, -(-(chunk + window - 1) // page_size) + 1)
