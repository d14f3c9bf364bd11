from absl.testing import absltest
from absl.testing import parameterized

from serve import batch
from serve import page_tables
from serve import prefix


def _blocks(num):
  tokens = list(range(2 * num))
  return prefix.Chain("", 2).blocks(tokens, num)


class PageTablesTest(parameterized.TestCase):
  def test_grows_by_whole_pages_or_not_at_all(self):
    tables = page_tables.PageTables({0: 4, 3: 3}, 2)
    table = tables.open((), 0)
    self.assertTrue(tables.grow(table, 3))
    self.assertEqual(table.size, 4)
    self.assertTrue(tables.grow(table, 4))
    self.assertEqual(tables.pools[3].num_free, 0)
    # There is a page for one window, but not for the other.
    self.assertFalse(tables.grow(table, 5))
    self.assertEqual(tables.pools[0].num_free, 1)
    tables.close(table)
    self.assertEqual(tables.share_used, 0)

  def test_a_snapshot_does_not_change(self):
    tables = page_tables.PageTables({0: 9, 2: 9}, 2)
    table = tables.open((), 0)
    tables.grow(table, 4)
    before = table.snapshot()
    self.assertIs(table.snapshot(), before)
    copy = dict(before)
    tables.grow(table, 6)
    tables.release_unseen(table, 5)
    self.assertEqual(before, copy)
    self.assertLen(table.snapshot()[0], 3)

  # Position p sees p - window + 1 to p; blocks have two tokens.
  @parameterized.parameters(
    (1, 5, 2), (1, 6, 3), (2, 6, 2), (2, 7, 3), (3, 6, 2), (4, 6, 1), (9, 6, 0)
  )
  def test_releases_what_is_not_seen(self, window, position, first):
    tables = page_tables.PageTables({0: 9, window: 9}, 2)
    table = tables.open((), 0)
    tables.grow(table, 8)
    tables.release_unseen(table, position)
    pages = table.snapshot()
    self.assertEqual(pages[window][:first], (batch.NULL_PAGE,) * first)
    self.assertNotIn(batch.NULL_PAGE, pages[window][first:])
    self.assertNotIn(batch.NULL_PAGE, pages[0])
    self.assertEqual(tables.pools[window].num_free, 8 - 4 + first)
    # As the one who looks at every step would have it.
    other = page_tables.PageTables({0: 9, window: 9}, 2)
    stepwise = other.open((), 0)
    other.grow(stepwise, 8)
    for i in range(position + 1):
      other.release_unseen(stepwise, i)
    self.assertEqual(stepwise.first, table.first)

  def test_finds_all_blocks_in_a_row_without_a_window(self):
    tables = page_tables.PageTables({0: 9}, 2)
    blocks = _blocks(4)
    table = tables.open((), 0)
    tables.grow(table, 6)
    tables.name(table, blocks[:3])
    self.assertEqual(tables.find(blocks), 3)
    tables.close(table)
    self.assertEqual(tables.find(blocks), 3)
    found = tables.open(blocks, 3)
    self.assertEqual(found.size, 6)
    self.assertEqual(tables.pools[0].num_free, 5)
    # The end of a text is forgotten before its beginning.
    tables.close(found)
    taker = tables.open((), 0)
    tables.grow(taker, 12)
    self.assertEqual(tables.find(blocks), 2)

  def test_finds_the_last_blocks_with_a_window(self):
    tables = page_tables.PageTables({3: 9}, 2)
    blocks = _blocks(5)
    table = tables.open((), 0)
    tables.grow(table, 10)
    tables.name(table, blocks)
    # Behind n blocks, position 2n sees 2n - 2: one block is enough.
    tables.pools[3].forget(table.pages[3][0])
    self.assertEqual(tables.find(blocks), 5)
    tables.pools[3].forget(table.pages[3][4])
    self.assertEqual(tables.find(blocks), 4)
    self.assertEqual(tables.find(blocks[:1]), 0)
    found = tables.open(blocks, 4)
    self.assertEqual(found.pages[3][:3], [batch.NULL_PAGE] * 3)
    self.assertEqual(found.pages[3][3], table.pages[3][3])

  def test_finds_what_all_windows_have(self):
    tables = page_tables.PageTables({0: 9, 3: 9}, 2)
    blocks = _blocks(4)
    table = tables.open((), 0)
    tables.grow(table, 8)
    tables.name(table, blocks)
    tables.pools[3].forget(table.pages[3][3])
    self.assertEqual(tables.find(blocks), 3)
    tables.pools[0].forget(table.pages[0][1])
    self.assertEqual(tables.find(blocks), 1)
    tables.forget(table)
    self.assertEqual(tables.find(blocks), 0)

  def test_has_room(self):
    tables = page_tables.PageTables({0: 9, 3: 5}, 2)
    table = tables.open((), 0)
    # Eight pages without a window; with it a chunk and what it sees.
    fits = lambda size, chunk, reserve: tables.has_room(
      table, size=size, chunk=chunk, reserve=reserve
    )
    self.assertTrue(fits(16, 4, 0))
    self.assertFalse(fits(16, 4, 1))
    self.assertFalse(fits(17, 4, 0))
    self.assertFalse(fits(16, 6, 0))

  @parameterized.product(window=[1, 3, 4], chunk=[1, 2, 5], page_size=[1, 2, 4])
  def test_most_pages(self, window, chunk, page_size):
    most = page_tables.most_pages(
      window, size=40, chunk=chunk, page_size=page_size
    )
    tables = page_tables.PageTables({window: most + 1}, page_size)
    table = tables.open((), 0)
    for start in range(0, 40 - chunk, chunk):
      tables.release_unseen(table, start)
      self.assertTrue(tables.grow(table, start + chunk))


if __name__ == "__main__":
  absltest.main()
