from absl.testing import absltest

from serve import fairness
from serve import request as request_lib
from serve import task as task_lib
from serve import waiting


class WaitingTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.served = fairness.Fairness()
    self.waiting = waiting.Waiting(self.served)
    self.num = 0

  def task(self, name, *, user="", priority=0, num=1, leader=None):
    self.num += 1
    return task_lib.Task(
      request=request_lib.Request(
        id=name, prompt=(1,) * num, max_tokens=1, user=user, priority=priority
      ),
      order=self.num,
      tokens=[1] * num,
      max_len=num + 1,
      can_find=True,
      leader=leader,
    )

  def add(self, name, **kwargs):
    task = self.task(name, **kwargs)
    self.waiting.add(task)
    return task

  def names(self):
    return "".join(task.request.id for task in self.waiting)

  def test_earliest_first(self):
    for name in "abc":
      self.add(name, num=2)
    self.assertEqual(self.names(), "abc")
    self.assertLen(self.waiting, 3)
    self.assertEqual(self.waiting.num_tokens, 6)

  def test_priority_before_all(self):
    self.add("a", priority=1)
    self.add("b")
    self.add("c", priority=-1)
    self.assertEqual(self.names(), "cba")

  def test_those_who_come_back_are_first_in_their_class(self):
    tasks = {name: self.add(name) for name in "abc"}
    urgent = self.add("u", priority=-1)
    for task in (tasks["a"], tasks["b"], urgent):
      self.waiting.remove(task)
    # The newer one had to make room first.
    self.waiting.put_back(tasks["b"])
    self.waiting.put_back(tasks["a"])
    self.assertEqual(self.names(), "abc")
    self.waiting.put_back(urgent)
    self.assertEqual(self.names(), "uabc")

  def test_the_user_who_was_served_least(self):
    for i in range(3):
      self.add(f"{i}", user="x")
    self.add("y", user="y")
    self.assertEqual(self.names(), "012y")
    self.served.charge("x", 1)
    self.assertEqual(self.names(), "y012")

  def test_users_share_evenly(self):
    # One asks for much at once, others for little, later; costs are equal.
    for _ in range(30):
      self.add("x", user="x")
    order = ""
    for i in range(30):
      if i == 10:
        for _ in range(5):
          self.add("y", user="y")
      task = self.waiting.first()
      assert task is not None
      self.waiting.remove(task)
      self.served.charge(task.request.user, 1)
      order += task.request.id
    self.assertEqual(order[:10], "x" * 10)
    self.assertEqual(order[10:20].count("y"), 5)
    self.assertEqual(order[20:], "x" * 10)

  def test_who_waits_for_another_lets_others_pass(self):
    leader = self.add("a")
    follower = self.add("b", leader=leader)
    other = self.add("c")
    self.waiting.remove(leader)
    self.assertIs(self.waiting.first(), other)
    leader.is_prompt_launched = True
    self.assertIs(self.waiting.first(), follower)
    leader.is_prompt_launched, leader.is_over = False, True
    self.assertIs(self.waiting.first(), follower)

  def test_nothing_is_left(self):
    tasks = [
      self.add(f"{i}", user=f"{i % 2}", priority=i % 3) for i in range(9)
    ]
    for task in tasks[:4]:
      self.waiting.remove(task)
      self.waiting.put_back(task)
    for task in tasks:
      self.waiting.remove(task)
    self.assertIsNone(self.waiting.first())
    self.assertEmpty(self.waiting)
    self.assertEqual(self.waiting.num_tokens, 0)
    self.assertEmpty(self.waiting._classes)
    self.assertEmpty(self.waiting._num_of)


class PaceTest(absltest.TestCase):
  def test_is_that_of_the_queue(self):
    pace = waiting.Pace()
    for i in range(100):
      pace.tick(3.0 * i, is_busy=True)
    self.assertAlmostEqual(pace.seconds(10), 30, delta=0.1)
    self.assertEqual(pace.seconds(1000), 60)
    self.assertEqual(pace.seconds(0), 1)

  def test_idle_time_does_not_count(self):
    pace = waiting.Pace()
    for i in range(100):
      pace.tick(1000.0 * i, is_busy=False)
    self.assertEqual(pace.seconds(1), 1)


if __name__ == "__main__":
  absltest.main()
