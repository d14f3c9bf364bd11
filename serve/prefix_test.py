from absl.testing import absltest

from serve import prefix


class ChainTest(absltest.TestCase):
  def test_blocks_are_the_texts(self):
    chain = prefix.Chain("", 2)
    blocks = chain.blocks([1, 2, 3, 4, 5], 2)
    self.assertEqual([b.tokens for b in blocks], [(1, 2), (3, 4)])
    self.assertEqual(blocks[1].parent, blocks[0].digest)

  def test_grows_with_the_text(self):
    whole = prefix.Chain("", 2).blocks([1, 2, 3, 4, 5, 6], 3)
    chain = prefix.Chain("", 2)
    chain.blocks([1, 2, 3], 1)
    self.assertEqual(chain.blocks([1, 2, 3, 4, 5, 6], 3), whole)
    # What was asked for before stays.
    self.assertLen(chain.blocks([1, 2, 3, 4, 5, 6], 1), 3)

  def test_the_same_tokens_behind_others_are_another_block(self):
    one = prefix.Chain("", 2).blocks([1, 2, 3, 4], 2)
    other = prefix.Chain("", 2).blocks([2, 1, 3, 4], 2)
    self.assertNotEqual(one[1].digest, other[1].digest)

  def test_salt(self):
    one = prefix.Chain("1", 2).blocks([1, 2], 1)
    other = prefix.Chain("2", 2).blocks([1, 2], 1)
    self.assertNotEqual(one[0].digest, other[0].digest)

  def test_large_tokens(self):
    blocks = prefix.Chain("", 1).blocks([2**31, 256, 1], 3)
    self.assertLen({b.digest for b in blocks}, 3)


if __name__ == "__main__":
  absltest.main()
