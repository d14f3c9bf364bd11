from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from data.megatron import index as index_lib
from data.megatron import items

_ALL = items.Options(
  reset_position_ids=True, reset_attention_mask=True, eod_mask_loss=True
)


def _make(text, options, *, seq_len=5, eod: int | None = 0):
  return items.make(
    np.array(text), seq_len=seq_len, pad=-1, eod=eod, options=options
  )


class ItemsTest(parameterized.TestCase):
  def test_plain(self):
    item = _make([5, 0, 6, 7, 0, 8], items.Options())
    self.assertEqual(item.tokens.tolist(), [5, 0, 6, 7, 0])
    self.assertEqual(item.labels.tolist(), [0, 6, 7, 0, 8])
    self.assertEqual(item.loss_mask.tolist(), [1] * 5)
    self.assertEqual(item.position_ids.tolist(), [0, 1, 2, 3, 4])
    assert item.attention_mask is not None
    np.testing.assert_array_equal(
      item.attention_mask[0], np.triu(np.ones((5, 5), bool), 1)
    )

  def test_documents_end_at_the_eod(self):
    item = _make([5, 0, 6, 7, 0, 8], _ALL)
    # The mask is of the inputs: what is predicted from an eod does not count.
    self.assertEqual(item.loss_mask.tolist(), [1, 0, 1, 1, 0])
    self.assertEqual(item.position_ids.tolist(), [0, 1, 0, 1, 2])
    seen = [
      [1, 0, 0, 0, 0],
      [1, 1, 0, 0, 0],
      [0, 0, 1, 0, 0],
      [0, 0, 1, 1, 0],
      [0, 0, 1, 1, 1],
    ]
    assert item.attention_mask is not None
    np.testing.assert_array_equal(~item.attention_mask[0], np.array(seen, bool))

  @parameterized.parameters(None, 99)
  def test_without_an_eod(self, eod):
    item = _make([5, 0, 6, 7, 0, 8], _ALL, eod=eod)
    self.assertEqual(item.loss_mask.tolist(), [1] * 5)
    self.assertEqual(item.position_ids.tolist(), [0, 1, 2, 3, 4])

  def test_padding_is_no_target(self):
    item = _make([5, 6, 7, -1, -1, -1], items.Options())
    self.assertEqual(item.tokens.tolist(), [5, 6, 7, 0, 0])
    self.assertEqual(item.labels.tolist(), [6, 7, 0, 0, 0])
    self.assertEqual(item.loss_mask.tolist(), [1, 1, 0, 0, 0])

  def test_without_the_extra_token(self):
    item = _make([5, 6, 7, 8, 9], items.Options(create_attention_mask=False))
    self.assertEqual(item.tokens.tolist(), [5, 6, 7, 8, 9])
    self.assertEqual(item.labels.tolist(), [6, 7, 8, 9, 0])
    self.assertEqual(item.loss_mask.tolist(), [1, 1, 1, 1, 0])
    self.assertIsNone(item.attention_mask)

  def test_texts_of_a_file(self):
    lengths = np.array([3, 4], np.int32)
    index = index_lib.build(
      lengths,
      bounds=(0, 2),
      seq_len=4,
      num_samples=None,
      seed=0,
      drop_last=False,
    )
    got = items.texts(
      index,
      np.arange(2),
      tokens=np.arange(10, 17),
      sequence_starts=np.array([0, 3]),
      pad=-1,
    )
    stream = {0: [10, 11, 12], 1: [13, 14, 15, 16]}
    joined = [t for d in index.documents for t in stream[int(d)]] + [-1, -1]
    expected = [joined[4 * k : 4 * k + 5] for k in index.shuffle.tolist()]
    self.assertEqual(got.tolist(), expected)

  def test_the_first_loss_mask_is_kept_as_megatron_does(self):
    texts = np.array([[5, 6, -1, -1], [1, 2, 3, 4], [1, 2, 3, -1]])

    def masks(order, options):
      made = items.make_all(
        texts[order], seq_len=3, pad=-1, eod=0, options=options
      )
      return [item.loss_mask.tolist() for item in made]

    short, full, other = [1, 0, 0], [1, 1, 1], [1, 1, 0]
    self.assertEqual(masks([0, 1, 2], items.Options()), [short] * 3)
    self.assertEqual(masks([1, 0, 2], items.Options()), [full, short, other])
    for name in ("reset_position_ids", "reset_attention_mask", "eod_mask_loss"):
      options = items.Options(**{name: True})
      self.assertEqual(masks([0, 1, 2], options), [short, full, other])


if __name__ == "__main__":
  absltest.main()
