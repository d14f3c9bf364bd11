from typing import Any

from absl.testing import absltest
import numpy as np

from serve import batch
from serve import page_tables
from serve import request as request_lib
from serve import results
from serve import task as task_lib

_Reason = request_lib.FinishReason


class _Constraint:
  def __init__(self):
    self.accepted = []

  @property
  def is_complete(self):
    return len(self.accepted) == 2

  def masks(self, drafts):
    raise NotImplementedError

  def accept(self, tokens):
    if 9 in tokens:
      raise ValueError("9 is not allowed.")
    self.accepted += tokens


def _logprob(x):
  return request_lib.TokenLogprobs(logprob=x, rank=1)


def _stay(*, computed, num_unknown=1, max_tokens=4, tokens=(1, 2, 3), **kw):
  request = request_lib.Request(
    id="a", prompt=(1, 2, 3), max_tokens=max_tokens, **kw
  )
  task = task_lib.Task(
    request=request,
    order=0,
    tokens=list(tokens),
    max_len=3 + max_tokens,
    can_find=False,
    num_cached=1,
  )
  return task_lib.Stay(
    task=task,
    slot=1,
    table=page_tables.PageTables({}, 4).open((), 0),
    num_found=0,
    regime=0,
    computed=computed,
    num_unknown=num_unknown,
  )


def _row(**changes):
  fields: dict[str, Any] = {"start": 3, "length": 4} | changes
  return batch.Row(request_id="a", slot=1, tables={}, **fields)


def _take(stay, row, **result) -> request_lib.Output:
  output = results.take(stay, row, batch.RowResult(**result), 7)
  assert output is not None
  return output


class TakeTest(absltest.TestCase):
  def test_a_token(self):
    stay = _stay(computed=4, tokens=(1, 2, 3, 4))
    output = _take(stay, _row(), tokens=(5,), logprobs=(_logprob(-1.0),))
    self.assertEqual(output.tokens, (5,))
    self.assertEqual(output.logprobs, (_logprob(-1.0),))
    self.assertEqual((output.num_cached, output.step), (1, 7))
    self.assertIsNone(output.finish)
    self.assertEqual(stay.task.tokens, [1, 2, 3, 4, 5])
    self.assertEqual((stay.computed, stay.num_unknown), (4, 0))

  def test_right_guesses(self):
    stay = _stay(computed=4, tokens=(1, 2, 3, 4))
    output = _take(stay, _row(drafts=(5, 6)), tokens=(5, 6, 7))
    self.assertEqual(output.tokens, (5, 6, 7))
    self.assertEqual(output.finish, _Reason.LENGTH)
    self.assertEqual(stay.computed, 6)

  def test_nothing_follows_a_stop(self):
    stay = _stay(computed=4, tokens=(1, 2, 3, 4), stop_ids=frozenset([5]))
    logprobs = tuple(map(_logprob, (-1.0, -2.0, -3.0)))
    output = _take(stay, _row(), tokens=(6, 5, 7), logprobs=logprobs)
    self.assertEqual(output.tokens, (6, 5))
    self.assertEqual(output.logprobs, logprobs[:2])
    self.assertEqual(output.finish, _Reason.STOP)

  def test_constraint(self):
    constraint = _Constraint()
    stay = _stay(computed=4, tokens=(1, 2, 3, 4), constraint=constraint)
    self.assertIsNone(_take(stay, _row(), tokens=(5,)).finish)
    stay.num_unknown = 1
    self.assertEqual(_take(stay, _row(), tokens=(6,)).finish, _Reason.STOP)
    self.assertEqual(constraint.accepted, [5, 6])
    with self.assertRaisesRegex(ValueError, "9 is not allowed"):
      _take(stay, _row(), tokens=(9,))

  def test_not_finite(self):
    with self.assertRaisesRegex(ValueError, "not finite"):
      _take(_stay(computed=4), _row(), is_finite=False)

  def test_the_prompt_is_told_once_and_whole(self):
    stay = _stay(
      computed=3, max_tokens=0, num_prompt_logprobs=0, pools=True, num_unknown=0
    )
    first = _row(start=0, length=3, tokens=(1, 2), samples=False)
    pooled = np.array([2.0, 4.0], np.float32)
    told = (_logprob(-1.0), _logprob(-2.0))
    result = batch.RowResult(prompt_logprobs=told, pooled=pooled)
    self.assertIsNone(results.take(stay, first, result, 7))
    last = _row(start=2, length=3, tokens=(3,), samples=False)
    output = _take(stay, last, pooled=pooled)
    self.assertEqual(output.prompt_logprobs, (None, *told))
    assert output.pooled is not None
    np.testing.assert_allclose(output.pooled, 2 * pooled / 3)
    self.assertEqual(output.tokens, ())
    self.assertEqual(output.finish, _Reason.LENGTH)
    # It comes back after a preemption, say.
    stay.task.max_len += 1
    output = _take(stay, last)
    self.assertIsNone(output.prompt_logprobs)
    self.assertIsNone(output.pooled)


if __name__ == "__main__":
  absltest.main()
