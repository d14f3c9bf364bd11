from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from data.megatron import compare as compare_lib


class CompareTest(parameterized.TestCase):
  def of(self, **arrays) -> compare_lib.Compare:
    return compare_lib.Compare(
      "gpt/g0", {f"gpt/g0/{name}": array for name, array in arrays.items()}
    )

  def test_what_is_equal(self):
    compare = self.of(a=np.arange(3))
    compare.array("a", np.arange(3))
    compare.value("v", 1, 1.0)
    compare.fields({"b": [1], "x": 2}, given={"x"}, required={"b": [1]})
    self.assertEqual(
      compare.result(),
      compare_lib.Result(name="gpt/g0", differences=(), num_compared=3),
    )

  @parameterized.parameters(
    ([1, 2, 4], r"a\[2\] is 3, not 4; 1 of 3 differ"),
    ([1, 2], r"a is int64\[3\], not int64\[2\]"),
    ([1.0, 2.0, 3.0], r"a is int64\[3\], not float64\[3\]"),
  )
  def test_an_array_that_differs(self, theirs, message):
    compare = self.of(a=np.array(theirs))
    compare.array("a", np.array([1, 2, 3]))
    (difference,) = compare.result().differences
    self.assertRegex(difference, message)

  def test_the_dtype_may_be_another(self):
    compare = self.of(a=np.array([1, 2], np.int32))
    compare.array("a", np.array([1, 2], np.int64), dtype=False)
    self.assertEmpty(compare.result().differences)

  def test_arrays_that_are_missing_or_too_many(self):
    compare = self.of(a=np.arange(3))
    with self.assertRaisesRegex(ValueError, "no array gpt/g0/b"):
      compare.read("b")
    self.assertEqual(
      compare.result().differences, ("gpt/g0/a is no known array",)
    )

  def test_arrays_of_other_cases_are_not_asked_for(self):
    compare = compare_lib.Compare("gpt/g0", {"gpt/g01/a": np.arange(3)})
    self.assertEmpty(compare.result().differences)

  @parameterized.parameters((1, True), (0, False), (3, "3"), (None, 0))
  def test_a_value_that_differs(self, ours, theirs):
    compare = self.of()
    compare.value("v", ours, theirs)
    self.assertEqual(
      compare.result().differences, (f"v is {ours}, not {theirs}",)
    )

  def test_fields(self):
    compare = self.of()
    compare.fields(
      {"a": 2, "more": 0, "seq": 4},
      given={"seq", "seed"},
      required={"a": 1, "b": 1},
      optional={"c": 1},
      where="train: ",
    )
    self.assertEqual(
      compare.result().differences,
      (
        "train: a is 1, not 2",
        "train: b is missing",
        "train: more is no known field of such a case",
      ),
    )


if __name__ == "__main__":
  absltest.main()
