"""Sums over the requests of a call."""

from absl.testing import absltest

from serve import request as request_lib
from serve.api import trace

_Reason = request_lib.FinishReason


class TraceTest(absltest.TestCase):
  def test_choices_share_a_prompt(self):
    call = trace.Call(id="a", arrived=100.0)
    call.traces = [
      trace.Trace(
        arrived=100.5,
        num_prompt=10,
        num_cached=8,
        first=101.0,
        last=103.0,
        num_generated=5,
        finish=_Reason.STOP,
      ),
      trace.Trace(
        arrived=100.5,
        num_prompt=10,
        num_cached=10,
        is_follower=True,
        first=102.0,
        last=104.0,
        num_generated=3,
        finish=_Reason.LENGTH,
      ),
    ]
    self.assertEqual(call.num_prompt, 10)
    self.assertEqual(call.num_cached, 8)
    self.assertEqual(call.num_generated, 8)
    self.assertEqual(call.time_to_first, 1.0)
    self.assertEqual(call.time_per_token, 4.0 / 6)
    self.assertEqual(call.finish, "length,stop")

  def test_nothing_came(self):
    call = trace.Call(id="a")
    call.traces = [trace.Trace(arrived=0.0, num_prompt=3)]
    self.assertIsNone(call.time_to_first)
    self.assertIsNone(call.time_per_token)
    self.assertEqual(call.finish, "aborted")

  def test_one_token_has_no_pace(self):
    call = trace.Call(id="a")
    call.traces = [trace.Trace(arrived=0.0, num_prompt=3, first=1.0, last=1.0)]
    call.traces[0].num_generated = 1
    self.assertIsNone(call.time_per_token)


if __name__ == "__main__":
  absltest.main()
