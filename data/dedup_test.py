from absl.testing import absltest
from absl.testing import parameterized
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np

from data import dedup
from data import words


def text(seed, num_words=200):
  rng = np.random.default_rng(seed)
  return " ".join(f"w{i}" for i in rng.integers(0, 5000, num_words))


def changed(original, *places):
  spelled = original.split()
  for place in places:
    spelled[place] = f"changed{place}"
  return " ".join(spelled)


def similarity(one, two):
  sets = []
  for value in (one, two):
    spelled = words.split(value)
    sets.append({tuple(spelled[i : i + 5]) for i in range(len(spelled) - 4)})
  return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def near_slowly(signatures, compared, threshold):
  """Every document is compared with every one that was kept before it."""
  kept, dropped = [], np.zeros(len(signatures), bool)
  for number in np.flatnonzero(compared):
    equal = [(signatures[k] == signatures[number]).mean() for k in kept]
    dropped[number] = any(share >= threshold for share in equal)
    if not dropped[number]:
      kept.append(number)
  return dropped


class DedupTest(parameterized.TestCase):
  def near(self, texts, threshold=0.8):
    signatures = np.array([dedup.signature(value) for value in texts])
    everything = np.ones(len(texts), bool)
    return dedup.near_copies(
      signatures, everything, threshold=threshold
    ).tolist()

  def test_signatures_estimate_the_similarity(self):
    for changes in (1, 2, 5, 20):
      errors = []
      for seed in range(30):
        one = text(seed)
        two = changed(one, *range(0, 200, 200 // changes)[:changes])
        equal = dedup.signature(one) == dedup.signature(two)
        errors.append(np.mean(equal) - similarity(one, two))
      # The standard error of one estimate is at most 0.044.
      self.assertLess(abs(np.mean(errors)), 0.03)

  def test_a_signature_is_of_words(self):
    one, two = (
      dedup.signature("Some words, here!"),
      dedup.signature("some words here"),
    )
    np.testing.assert_array_equal(one, two)
    self.assertFalse(dedup.signature("!?").any())

  def test_signatures_stay_as_they_are(self):
    # Of two machines that share the work, both must compute the same.
    self.assertEqual(
      dedup.signature("one two three four five six")[:4].tolist(),
      [3571084926, 3536515436, 3669887724, 3698762334],
    )

  def test_copies(self):
    texts = ["a", "b", "a", "A", "b", "a ", "a"]
    digests = np.array([dedup.digest(value) for value in texts])
    everything = np.ones(len(texts), bool)
    self.assertEqual(
      dedup.copies(digests, everything).tolist(),
      [False, False, True, False, True, False, True],
    )
    everything[0] = False
    self.assertEqual(
      dedup.copies(digests, everything).tolist(),
      [False, False, False, False, True, False, True],
    )
    none = np.zeros((0, 2), np.uint64)
    self.assertEmpty(dedup.copies(none, np.zeros(0, bool)))

  def test_near_copies(self):
    first, second = text(1), text(2)
    texts = [
      first,
      second,
      changed(first, 7),
      changed(second, *range(0, 200, 9)),
    ]
    self.assertEqual(self.near(texts), [False, False, True, False])
    self.assertEqual(self.near(texts, 0.2), [False, False, True, True])
    self.assertEqual(self.near(texts[:1]), [False])

  def test_a_chain_does_not_end_in_one(self):
    # Each is like the one before, the last is not like the first.
    chain = [text(1)]
    for step in range(12):
      chain.append(changed(chain[-1], *range(5 + 16 * step, 13 + 16 * step)))
    dropped = self.near(chain)
    kept = [c for c, gone in zip(chain, dropped, strict=True) if not gone]
    self.assertGreater(len(kept), 1)
    for value, gone in zip(chain, dropped, strict=True):
      if gone:
        self.assertGreater(max(similarity(value, k) for k in kept), 0.7)

  @settings(max_examples=60, deadline=None)
  @given(st.data())
  def test_is_what_comparing_all_gives(self, data):
    # Bands of one hash find every pair, so banding decides nothing.
    count = data.draw(st.integers(1, 12))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    signatures = rng.integers(0, 3, (count, 8)).astype(np.uint32)
    compared = rng.random(count) < 0.8
    threshold = data.draw(st.sampled_from([0.125, 0.25, 0.375]))
    self.assertEqual(dedup.rows_of_a_band(threshold, 8), 1)
    np.testing.assert_array_equal(
      dedup.near_copies(signatures, compared, threshold=threshold),
      near_slowly(signatures, compared, threshold),
    )

  @parameterized.parameters((0.5, 3), (0.7, 5), (0.8, 7), (0.9, 12), (1.0, 128))
  def test_bands(self, threshold, rows):
    self.assertEqual(dedup.rows_of_a_band(threshold, 128), rows)
    found = 1 - (1 - threshold**rows) ** (128 // rows)
    self.assertGreaterEqual(found, 0.95)

  def test_finds_the_copies_among_many(self):
    originals = [text(seed, 60) for seed in range(400)]
    near = [changed(value, 30) for value in originals[:200]]
    dropped = self.near([*originals, *near], threshold=0.75)
    self.assertFalse(any(dropped[:400]))
    # A pair has 51 of 61 shingles in common, 0.84; an estimate may be less.
    self.assertGreater(sum(dropped[400:]), 180)


if __name__ == "__main__":
  absltest.main()
