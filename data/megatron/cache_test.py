import concurrent.futures
import os
import pathlib
from unittest import mock

from absl.testing import absltest
import numpy as np

from data.megatron import cache


class CacheTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path) / "a/b"
    self.made = 0

  def make(self):
    self.made += 1
    return {"x": np.arange(5), "y": np.zeros((2, 3), np.int16)}

  def get(self, key, *folder: pathlib.Path | None):
    (where,) = folder or (self.folder,)
    return cache.arrays(where, key, self.make)

  def test_makes_once(self):
    one, two = self.get([1, "k"]), self.get([1, "k"])
    self.assertEqual(self.made, 1)
    for arrays in (one, two):
      self.assertEqual(list(arrays), ["x", "y"])
      self.assertIsInstance(arrays["x"], np.memmap)
      np.testing.assert_array_equal(arrays["x"], np.arange(5))
      self.assertEqual(arrays["y"].dtype, np.int16)
    self.assertLen(os.listdir(self.folder), 1)

  def test_another_key_is_another_array(self):
    for key in ([1, "k"], [2, "k"], [1, "l"], [[1], "k"]):
      self.get(key)
    self.assertEqual(self.made, 4)

  def test_without_a_folder(self):
    self.assertEqual(list(self.get([1], None)), ["x", "y"])
    self.assertEqual(list(self.get([1], None)), ["x", "y"])
    self.assertEqual(self.made, 2)

  def test_what_failed_is_not_there(self):
    with (
      mock.patch.object(np, "save", side_effect=RuntimeError("full")),
      self.assertRaisesRegex(RuntimeError, "full"),
    ):
      self.get([1])
    self.assertEmpty(os.listdir(self.folder))
    self.get([1])
    self.assertEqual(self.made, 2)

  def test_many_writers(self):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
      for arrays in pool.map(self.get, [[1]] * 16):
        np.testing.assert_array_equal(arrays["x"], np.arange(5))
    self.assertLen(os.listdir(self.folder), 1)

  def test_refuses_what_is_damaged(self):
    self.get([1])
    (file,) = self.folder.glob("*/x.npy")
    file.write_bytes(file.read_bytes()[:-8])
    with self.assertRaisesRegex(ValueError, f"{file.parent}.*remove"):
      self.get([1])

  def test_refuses_a_place_that_cannot_be_written(self):
    file = pathlib.Path(self.create_tempfile().full_path)
    with self.assertRaisesRegex(ValueError, "data.megatron.cache.*another"):
      self.get([1], file / "sub")


if __name__ == "__main__":
  absltest.main()
