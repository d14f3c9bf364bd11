from absl.testing import absltest
import numpy as np

from data import batch as batch_lib


class BatchTest(absltest.TestCase):
  def test_targets_are_the_next_tokens(self):
    rows = np.arange(12, dtype=np.uint16).reshape(2, 6)
    batch = batch_lib.make(rows, eos_id=3, mask_documents=False)
    np.testing.assert_array_equal(batch["tokens"], rows[:, :5])
    np.testing.assert_array_equal(batch["targets"], rows[:, 1:])
    np.testing.assert_array_equal(batch["positions"], [[0, 1, 2, 3, 4]] * 2)
    np.testing.assert_array_equal(batch["segment_ids"], np.ones((2, 5)))
    np.testing.assert_array_equal(batch["loss_weights"], np.ones((2, 5)))
    dtypes = {name: array.dtype.name for name, array in batch.items()}
    self.assertEqual(dtypes.pop("loss_weights"), "float32")
    self.assertEqual(set(dtypes.values()), {"int32"})

  def test_documents_have_segments_and_positions_of_their_own(self):
    rows = np.array([[5, 6, 9, 7, 9, 9, 8], [9, 5, 6, 7, 8, 5, 9]])
    batch = batch_lib.make(rows, eos_id=9, mask_documents=True)
    # The eos belongs to the document that it ends.
    np.testing.assert_array_equal(
      batch["segment_ids"], [[1, 1, 1, 2, 2, 3], [1, 2, 2, 2, 2, 2]]
    )
    np.testing.assert_array_equal(
      batch["positions"], [[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 4]]
    )

  def test_pad(self):
    batch = batch_lib.make(np.ones((3, 5)), eos_id=9, mask_documents=False)
    padded = batch_lib.pad(batch, np.array([4, 1, 0]))
    expected = [[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(padded["loss_weights"], expected)
    np.testing.assert_array_equal(padded["segment_ids"], expected)
    for name, array in padded.items():
      self.assertEqual(array.dtype, batch[name].dtype, name)


if __name__ == "__main__":
  absltest.main()
