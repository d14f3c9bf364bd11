import random

from absl.testing import absltest
from absl.testing import parameterized

from serve import ngram


def _search(text, *, min_ngram, max_ngram, num_tokens):
  """The definition."""
  for length in range(max_ngram, min_ngram - 1, -1):
    last = text[len(text) - length :]
    for start in range(len(text) - length - 1, -1, -1):
      if text[start : start + length] == last:
        whole = list(text)
        for offset in range(num_tokens):
          whole.append(whole[start + length + offset])
        return whole[len(text) :]
  return []


class LookupTest(parameterized.TestCase):
  @parameterized.product(
    sizes=((1, 1), (1, 3), (2, 4), (3, 3)), alphabet=(2, 5)
  )
  def test_is_what_a_search_finds(self, sizes, alphabet):
    rng = random.Random(repr((sizes, alphabet)))
    min_ngram, max_ngram = sizes
    for _ in range(10):
      lookup = ngram.Lookup(min_ngram=min_ngram, max_ngram=max_ngram)
      text: list[int] = []
      while len(text) < 60:
        tokens = [
          rng.randrange(alphabet) for _ in range(rng.choice([0, 1, 1, 7]))
        ]
        lookup.extend(tokens)
        text += tokens
        self.assertLen(lookup, len(text))
        num_tokens = rng.randrange(6)
        self.assertEqual(
          lookup.propose(num_tokens),
          _search(
            text,
            min_ngram=min_ngram,
            max_ngram=max_ngram,
            num_tokens=num_tokens,
          ),
        )

  def test_longest_first_then_newest(self):
    lookup = ngram.Lookup(min_ngram=1, max_ngram=2)
    lookup.extend([1, 2, 7, 1, 2, 8, 5, 2, 9, 1, 2])
    self.assertEqual(lookup.propose(2), [8, 5])
    lookup.extend([2])
    self.assertEqual(lookup.propose(1), [2])

  def test_goes_on_repeating(self):
    lookup = ngram.Lookup(min_ngram=2, max_ngram=4)
    lookup.extend([0, 1, 2, 3] * 2)
    self.assertEqual(lookup.propose(6), [0, 1, 2, 3, 0, 1])
    lookup.extend([9] * 5)
    self.assertEqual(lookup.propose(3), [9, 9, 9])

  def test_nothing_found(self):
    lookup = ngram.Lookup(min_ngram=2, max_ngram=3)
    self.assertEmpty(lookup.propose(3))
    lookup.extend([1, 2, 3, 2])
    self.assertEmpty(lookup.propose(3))

  @parameterized.parameters((0, 2), (3, 2))
  def test_sizes_that_make_no_sense(self, min_ngram, max_ngram):
    with self.assertRaisesRegex(ValueError, "1 <= min_ngram <= max_ngram"):
      ngram.Lookup(min_ngram=min_ngram, max_ngram=max_ngram)


if __name__ == "__main__":
  absltest.main()
