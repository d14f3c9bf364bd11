from absl.testing import absltest

from serve import fairness


class FairnessTest(absltest.TestCase):
  def test_counts(self):
    served = fairness.Fairness()
    served.charge("a", 2)
    served.charge("a", 3)
    self.assertEqual(served.served("a"), 5)
    self.assertEqual(served.served("b"), 0)

  def test_nobody_saves_up(self):
    served = fairness.Fairness()
    served.charge("a", 10)
    served.charge("b", 20)
    served.arrive("c", ["a", "b"])
    self.assertEqual(served.served("c"), 10)

  def test_nobody_gets_rid_of_what_they_had(self):
    served = fairness.Fairness()
    served.charge("a", 10)
    served.charge("b", 20)
    served.leave("b")
    served.arrive("b", ["a"])
    self.assertEqual(served.served("b"), 20)

  def test_begins_where_the_last_one_left(self):
    served = fairness.Fairness()
    served.charge("a", 10)
    served.leave("a")
    served.arrive("b", [])
    self.assertEqual(served.served("b"), 10)

  def test_forgets_some_if_there_are_too_many(self):
    served = fairness.Fairness()
    for i in range(20_000):
      served.charge(str(i), i)
      served.arrive(str(i), ["0"])
    self.assertLessEqual(len(served._served), 10_000)
    self.assertIn("0", served._served)
    self.assertEqual(served.served("19999"), 19_999)


if __name__ == "__main__":
  absltest.main()
