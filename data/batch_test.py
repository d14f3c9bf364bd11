from absl.testing import absltest
import numpy as np

from data import batch as batch_lib
from data import rows as rows_lib


def make_rows(tokens, segment_ids=1):
  tokens = np.asarray(tokens, np.int32)
  rows = rows_lib.empty(len(tokens), tokens.shape[1] - 1)
  rows.tokens[:] = tokens
  rows.segment_ids[:] = segment_ids
  return rows


class BatchTest(absltest.TestCase):
  def test_targets_are_the_next_tokens(self):
    rows = np.arange(12).reshape(2, 6)
    batch = batch_lib.make(make_rows(rows), mask_documents=False)
    np.testing.assert_array_equal(batch["tokens"], rows[:, :5])
    np.testing.assert_array_equal(batch["targets"], rows[:, 1:])
    np.testing.assert_array_equal(batch["positions"], [[0, 1, 2, 3, 4]] * 2)
    np.testing.assert_array_equal(batch["segment_ids"], np.ones((2, 5)))
    np.testing.assert_array_equal(batch["loss_weights"], np.ones((2, 5)))
    dtypes = {name: array.dtype.name for name, array in batch.items()}
    self.assertEqual(dtypes.pop("loss_weights"), "float32")
    self.assertEqual(set(dtypes.values()), {"int32"})

  def test_documents_have_segments_and_positions_of_their_own(self):
    numbers = [[1, 1, 1, 2, 2, 3, 3], [1, 2, 2, 2, 2, 2, 2]]
    rows = make_rows(np.ones((2, 7)), numbers)
    batch = batch_lib.make(rows, mask_documents=True)
    np.testing.assert_array_equal(
      batch["segment_ids"], [[1, 1, 1, 2, 2, 3], [1, 2, 2, 2, 2, 2]]
    )
    np.testing.assert_array_equal(
      batch["positions"], [[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 4]]
    )
    for name in ("segment_ids", "positions"):
      self.assertEqual(batch[name].dtype, np.int32)
    np.testing.assert_array_equal(rows.segment_ids, numbers)

  def test_padding_stays_padding(self):
    rows = make_rows(np.ones((1, 7)), [[1, 1, 2, 2, 0, 0, 0]])
    rows.is_target[0, [0, 2, 4, 5, 6]] = False
    weights = [[1, 0, 1, 0, 0, 0]]
    for mask_documents, segment_ids in (
      (True, [[1, 1, 2, 2, 0, 0]]),
      (False, [[1, 1, 1, 1, 0, 0]]),
    ):
      batch = batch_lib.make(rows, mask_documents=mask_documents)
      np.testing.assert_array_equal(batch["segment_ids"], segment_ids)
      np.testing.assert_array_equal(batch["loss_weights"], weights)

  def test_pad(self):
    batch = batch_lib.make(make_rows(np.ones((3, 5))), mask_documents=False)
    padded = batch_lib.pad(batch, np.array([4, 1, 0]))
    expected = [[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(padded["loss_weights"], expected)
    np.testing.assert_array_equal(padded["segment_ids"], expected)
    for name, array in padded.items():
      self.assertEqual(array.dtype, batch[name].dtype, name)


if __name__ == "__main__":
  absltest.main()
