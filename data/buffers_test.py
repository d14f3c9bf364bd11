import pickle

from absl.testing import absltest
import numpy as np

from data import buffers


class BuffersTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.buffers = buffers.Buffers()

  def place(self, array):
    return array.__array_interface__["data"][0]

  def test_what_is_free_is_used_again(self):
    places = {self.place(self.buffers.empty((3, 4), "f4")) for _ in range(5)}
    self.assertLen(places, 1)

  def test_what_is_held_stays_as_it_is(self):
    first = self.buffers.full((3, 4), 7, "i4")
    view = first[1:, ::2].T
    last = memoryview(self.buffers.full((3, 4), 8, "i4"))
    del first
    held = [self.buffers.full((3, 4), 9, "i4") for _ in range(40)]
    self.assertEqual(view.tolist(), [[7, 7], [7, 7]])
    self.assertEqual(last.tolist(), [[8] * 4] * 3)
    self.assertLen({self.place(array) for array in held}, 40)
    place = self.place(view.base)
    del view
    self.assertEqual(self.place(self.buffers.empty((3, 4), "i4")), place)

  def test_shapes_and_dtypes_are_kept_apart(self):
    for shape, dtype in (((2, 6), "i4"), ((3, 4), "f4"), ((3, 4), bool)):
      array = self.buffers.full(shape, 1, dtype)
      self.assertEqual((array.shape, array.dtype), (shape, np.dtype(dtype)))
      self.assertTrue(array.all())
      self.assertTrue(array.flags.writeable)

  def test_not_more_is_kept_than_is_useful(self):
    held = [self.buffers.empty((2,), "i4") for _ in range(100)]
    places = {self.place(array) for array in held}
    held.clear()
    again = [self.buffers.empty((2,), "i4") for _ in range(16)]
    self.assertLessEqual({self.place(array) for array in again}, places)
    self.assertLen(self.buffers._buffers[(2,), np.dtype("i4")], 16)

  def test_goes_to_other_processes_empty(self):
    self.buffers.empty((2,), "i4")
    self.assertLess(len(pickle.dumps(self.buffers)), 100)
    self.assertEqual(
      pickle.loads(pickle.dumps(self.buffers)).empty((2,), "i4").shape, (2,)
    )


if __name__ == "__main__":
  absltest.main()
