from absl.testing import absltest

from serve import batch as batch_lib
from serve import request as request_lib
from serve import stats


def _row(name, **settings):
  return batch_lib.Row(
    request_id=name, slot=1, start=0, length=9, tables={}, **settings
  )


class StatsTest(absltest.TestCase):
  def test_counts(self):
    counts = stats.Counts()
    counts.add("idle_time", 0.5)
    counts.add("idle_time", 0.25)
    counts.add_finished(request_lib.FinishReason.STOP)
    reading = batch_lib.Batch(
      rows=(_row("a", tokens=(1, 2, 3)), _row("b", tokens=(4,)))
    )
    result = batch_lib.RowResult()
    counts.add_step(reading, [result] * 2, started=1.0, asked=2.0, done=5.0)
    # Of two guesses one was right; the other row has none. Its result was there
    # before it was asked for.
    going_on = batch_lib.Batch(rows=(_row("a", drafts=(7, 8)), _row("b")))
    results = [
      batch_lib.RowResult(tokens=(7, 9)),
      batch_lib.RowResult(tokens=(1,)),
    ]
    counts.add_step(going_on, results, started=5.0, asked=8.0, done=8.0)
    made = stats.Stats(
      phase=stats.Phase.SERVING,
      is_alive=True,
      step=0,
      last_progress=8.0,
      **counts.fields(),
    )
    self.assertEqual(made.idle_time, 0.75)
    self.assertEqual(made.finished[request_lib.FinishReason.STOP], 1)
    self.assertEqual(made.finished[request_lib.FinishReason.ERROR], 0)
    self.assertEqual(made.num_prefill_steps, 1)
    self.assertEqual(made.num_prompt_tokens, 4)
    self.assertEqual(made.prefill_time, 4.0)
    self.assertEqual(made.num_decode_steps, 1)
    self.assertEqual(made.num_decode_rows, 2)
    self.assertEqual(made.num_drafted_tokens, 2)
    self.assertEqual(made.num_accepted_tokens, 1)
    self.assertEqual(made.decode_time, 3.0)
    self.assertEqual(made.device_wait_time, 3.0)
    self.assertEqual(made.device_idle_time, 3.0)


if __name__ == "__main__":
  absltest.main()
