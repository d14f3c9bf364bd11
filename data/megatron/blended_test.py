import math

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from data.megatron import blended
from data.megatron import split as split_lib

_OPTIONS = blended.Options(seq_len=10, seed=0, split=split_lib.Split.TRAIN)
# 1,000 and 500 tokens: 99 and 49 samples an epoch.
_LENGTHS = [np.full(100, 10, np.int32), np.full(50, 10, np.int32)]


def _build(weights, size, lengths=_LENGTHS, **options):
  return blended.build(
    lengths,
    blended.Request(weights=weights, size=size),
    book_ends=split_lib.EVERYTHING,
    names=[f"source {number}" for number in range(len(lengths))],
    options=blended.Options(
      seq_len=10, seed=0, split=split_lib.Split.TRAIN, **options
    ),
  )


class BlendedTest(parameterized.TestCase):
  def test_shares_are_rounded_up(self):
    shares = blended.shares(
      blended.Request(weights=[7, 2, 1], size=2000),
      num_sources=3,
      surplus=0.005,
    )
    targets = [math.ceil(2000 * w) for w in np.array([7, 2, 1.0]) / 10]
    self.assertEqual(shares.size, sum(targets))
    self.assertEqual(shares.asked, [math.ceil(t * 1.005) for t in targets])

  def test_a_blend_by_weights(self):
    made = _build([0.8, 0.2], 200)
    self.assertEqual(made.size, 200)
    self.assertEqual(made.asked, [161, 41])
    self.assertEqual([index.plan.num_epochs for index in made.indices], [2, 1])
    sources, numbers = made.locate(np.arange(200))
    self.assertEqual(np.bincount(sources).tolist(), [160, 40])
    self.assertEqual(numbers[sources == 1].tolist(), list(range(40)))

  def test_weights_sum_to_one_twice(self):
    made = _build([0.7, 0.2], 100)
    once = np.array([0.7, 0.2]) / np.sum([0.7, 0.2])
    assert made.weights is not None
    self.assertEqual(made.weights, (once / np.sum(once)).tolist())

  def test_a_blend_by_lengths_ends_with_the_sources(self):
    made = _build(None, 10**6)
    self.assertEqual(made.size, 99 + 49)
    self.assertIsNone(made.limits)
    self.assertEqual(_build(None, 30).size, 30)

  def test_a_blend_of_all_there_is(self):
    made = _build(None, None)
    self.assertEqual(made.weights, [99.0, 49.0])
    sources, _ = made.locate(np.arange(made.size))
    self.assertEqual(np.bincount(sources).tolist(), [99, 49])

  def test_one_source_is_a_blend_if_it_has_a_weight(self):
    plain = _build(None, 99, _LENGTHS[:1])
    self.assertIsNone(plain.blend)
    self.assertEqual((plain.asked, plain.size), ([99], 99))
    weighed = _build([1.0], 99, _LENGTHS[:1])
    self.assertIsNotNone(weighed.blend)
    # The surplus takes it into a second epoch.
    self.assertEqual((weighed.asked, weighed.size), ([100], 99))
    self.assertEqual(weighed.indices[0].plan.num_epochs, 2)

  def test_a_last_sample_that_is_not_full(self):
    lengths = [np.array([25], np.int32)]
    for split, expected in (("TRAIN", 2), ("VALID", 3), ("TEST", 2)):
      index = blended.build_source(
        lengths[0],
        None,
        book_ends=split_lib.EVERYTHING,
        name="a",
        options=blended.Options(
          seq_len=10, seed=0, split=split_lib.Split[split], drop_last=False
        ),
      )
      self.assertEqual(index.num_samples, expected)

  @parameterized.parameters(
    ([1.0], 5, "1 weights of 2"),
    ([1.0, 0.0], 5, "must be positive"),
    ([1.0, -1.0], 5, "must be positive"),
    ([1.0, math.nan], 5, "must be positive"),
    ([1.0, math.inf], 5, "must be positive"),
    ([1.0, 1.0], None, "number of samples"),
    ([1.0, 1.0], -1, "give 0 or more"),
  )
  def test_refuses_requests(self, weights, size, message):
    with self.assertRaisesRegex(ValueError, message):
      _build(weights, size)

  def test_refuses_a_source_without_samples(self):
    lengths = [_LENGTHS[0], np.array([3], np.int32)]
    with self.assertRaisesRegex(ValueError, "source 1 is shorter"):
      _build(None, 5, lengths)
    lengths = [_LENGTHS[0], np.array([0], np.int32)]
    with self.assertRaisesRegex(ValueError, "source 1: .*no tokens"):
      _build([1, 1], 5, lengths)

  def test_refuses_to_take_more_than_there_is(self):
    # One sample each; then weights with which the second source gives both.
    lengths = [np.array([11], np.int32), np.array([11], np.int32)]
    made = _build([1, 1], 2, lengths, surplus=0.0)
    request = blended.Request(weights=[1, 9], size=2)
    with self.assertRaisesRegex(
      ValueError, "takes 2 samples of b, which has 1; raise .*surplus"
    ):
      blended.combine(
        made.indices,
        request,
        names=["a", "b"],
        options=_OPTIONS,
      )


if __name__ == "__main__":
  absltest.main()
