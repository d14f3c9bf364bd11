from absl.testing import absltest

from serve import page_tables
from serve import request as request_lib
from serve import task as task_lib


def task(*, order=0, priority=0, leader=None):
  return task_lib.Task(
    request=request_lib.Request(
      id=str(order), prompt=(1, 2), max_tokens=5, priority=priority
    ),
    order=order,
    tokens=[1, 2, 3],
    max_len=7,
    can_find=True,
    leader=leader,
  )


class TaskTest(absltest.TestCase):
  def test_rank(self):
    tasks = [
      task(order=0, priority=1),
      task(order=1, priority=0),
      task(order=2, priority=0),
    ]
    ranked = sorted(tasks, key=lambda x: x.rank)
    self.assertEqual([x.order for x in ranked], [1, 2, 0])

  def test_num_outputs(self):
    self.assertEqual(task().num_outputs, 1)

  def test_waits_for_its_leader(self):
    leader = task()
    follower = task(order=1, leader=leader)
    self.assertTrue(leader.is_ready)
    self.assertFalse(follower.is_ready)
    leader.is_prompt_launched = True
    self.assertTrue(follower.is_ready)

  def test_does_not_wait_for_one_that_is_over(self):
    leader = task()
    leader.is_over = True
    self.assertTrue(task(order=1, leader=leader).is_ready)


class StayTest(absltest.TestCase):
  def test_lengths(self):
    table = page_tables.PageTables({0: 4}, 4).open((), 0)
    stay = task_lib.Stay(
      task=task(), slot=1, table=table, num_found=0, regime=0, computed=2
    )
    self.assertEqual((stay.num_unread, stay.length), (1, 3))
    stay.num_unknown = 2
    self.assertEqual((stay.num_unread, stay.length), (1, 5))


if __name__ == "__main__":
  absltest.main()
