from absl.testing import absltest

from serve import batch
from serve import pages
from serve import prefix


def _blocks(*tokens):
  return prefix.Chain("", 1).blocks(tokens, len(tokens))


class PoolTest(absltest.TestCase):
  def test_gives_each_page_once_but_the_null_page(self):
    pool = pages.Pool(5)
    self.assertEqual(pool.num_free, 4)
    given = [pool.allocate() for _ in range(4)]
    self.assertCountEqual(given, [1, 2, 3, 4])
    self.assertNotIn(batch.NULL_PAGE, given)
    self.assertEqual(pool.num_free, 0)

  def test_is_free_when_the_last_user_has_left(self):
    pool = pages.Pool(2)
    page = pool.allocate()
    pool.share(page)
    pool.release(page)
    self.assertEqual(pool.num_free, 0)
    pool.release(page)
    self.assertEqual(pool.num_free, 1)
    with self.assertRaises(AssertionError):
      pool.release(page)

  def test_stays_findable_until_reused(self):
    pool = pages.Pool(2)
    (block,) = _blocks(7)
    page = pool.allocate()
    pool.name(page, block)
    pool.release(page)
    self.assertEqual(pool.find(block), page)
    pool.share(page)
    self.assertEqual(pool.num_free, 0)
    pool.release(page)
    self.assertEqual(pool.allocate(), page)
    self.assertIsNone(pool.find(block))

  def test_takes_unknown_pages_then_the_longest_unused(self):
    pool = pages.Pool(5)
    blocks = _blocks(1, 2, 3)
    one, two, three, unknown = [pool.allocate() for _ in range(4)]
    for page, block in zip([one, two, three], blocks, strict=True):
      pool.name(page, block)
    for page in (two, one, three, unknown):
      pool.release(page)
    pool.share(two)  # Used once more: the newest now.
    pool.release(two)
    order = [pool.allocate() for _ in range(4)]
    self.assertEqual(order, [unknown, one, three, two])

  def test_a_collision_is_not_taken_for_the_same(self):
    pool = pages.Pool(3)
    (block,) = _blocks(1)
    pool.name(pool.allocate(), block)
    self.assertIsNotNone(pool.find(block))
    self.assertIsNone(pool.find(block._replace(tokens=(2,))))
    self.assertIsNone(pool.find(block._replace(parent=b"")))

  def test_the_same_content_has_one_name(self):
    pool = pages.Pool(3)
    (block,) = _blocks(1)
    one, two = pool.allocate(), pool.allocate()
    pool.name(one, block)
    pool.name(two, block)
    self.assertEqual(pool.find(block), one)
    pool.release(two)
    pool.release(one)
    self.assertEqual(pool.find(block), one)
    self.assertEqual(pool.num_free, 2)

  def test_forgets(self):
    pool = pages.Pool(4)
    blocks = _blocks(1, 2, 3)
    taken = [pool.allocate() for _ in blocks]
    for page, block in zip(taken, blocks, strict=True):
      pool.name(page, block)
    pool.release(taken[0])
    pool.forget(taken[1])
    self.assertIsNone(pool.find(blocks[1]))
    self.assertEqual(pool.find(blocks[2]), taken[2])
    pool.forget_all()
    self.assertEqual([pool.find(block) for block in blocks], [None] * 3)
    self.assertEqual(pool.num_free, 1)
    pool.release(taken[1])
    pool.release(taken[2])
    self.assertCountEqual([pool.allocate() for _ in range(3)], taken)


if __name__ == "__main__":
  absltest.main()
