from absl.testing import absltest
import numpy as np

from data import rows as rows_lib


class RowsTest(absltest.TestCase):
  def test_empty_rows_are_whole(self):
    rows = rows_lib.empty(3, 8)
    for array in (rows.tokens, rows.segment_ids, rows.is_target):
      self.assertEqual(array.shape, (3, 9))
    self.assertFalse(rows.tokens.any())
    self.assertTrue((rows.segment_ids == 1).all())
    self.assertTrue(rows.is_target.all())
    self.assertEqual(rows.tokens.dtype, np.int32)
    self.assertEqual(rows.segment_ids.dtype, np.int32)

  def test_parts_are_views(self):
    rows = rows_lib.empty(4, 8)
    rows[1:3].tokens[:] = 7
    np.testing.assert_array_equal(rows.tokens[:, 0], [0, 7, 7, 0])


if __name__ == "__main__":
  absltest.main()
