from absl.testing import absltest

from serve import guard


class _Broken:
  def masks(self, drafts):
    raise RuntimeError("no masks")

  def accept(self, tokens):
    raise KeyError(tokens[0])

  @property
  def is_complete(self):
    raise RuntimeError("no end")


class _Sound:
  is_complete = True

  def __init__(self):
    self.accepted = []

  def masks(self, drafts):
    return drafts

  def accept(self, tokens):
    self.accepted += tokens


class GuardTest(absltest.TestCase):
  def test_every_error_is_the_requests_own(self):
    constraint = guard.Constraint(_Broken())
    with self.assertRaisesRegex(ValueError, "no masks"):
      constraint.masks([])
    with self.assertRaisesRegex(ValueError, "failed: 7"):
      constraint.accept([7])
    with self.assertRaisesRegex(ValueError, "no end"):
      _ = constraint.is_complete

  def test_passes_on(self):
    inner = _Sound()
    constraint = guard.Constraint(inner)
    self.assertEqual(constraint.masks([3]), [3])
    constraint.accept([1, 2])
    self.assertEqual(inner.accepted, [1, 2])
    self.assertTrue(constraint.is_complete)


if __name__ == "__main__":
  absltest.main()
