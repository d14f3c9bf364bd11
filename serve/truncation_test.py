from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from serve import truncation

_V = 300
_least_share = jax.jit(truncation.least_share)


def _kept(shares, *, top_k, top_p, min_p):
  """Which tokens are kept: one row, sorted, one token after the other."""
  shares = shares.astype(np.float64)
  kept = sorted(shares.tolist(), reverse=True)
  if top_k < len(kept):
    kept = [share for share in kept if share >= kept[top_k - 1]]
  needed, least = top_p * sum(kept), 0.0
  if top_p < 1:
    reached = 0.0
    for share in kept:
      reached, least = reached + share, share
      if reached >= needed:
        break
  return (shares >= max(kept[-1], least)) & (shares >= min_p)


class TruncationTest(parameterized.TestCase):
  @parameterized.product(
    kind=("smooth", "with ties", "flat", "peaked"), masked=(False, True)
  )
  def test_keeps_what_the_definition_keeps(self, kind, masked):
    rng = np.random.default_rng(0)
    rows = 64
    logits = rng.normal(size=(rows, _V)) * 2
    if kind == "with ties":
      logits = np.round(logits)
    if kind == "flat":
      logits /= 1000
    if kind == "peaked":
      logits *= 30
    if masked:
      logits[rng.random((rows, _V)) < 0.9] = -np.inf
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = shares.astype(np.float32)
    for top_k, top_p, min_p in (
      ([1, 2, 20, 64, 65, 200, _V, _V], [1.0], [0.0]),
      ([_V], [0.0, 0.1, 0.5, 0.9, 0.9999, 1.0], [0.0]),
      ([_V], [1.0], [0.0, 0.01, 0.5, 1.0]),
      ([1, 2, 20, 64, 65, 200, _V], [0.0, 0.3, 0.95, 1.0], [0.0, 0.1]),
    ):
      top_k = rng.choice(top_k, rows).astype(np.int32)
      top_p = rng.choice(top_p, rows).astype(np.float32)
      min_p = rng.choice(min_p, rows).astype(np.float32)
      least = np.asarray(
        _least_share(shares, top_k=top_k, top_p=top_p, min_p=min_p)
      )
      for row in range(rows):
        expected = _kept(
          shares[row], top_k=top_k[row], top_p=top_p[row], min_p=min_p[row]
        )
        # None below is ever chosen; processors may take these for 0.
        matters = shares[row] >= np.finfo(np.float32).tiny
        kept = (shares[row] >= least[row]) & matters
        np.testing.assert_array_equal(kept, expected & matters)
        self.assertTrue(kept.any())


if __name__ == "__main__":
  absltest.main()
