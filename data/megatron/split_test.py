import itertools

from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
from hypothesis import strategies as st

from data.megatron import split


class SplitTest(parameterized.TestCase):
  @parameterized.parameters(
    ("1,0,0", (0.0, 1.0), None, None),
    ("1", (0.0, 1.0), None, None),
    ("0,0,2", None, None, (0.0, 1.0)),
    ("50,25,25", (0.0, 0.5), (0.5, 0.75), (0.75, 1.0)),
    (" 2 / 1 : 1.", (0.0, 0.5), (0.5, 0.75), (0.75, 1.0)),
    (".5,.5", (0.0, 0.5), (0.5, 1.0), None),
  )
  def test_book_ends(self, text, *expected):
    self.assertEqual(split.parse(text), expected)

  def test_rounds_as_doubles_do(self):
    train, valid, test = split.parse("969,30,1")
    self.assertEqual(train, (0.0, 0.969))
    self.assertEqual(valid, (0.969, 0.969 + 0.03))
    self.assertEqual(test, (0.969 + 0.03, 0.969 + 0.03 + 0.001))

  @parameterized.parameters(
    "", "0,0,0", "1,2,3,4", "-1,2,3", "1e2,1,1", "1.2.3,1", ".", "inf,1,1"
  )
  def test_refuses(self, text):
    with self.assertRaisesRegex(ValueError, "data.megatron.split is .*969"):
      split.parse(text)

  @parameterized.parameters(
    ((0.0, 0.5), 1, (0, 0)),  # Half goes to the even number.
    ((0.5, 1.0), 1, (0, 1)),
    ((0.0, 0.5), 3, (0, 2)),
    ((0.0, 1.0), 7, (0, 7)),
  )
  def test_bounds(self, book_ends, num_sequences, expected):
    self.assertEqual(split.bounds(book_ends, num_sequences), expected)

  @hypothesis.given(
    shares=st.lists(st.integers(0, 999), min_size=1, max_size=3),
    num_sequences=st.integers(0, 10**6),
  )
  def test_every_sequence_is_in_one_split(self, shares, num_sequences):
    hypothesis.assume(sum(shares))
    matrix = split.parse(",".join(str(share) for share in shares))
    parts = [
      split.bounds(ends, num_sequences) for ends in matrix if ends is not None
    ]
    self.assertEqual(parts[0][0], 0)
    self.assertEqual(parts[-1][1], num_sequences)
    for (_, stop), (start, _) in itertools.pairwise(parts):
      self.assertEqual(stop, start)


if __name__ == "__main__":
  absltest.main()
