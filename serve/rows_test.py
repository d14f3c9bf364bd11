from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from serve import page_tables
from serve import request as request_lib
from serve import rows
from serve import scheduler_config
from serve import task as task_lib


class _Constraint:
  is_complete = False

  def masks(self, drafts):
    return np.full([1 + len(drafts), 1], 7, np.uint32)

  def accept(self, tokens):
    raise NotImplementedError


class _Guesser:
  def __init__(self):
    self._text = []

  def __len__(self):
    return len(self._text)

  def extend(self, tokens):
    self._text += tokens

  def propose(self, num_tokens):
    return self._text[:num_tokens]


def _stay(
  *, tokens=(1, 2, 3, 4, 5), max_len=12, computed=0, guesser=None, **kw
):
  fields: dict[str, Any] = {"prompt": (1, 2, 3), "max_tokens": 9} | kw
  request = request_lib.Request(id="a", **fields)
  tables = page_tables.PageTables({0: 9}, 4)
  table = tables.open((), 0)
  tables.grow(table, 8)
  task = task_lib.Task(
    request=request,
    order=0,
    tokens=list(tokens),
    max_len=max_len,
    can_find=True,
    guesser=guesser,
  )
  return task_lib.Stay(
    task=task, slot=3, table=table, num_found=0, regime=0, computed=computed
  )


def _config(*, num_drafts=4, turns=()):
  return scheduler_config.SchedulerConfig(
    max_rows=4,
    prefill_tokens=16,
    max_len=32,
    page_size=4,
    num_pages={0: 9},
    num_drafts=num_drafts,
    turns=turns,
  )


class ReadTest(absltest.TestCase):
  def test_a_chunk(self):
    row = rows.read(_stay(computed=1, constraint=_Constraint()), 2)
    self.assertEqual((row.request_id, row.slot), ("a", 3))
    self.assertEqual((row.start, row.length), (1, 5))
    self.assertEqual(row.tokens, (2, 3))
    self.assertFalse(row.samples)
    self.assertIsNone(row.masks)
    self.assertEqual(row.tables, {0: (1, 2)})

  def test_the_last_chunk_chooses(self):
    row = rows.read(_stay(computed=3, constraint=_Constraint()), 2)
    self.assertTrue(row.samples)
    assert row.masks is not None
    self.assertEqual(row.masks.shape, (1, 1))

  def test_nothing_is_to_follow(self):
    row = rows.read(_stay(tokens=(1, 2, 3), max_tokens=0), 3)
    self.assertFalse(row.samples)

  def test_logprobs_of_the_prompt(self):
    stay = _stay(tokens=(1, 2, 3), num_prompt_logprobs=2, pools=True)
    row = rows.read(stay, 2)
    self.assertEqual(row.targets, (2, 3))
    self.assertEqual(row.num_prompt_logprobs, 2)
    self.assertTrue(row.pools)
    stay.computed = 2
    self.assertEqual(rows.read(stay, 1).targets, ())
    stay.computed = 1
    self.assertEqual(rows.read(stay, 2).targets, (3,))

  def test_what_was_told_is_not_asked_again(self):
    stay = _stay(num_prompt_logprobs=2, pools=True)
    stay.task.is_prompt_told = True
    row = rows.read(stay, 4)
    self.assertEqual(row.targets, ())
    self.assertFalse(row.pools)


class ContinuedTest(parameterized.TestCase):
  def test_the_token_that_was_chosen_last(self):
    stay = _stay(computed=5)
    stay.num_unknown = 1
    row = rows.continued(stay, 0)
    self.assertEqual((row.start, row.length), (5, 6))
    self.assertEqual((row.tokens, row.drafts, row.num_drafts), ((), (), 0))

  def test_guesses(self):
    row = rows.continued(_stay(computed=4), 2)
    self.assertEqual((row.drafts, row.num_drafts), ((), 2))
    constraint = _Constraint()
    stay = _stay(computed=4, guesser=_Guesser(), constraint=constraint)
    row = rows.continued(stay, 2)
    self.assertEqual((row.drafts, row.num_drafts), ((1, 2), 0))
    assert row.masks is not None
    self.assertEqual(row.masks.shape, (3, 1))

  # The text has 5 tokens.
  @parameterized.parameters(
    ({}, {}, 4),
    ({"max_len": 12}, {}, 4),
    ({"max_len": 8}, {}, 2),  # Two guesses and one more.
    ({"max_len": 6}, {}, 0),
    ({}, {"turns": (4,)}, 4),
    ({}, {"turns": (5,)}, 0),
    ({}, {"turns": (4, 7)}, 2),
    ({}, {"num_drafts": 0}, 0),
    ({"constraint": _Constraint()}, {}, 0),
    ({"constraint": _Constraint(), "guesser": _Guesser()}, {}, 4),
  )
  def test_most_drafts(self, stay, config, expected):
    stay = _stay(computed=4, **stay)
    self.assertEqual(rows.most_drafts(stay, _config(**config)), expected)


if __name__ == "__main__":
  absltest.main()
