from typing import Any

from absl.testing import absltest

from serve import fairness
from serve import planner as planner_lib
from serve import request as request_lib
from serve import scheduler_config
from serve import stays as stays_lib
from serve import task as task_lib
from serve import waiting as waiting_lib


class PlannerTest(absltest.TestCase):
  def begin(self, **changes):
    fields: dict[str, Any] = {
      "max_rows": 3,
      "prefill_tokens": 16,
      "max_len": 32,
      "page_size": 4,
      "num_pages": {0: 25},
    }
    config = scheduler_config.SchedulerConfig(**(fields | changes))
    served = fairness.Fairness()
    self.waiting = waiting_lib.Waiting(served)
    self.stays = stays_lib.Stays(config)
    self.served = served
    self.planner = planner_lib.Planner(
      config,
      waiting=self.waiting,
      pace=waiting_lib.Pace(),
      stays=self.stays,
      served=served,
    )
    self.num = 0

  def add(self, name, num=3, *, max_len=32, **fields):
    self.num += 1
    prompt = tuple(range(self.num, self.num + num))
    request = request_lib.Request(
      id=name, prompt=prompt, max_tokens=max_len - num, **fields
    )
    task = task_lib.Task(
      request=request,
      order=self.num,
      tokens=list(prompt),
      max_len=max_len,
      can_find=True,
    )
    self.waiting.add(task)
    return task

  def next_plan(self) -> planner_lib.Plan:
    plan = self.planner.plan(0.0)
    assert plan is not None
    return plan

  def plan(self) -> str:
    """The step as text, such as `read a:16 b:4`, after its update."""
    plan = self.planner.plan(0.0)
    if plan is None:
      return ""
    for stay, row in zip(plan.stays, plan.rows, strict=True):
      if row.samples:
        stay.task.tokens.append(9)
        stay.num_unknown -= 1
    kind = "read" if plan.rows[0].tokens else "continue"
    rows = [f"{row.request_id}:{row.num_tokens}" for row in plan.rows]
    return " ".join([kind, *rows])

  def test_nothing_to_do(self):
    self.begin()
    self.assertIsNone(self.planner.plan(0.0))

  def test_takes_turns(self):
    self.begin()
    self.add("a")
    self.assertEqual(self.plan(), "read a:3")
    self.add("b", 20)
    self.assertEqual(self.plan(), "continue a:1")
    self.assertEqual(self.plan(), "read b:16")
    self.assertEqual(self.plan(), "continue a:1")
    self.assertEqual(self.plan(), "read b:4")
    self.assertEqual(self.plan(), "continue a:1 b:1")
    self.assertEqual(self.plan(), "continue a:1 b:1")

  def test_admits_what_can_be_read_next(self):
    self.begin()
    for name in "abc":
      self.add(name, 20)
    plan = self.next_plan()
    self.assertEqual([a.request.id for a in plan.admissions], ["a"])
    self.assertEqual(plan.admissions[0].slot, plan.rows[0].slot)
    self.assertEqual(
      plan.admissions[0].tokens, plan.stays[0].task.request.prompt
    )
    self.assertEqual(self.plan(), "read a:4")
    self.assertLen(self.stays, 2)

  def test_a_large_request_is_not_passed(self):
    self.begin(num_pages={0: 9})
    self.add("a", 16)
    self.plan()
    self.add("b", 20)
    self.add("c", 1)
    self.assertEqual(self.plan(), "continue a:1")
    self.assertEqual(self.plan(), "continue a:1")
    self.assertLen(self.waiting, 2)

  def test_unknown_tokens_are_counted(self):
    self.begin()
    self.add("a", max_len=6)
    num = 0
    while self.planner.plan(0.0) is not None:
      num += 1
    self.assertEqual(num, 3)

  def test_a_constraint_waits_for_its_tokens(self):
    self.begin(num_drafts=2)
    self.add("a")
    plan = self.next_plan()
    self.assertTrue(self.planner.is_fed_back(plan.stays[0]))
    self.assertIsNone(self.planner.plan(0.0))
    plan.stays[0].task.tokens.append(9)
    plan.stays[0].num_unknown = 0
    self.assertEqual(self.plan(), "continue a:3")

  def test_fewer_guesses_if_pages_are_short(self):
    self.begin(num_pages={0: 9}, num_drafts=4)
    self.add("a", 15)
    self.add("b", 13)
    self.assertEqual(self.plan(), "read a:15")
    self.assertEqual(self.plan(), "continue a:5")
    # The other one needs four pages; there are three.
    self.assertEqual(self.plan(), "continue a:5")
    self.assertEqual(self.planner.num_preemptions, 0)

  def test_the_least_deserving_makes_room(self):
    self.begin(num_pages={0: 9}, prefix_caching=False)
    self.add("a", 15)
    self.add("b", 10)
    self.assertEqual(self.plan(), "read a:15")
    self.plan()
    self.assertEqual(self.plan(), "read b:10")
    steps = [self.plan() for _ in range(14)]
    self.assertIn("continue a:1 b:1", steps)
    # One page is missing: the other one's three come free.
    self.assertEqual(self.planner.num_preemptions, 1)
    self.assertEqual(steps[-1], "continue a:1")
    self.assertEqual([task.request.id for task in self.waiting], ["b"])

  def test_the_least_deserving_waits(self):
    self.begin(num_pages={0: 9}, prefix_caching=False)
    self.add("a", 15, priority=-1)
    self.plan()
    self.add("b", 11)
    while self.plan() != "continue a:1 b:1":
      pass
    # Five pages and three are all: the other one keeps its own.
    steps = [self.plan() for _ in range(3)]
    self.assertEqual(steps[-1], "continue a:1")
    self.assertEqual(self.planner.num_preemptions, 0)
    self.assertLen(self.stays, 2)

  def test_charges_users_for_what_is_computed(self):
    self.begin()
    self.add("a", 3, user="x")
    self.plan()
    self.assertEqual(self.served.served("x"), 3 * fairness.PROMPT_TOKEN)

  def test_a_turn(self):
    self.begin(turns=(5,))
    self.add("a", 4)
    steps = [self.plan() for _ in range(4)]
    self.assertEqual(
      steps, ["read a:4", "continue a:1", "read a:6", "continue a:1"]
    )


if __name__ == "__main__":
  absltest.main()
