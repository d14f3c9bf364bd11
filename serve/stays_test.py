from typing import Any

from absl.testing import absltest

from serve import request as request_lib
from serve import scheduler_config
from serve import stays as stays_lib
from serve import task as task_lib


def _task(*, tokens, order=0, priority=0, can_find=True):
  request = request_lib.Request(
    id=str(order), prompt=tuple(tokens), max_tokens=8, priority=priority
  )
  return task_lib.Task(
    request=request,
    order=order,
    tokens=list(tokens),
    max_len=len(tokens) + 8,
    can_find=can_find,
  )


def _stays(**changes):
  fields: dict[str, Any] = {
    "max_rows": 3,
    "prefill_tokens": 16,
    "max_len": 32,
    "page_size": 4,
    "num_pages": {0: 9},
  }
  config = scheduler_config.SchedulerConfig(**(fields | changes))
  config.check()
  return stays_lib.Stays(config)


def _open(stays, task):
  stay = stays.open(task)
  assert stay is not None
  return stay


def _compute(stays, stay):
  assert stays.grow(stay, stay.num_unread)
  stay.computed = len(stay.task.tokens)
  stays.name_blocks(stay)


class StaysTest(absltest.TestCase):
  def test_slots(self):
    stays = _stays()
    opened = [_open(stays, _task(tokens=[1], order=i)) for i in range(3)]
    self.assertIsNone(stays.open(_task(tokens=[1], order=3)))
    self.assertEqual([stay.slot for stay in opened], [1, 2, 3])
    stays.close(opened[1])
    self.assertTrue(opened[1].is_over)
    self.assertIsNone(opened[1].task.stay)
    self.assertEqual(stays.num_slots, 1)
    self.assertEqual(_open(stays, _task(tokens=[1], order=9)).slot, 2)

  def test_the_most_deserving_first(self):
    stays = _stays()
    for order, priority in ((5, 0), (2, 1), (3, 0)):
      _open(stays, _task(tokens=[1], order=order, priority=priority))
    self.assertEqual([stay.task.order for stay in stays], [3, 5, 2])
    self.assertEqual(stays.last.task.order, 2)

  def test_takes_nobody_in_without_pages(self):
    stays = _stays()
    first = _open(stays, _task(tokens=[1] * 20))
    _compute(stays, first)
    self.assertEqual(stays.pages_used, 5 / 8)
    # Three pages are left, and one is kept for the first.
    self.assertIsNone(stays.open(_task(tokens=[2] * 9, order=1)))
    self.assertLen(stays, 1)
    self.assertIsNotNone(stays.open(_task(tokens=[2] * 8, order=1)))

  def test_finds_what_others_computed(self):
    stays = _stays()
    stay = _open(stays, _task(tokens=[1] * 8))
    _compute(stays, stay)
    other = _open(stays, _task(tokens=[1] * 8, order=1))
    # One token is left to be computed.
    self.assertEqual((other.num_found, other.computed), (4, 4))
    self.assertEqual(other.num_unread, 4)
    stays.close(other)
    stays.close(stay)
    self.assertEqual(_open(stays, _task(tokens=[1] * 9)).num_found, 8)
    blind = _open(stays, _task(tokens=[1] * 9, order=1, can_find=False))
    self.assertEqual(blind.num_found, 0)

  def test_unknown_tokens_are_not_named(self):
    stays = _stays()
    stay = _open(stays, _task(tokens=[1] * 3))
    stays.grow(stay, 4)
    stay.computed, stay.num_unknown = 4, 2
    stays.name_blocks(stay)
    self.assertEqual(stay.table.num_named, 0)
    stay.task.tokens.append(1)
    stays.name_blocks(stay)
    self.assertEqual(stay.table.num_named, 1)

  def test_what_is_wrong_is_not_found(self):
    stays = _stays()
    stay = _open(stays, _task(tokens=[1] * 8))
    _compute(stays, stay)
    finder = _open(stays, _task(tokens=[1] * 8, order=1))
    # What it found may be what is wrong.
    stays.forget(finder)
    stays.close(finder)
    self.assertEqual(_open(stays, _task(tokens=[1] * 8)).num_found, 0)

  def test_new_parameters(self):
    stays = _stays()
    stay = _open(stays, _task(tokens=[1] * 12))
    stays.grow(stay, 12)
    stay.computed = 8
    stays.name_blocks(stay)
    stays.forget_all()
    # Half of it is old.
    stay.computed = 12
    stays.name_blocks(stay)
    self.assertEqual(_open(stays, _task(tokens=[1] * 12)).num_found, 0)

  def test_new_parameters_with_a_window(self):
    # Only the last block would have to be found.
    stays = _stays(num_pages={4: 9})
    stay = _open(stays, _task(tokens=[1] * 12))
    stays.grow(stay, 8)
    stay.computed = 8
    stays.name_blocks(stay)
    stays.forget_all()
    stays.grow(stay, 4)
    stay.computed = 12
    stays.name_blocks(stay)
    self.assertEqual(_open(stays, _task(tokens=[1] * 13)).num_found, 0)

  def test_regimes(self):
    stays = _stays(turns=(8, 20))
    self.assertEqual([stays.regime(n) for n in (8, 9, 20, 21)], [0, 1, 1, 2])
    stay = _open(stays, _task(tokens=[1] * 8))
    _compute(stays, stay)
    self.assertEqual(_open(stays, _task(tokens=[1] * 9, order=1)).num_found, 0)
    self.assertEqual(_open(stays, _task(tokens=[1] * 8, order=2)).num_found, 4)


if __name__ == "__main__":
  absltest.main()
