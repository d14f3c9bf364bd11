import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import ml_dtypes
import numpy as np

from model.hf import tensors

_DTYPES = (ml_dtypes.bfloat16, np.float16, np.float32, np.float64)


class CheckFiniteTest(parameterized.TestCase):
  @parameterized.parameters(*_DTYPES)
  def test_finds_the_first_of_all(self, dtype):
    # The largest and the smallest numbers are finite.
    limits = ml_dtypes.finfo(dtype)
    array = np.full((40, 5000), limits.max, dtype)
    array[1] = limits.min
    array[2] = limits.smallest_subnormal
    tensors.check_finite("w", array)
    tensors.check_finite("w", array[:, ::2])
    tensors.check_finite("w", array[:0])
    array[33, 7] = -np.inf
    array[39, 4999] = np.nan
    with self.assertRaisesRegex(
      ValueError, r"w has 1 NaN and 1 infinite .* of 200000.*\[33, 7\]"
    ):
      tensors.check_finite("w", array)

  def test_takes_a_scalar(self):
    tensors.check_finite("w", np.zeros((), np.float32))
    with self.assertRaisesRegex(ValueError, r"1 NaN.*at \[\]"):
      tensors.check_finite("w", np.full((), np.nan, np.float32))


class ReadIntoTest(absltest.TestCase):
  def test_reads_at_an_offset(self):
    file = pathlib.Path(self.create_tempfile().full_path)
    file.write_bytes(bytes(range(20)))
    array = np.empty((2, 2), np.uint16)
    tensors.read_into(array, file, 3)
    self.assertEqual(array.tobytes(), bytes(range(3, 11)))
    with self.assertRaisesRegex(ValueError, "ends at byte 20 where 21"):
      tensors.read_into(array, file, 13)
    file.unlink()
    with self.assertRaisesRegex(ValueError, "cannot be read"):
      tensors.read_into(array, file, 0)


if __name__ == "__main__":
  absltest.main()
