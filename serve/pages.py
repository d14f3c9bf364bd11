"""A pool of pages: who uses them, and which can be found by what is in them.

A page is used by as many texts as share it. One that nobody uses any more is
free; if its content is known it stays findable until it is taken for something
else: those that nobody knows are taken first, then the one that has been unused
for longest.
"""

import collections

from serve import batch
from serve import prefix


class Pool:
  """Pages 1 to num_pages - 1; the null page is nobody's.

  All methods take constant time.
  """

  def __init__(self, num_pages: int):
    self._num_users = [0] * num_pages
    # The lowest is taken first.
    self._blank = list(range(num_pages - 1, batch.NULL_PAGE, -1))
    # Free but findable; the one that is taken next comes first.
    self._kept: collections.OrderedDict[int, None] = collections.OrderedDict()
    self._page_of: dict[bytes, int] = {}
    self._block_of: dict[int, prefix.Block] = {}

  @property
  def num_free(self) -> int:
    """Pages that nobody uses, findable ones included."""
    return len(self._blank) + len(self._kept)

  @property
  def num_usable(self) -> int:
    """All but the null page."""
    return len(self._num_users) - 1

  def num_users(self, page: int) -> int:
    """Of a page."""
    return self._num_users[page]

  def allocate(self) -> int:
    """A page for one user; there must be a free one."""
    if self._blank:
      page = self._blank.pop()
    else:
      page, _ = self._kept.popitem(last=False)
      self._unname(page)
    self._num_users[page] = 1
    return page

  def share(self, page: int) -> None:
    """One more user of a page that was found."""
    if self._num_users[page] == 0:
      del self._kept[page]
    self._num_users[page] += 1

  def release(self, page: int) -> None:
    """One user less."""
    assert self._num_users[page] > 0, page
    self._num_users[page] -= 1
    if self._num_users[page] > 0:
      return
    if page in self._block_of:
      self._kept[page] = None
    else:
      self._blank.append(page)

  def name(self, page: int, block: prefix.Block) -> None:
    """Makes a used page findable, unless one with the same content is."""
    assert self._num_users[page] > 0, page
    if block.digest not in self._page_of and page not in self._block_of:
      self._page_of[block.digest] = page
      self._block_of[page] = block

  def find(self, block: prefix.Block) -> int | None:
    """The page with just this content.

    Nothing is left to the digest: the tokens are compared, and by the parents'
    digests those of the blocks before.
    """
    page = self._page_of.get(block.digest)
    if page is None or self._block_of[page] != block:
      return None
    return page

  def forget(self, page: int) -> None:
    """A used page is not to be found any more: what is in it is wrong."""
    assert self._num_users[page] > 0, page
    if page in self._block_of:
      self._unname(page)

  def forget_all(self) -> None:
    """No page is to be found any more."""
    self._blank.extend(self._kept)
    self._kept.clear()
    self._page_of.clear()
    self._block_of.clear()

  def _unname(self, page: int) -> None:
    del self._page_of[self._block_of.pop(page).digest]
