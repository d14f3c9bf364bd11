import pickle
import threading

from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
from hypothesis import strategies as st
import numpy as np

from data.megatron import blend as blend_lib

_ROUNDINGS = st.sampled_from(["x86", "fused"])
_WEIGHTS = st.one_of(
  st.lists(st.integers(1, 9), min_size=1, max_size=12),
  st.lists(st.integers(1, 99).map(lambda x: x / 100), min_size=2, max_size=30),
  st.lists(st.integers(0, 12).map(lambda x: 2.0**-x), min_size=2, max_size=9),
  st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=9),
)


def _order(blend: blend_lib.Blend) -> tuple[list[int], list[int]]:
  sources, numbers = blend.locate(np.arange(blend.size))
  return sources.tolist(), numbers.tolist()


class BlendTest(parameterized.TestCase):
  @hypothesis.settings(max_examples=40, deadline=None)
  @hypothesis.given(
    weights=_WEIGHTS, size=st.integers(0, 2000), rounding=_ROUNDINGS
  )
  def test_equals_the_rule(self, weights, size, rounding):
    weights = blend_lib.normalize(weights)
    expected = blend_lib.reference(weights, size, rounding=rounding)
    blend = blend_lib.Blend(weights, size, rounding=rounding)
    sources, numbers = _order(blend)
    self.assertEqual(sources, expected)
    given = [0] * len(weights)
    for source, number in zip(sources, numbers, strict=True):
      self.assertEqual(number, given[source])
      given[source] += 1
    self.assertEqual(blend.counts_before(size).tolist(), given)

  @hypothesis.settings(max_examples=40, deadline=None)
  @hypothesis.given(
    limits=st.lists(st.integers(1, 400), min_size=1, max_size=9),
    rounding=_ROUNDINGS,
  )
  def test_equals_the_rule_with_limits(self, limits, rounding):
    total = sum(limits)
    weights = [limit / total for limit in limits]
    expected = blend_lib.reference(
      weights, total, rounding=rounding, limits=limits
    )
    blend = blend_lib.Blend(weights, total, rounding=rounding, limits=limits)
    self.assertEqual(_order(blend)[0], expected)
    self.assertEqual(blend.counts_before(total).tolist(), limits)

  @parameterized.product(
    weights=[
      [0.7, 0.2, 0.1],
      [0.05, 0.9, 0.05],
      [1.0] * 20,
      # Rare sources, of which blocks cannot guess who had one.
      [1.0, 1e-5, 3e-6, 2e-6, 1e-8, 1e-9, 1e-12],
      [0.6, 0.4, 3.3e-4, 6.8e-5, 8.6e-6, 3.5e-8, 8e-12],
    ],
    rounding=["x86", "fused"],
  )
  def test_equals_the_rule_over_spans(self, weights, rounding):
    size = blend_lib.SPAN + 2000
    weights = blend_lib.normalize(weights)
    blend = blend_lib.Blend(weights, size, rounding=rounding)
    # A later span first: its counts are made without its order.
    last, _ = blend.locate(np.arange(blend_lib.SPAN, size))
    first, _ = blend.locate(np.arange(blend_lib.SPAN))
    if rounding == "x86":
      expected = blend_lib.reference(weights, size, rounding=rounding)
      self.assertEqual([*first.tolist(), *last.tolist()], expected)
    else:
      # Exact fractions are slow: a piece at a time, from the counts before.
      expected = blend_lib.reference(weights, 5000, rounding=rounding)
      self.assertEqual(first.tolist()[:5000], expected)
      again = blend_lib.Blend(weights, size, rounding=rounding)
      self.assertEqual(_order(again)[0], [*first.tolist(), *last.tolist()])

  def test_the_roundings_differ(self):
    orders = [
      _order(
        blend_lib.Blend(
          blend_lib.normalize([0.7, 0.2, 0.1]), 10_000, rounding=rounding
        )
      )[0]
      for rounding in ("x86", "fused")
    ]
    self.assertNotEqual(*orders)

  @hypothesis.settings(max_examples=6, deadline=None)
  @hypothesis.given(data=st.data(), weights=_WEIGHTS)
  def test_any_rows_in_any_order(self, data, weights):
    blend = blend_lib.Blend(blend_lib.normalize(weights), 3 * blend_lib.SPAN)
    rows = np.array(data.draw(st.lists(st.integers(0, blend.size - 1))), int)
    sources, numbers = blend.locate(rows)
    again = blend_lib.Blend(blend_lib.normalize(weights), blend.size)
    all_sources, all_numbers = again.locate(np.arange(blend.size))
    np.testing.assert_array_equal(sources, all_sources[rows])
    np.testing.assert_array_equal(numbers, all_numbers[rows])

  def test_known_counts_give_the_same_order(self):
    weights = blend_lib.normalize([0.7, 0.2, 0.1])
    size = 2 * blend_lib.SPAN + 77
    made = blend_lib.Blend(weights, size)
    known = blend_lib.Blend(weights, size)
    known.know(made.counts())
    self.assertEqual(made.counts().shape, (3, 3))
    rows = np.array([size - 1, 0, blend_lib.SPAN])
    np.testing.assert_array_equal(known.locate(rows), made.locate(rows))

  def test_threads_and_processes_get_the_same(self):
    weights = blend_lib.normalize([5, 3, 1])
    rows = np.arange(0, 4 * blend_lib.SPAN, 7001)
    expected = blend_lib.Blend(weights, 4 * blend_lib.SPAN).locate(rows)
    shared = blend_lib.Blend(weights, 4 * blend_lib.SPAN)
    results = []
    threads = [
      threading.Thread(target=lambda: results.append(shared.locate(rows)))
      for _ in range(4)
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    results.append(pickle.loads(pickle.dumps(shared)).locate(rows))
    for result in results:
      np.testing.assert_array_equal(result, expected)

  def test_refuses_rows_outside(self):
    blend = blend_lib.Blend([0.5, 0.5], 10)
    for row in (-1, 10):
      with self.assertRaisesRegex(ValueError, r"not all in \[0, 10\)"):
        blend.locate(np.array([0, row]))

  def test_normalizes_as_numpy_sums(self):
    weights = [0.1] * 10
    np.testing.assert_array_equal(
      blend_lib.normalize(weights), np.array(weights) / np.sum(weights)
    )


if __name__ == "__main__":
  absltest.main()
