from typing import Any

from absl.testing import absltest

from serve import batch as batch_lib
from serve import request as request_lib
from serve import scheduler_config
from serve import simulated_runner

_REQUEST = request_lib.Request(id="a", prompt=(1, 2, 3), max_tokens=4)


def _config():
  return scheduler_config.SchedulerConfig(
    max_rows=2,
    prefill_tokens=16,
    max_len=16,
    page_size=2,
    num_pages={0: 9},
  )


def _run(runner, *, table, admit=False, **fields):
  row = batch_lib.Row(request_id="a", slot=1, tables={0: table}, **fields)
  admission = batch_lib.Admission(slot=1, request=_REQUEST, tokens=(1, 2, 3))
  admissions = (admission,) if admit else ()
  return runner.run(batch_lib.Batch(rows=(row,), admissions=admissions))


class SimulatedRunnerTest(absltest.TestCase):
  def begin(self, **changes):
    runner = simulated_runner.SimulatedRunner(_config())
    fields: dict[str, Any] = {
      "start": 0,
      "length": 3,
      "tokens": (1, 2, 3),
      "table": (1, 2),
    }
    (result,) = _run(runner, admit=True, **(fields | changes))
    return runner, result

  def test_goes_on_as_it_is_written(self):
    runner, result = self.begin()
    text = list(result.tokens)
    for start in (3, 4, 5):
      (result,) = _run(runner, start=start, length=start + 1, table=(1, 2, 3))
      text += result.tokens
    self.assertEqual(text, simulated_runner.write(_REQUEST, _config()))

  def test_drafts(self):
    right = simulated_runner.write(_REQUEST, _config())
    wrong = (right[2] + 1) % simulated_runner.VOCAB
    config = scheduler_config.SchedulerConfig(
      max_rows=2,
      prefill_tokens=16,
      max_len=16,
      page_size=2,
      num_pages={0: 9},
      num_drafts=2,
    )
    runner = simulated_runner.SimulatedRunner(config)
    row = {"start": 0, "length": 3, "tokens": (1, 2, 3)}
    _run(runner, admit=True, table=(1, 2), **row)
    drafts = (right[1], wrong)
    (result,) = _run(runner, start=3, length=4, drafts=drafts, table=(1, 2, 3))
    self.assertEqual(list(result.tokens), right[1:3])

  def test_sees_what_is_wrong(self):
    with self.assertRaises(AssertionError):
      self.begin(tokens=(1, 2, 4))
    with self.assertRaises(AssertionError):
      self.begin(table=(1, batch_lib.NULL_PAGE))
    with self.assertRaises(AssertionError):
      self.begin(length=4)
    runner, _ = self.begin()
    with self.assertRaises(AssertionError):
      _run(runner, start=4, length=4, table=(1, 2, 3))
    with self.assertRaises((AssertionError, KeyError)):
      _run(runner, start=3, length=4, table=(3, 2))
    with self.assertRaises(AssertionError):
      _run(runner, start=3, length=4, table=(2, 2))

  def test_references(self):
    tables = [{0: [1, 2], 4: [batch_lib.NULL_PAGE, 1]}, {0: [1]}]
    self.assertEqual(
      simulated_runner.references(tables), {(0, 1): 2, (0, 2): 1, (4, 1): 1}
    )


if __name__ == "__main__":
  absltest.main()
