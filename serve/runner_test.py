"""What the runner says is what decode.greedy says, however it is asked."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from model import fixtures
from model import transformer
from serve import programs
from serve import request as request_lib
from serve import runner_fixtures


class RunnerTest(parameterized.TestCase):
  @parameterized.named_parameters(*runner_fixtures.KINDS)
  def test_says_what_greedy_says(self, config):
    runner = runner_fixtures.shared_runner(config)
    # What is not finite is left in all pages and slots.
    poisoned = runner_fixtures.Texts(
      runner, 2 * [14 * [runner_fixtures.POISON]]
    )
    handle = poisoned.run(poisoned.row(0, 14), poisoned.row(1, 14))
    for result in handle.result():
      self.assertFalse(result.is_finite)
      self.assertEqual(result.tokens, ())
    poisoned.run(poisoned.row(0), poisoned.row(1)).result()

    prompts = runner_fixtures.make_prompts(9, 3)
    texts = runner_fixtures.Texts(runner, prompts)
    # The first in chunks, the second in their midst; then one alone.
    texts.add(texts.run(texts.row(0, 5)).result(), 0)
    texts.add(texts.run(texts.row(1, 3), texts.row(0, 2)).result(), 1, 0)
    texts.add(texts.run(texts.row(0, 2)).result(), 0)
    texts.add(texts.run(texts.row(1)).result(), 1)
    handles = [
      texts.run(texts.row(1), texts.row(0))
      for _ in range(runner_fixtures.NUM_TOKENS - 2)
    ]
    for handle in handles:
      texts.add(handle.result(), 1, 0)
    texts.add(texts.run(texts.row(0)).result(), 0)
    self.assertEqual(texts.said, runner_fixtures.expected(config, prompts))

  @parameterized.named_parameters(*runner_fixtures.KINDS)
  def test_what_is_not_finite_harms_itself_alone(self, config):
    runner = runner_fixtures.shared_runner(config)
    prompts = [*runner_fixtures.make_prompts(7), [1, runner_fixtures.POISON, 2]]
    texts = runner_fixtures.Texts(runner, prompts)
    results = texts.run(texts.row(0, 7), texts.row(1, 3)).result()
    self.assertEqual([r.is_finite for r in results], [True, False])
    texts.add(results, 0, 1)
    for _ in range(runner_fixtures.NUM_TOKENS - 1):
      results = texts.run(texts.row(1), texts.row(0)).result()
      self.assertFalse(results[0].is_finite)
      texts.add(results, 1, 0)
    self.assertEqual(
      texts.said[:1], runner_fixtures.expected(config, prompts[:1])
    )

  def test_many_rows(self):
    """More shapes than one, and padded rows in each."""
    prompts = runner_fixtures.make_prompts(9, 16, 2, 1, 3)
    runner = runner_fixtures.make_runner(
      runner_fixtures.DENSE, max_rows=5, prefill_tokens=32
    )
    texts = runner_fixtures.Texts(runner, prompts)
    texts.finish()
    self.assertEqual(
      texts.said, runner_fixtures.expected(runner_fixtures.DENSE, prompts)
    )

  def test_nothing_is_compiled_after_warm_up(self):
    runner = runner_fixtures.make_runner(runner_fixtures.DENSE)
    compiled, reports = [], []
    jax.monitoring.register_event_duration_secs_listener(
      lambda event, *_, **__: (
        compiled.append(event) if "backend_compile" in event else None
      )
    )
    runner.warm_up(lambda done, total: reports.append((done, total)))
    num = runner.num_compiled
    self.assertEqual(reports[-1], (num, num))
    self.assertNotEmpty(compiled)  # The listener hears of compiling.
    compiled.clear()
    for length in range(1, 17):
      penalties = length % 2
      texts = runner_fixtures.Texts(
        runner,
        runner_fixtures.make_prompts(length, length),
        sampling=request_lib.Sampling(
          temperature=float(length % 4 > 1),
          presence_penalty=float(penalties),
          num_logprobs=(None, 0, 3, 20)[length % 4],
        ),
      )
      row = texts.row(0, 16, targets=(1,), pools=True)
      handles = [
        texts.run(row, texts.row(1, 16)),
        texts.run(texts.row(0)),
        texts.run(texts.row(1), texts.row(0)),
      ]
      for handle in handles:
        self.assertTrue(handle.result()[0].is_finite)
    self.assertEqual(compiled, [])
    self.assertEqual(runner.num_compiled, num)
    with self.assertRaises(programs.NotCompiledError):
      runner._programs.call("go_on", 8, 0)

  def test_logprobs_and_pooled_states(self):
    (prompt,) = runner_fixtures.make_prompts(11)
    runner = runner_fixtures.shared_runner(runner_fixtures.DENSE)
    texts = runner_fixtures.Texts(
      runner,
      [prompt],
      sampling=dataclasses.replace(runner_fixtures.GREEDY, num_logprobs=2),
    )
    results = []
    for first, last in ((0, 5), (5, 11)):
      row = texts.row(
        0,
        last - first,
        targets=prompt[first + 1 : last + 1],
        num_prompt_logprobs=4,
        pools=True,
      )
      results += texts.run(row).result()
    model = transformer.bind(
      transformer.abstract(runner_fixtures.DENSE, fixtures.execution())[0],
      runner_fixtures.make_params(runner_fixtures.DENSE),
    )
    output = model(jnp.array([prompt]))
    wanted = np.asarray(jax.nn.log_softmax(model.logits(output.hidden)[0]))
    np.testing.assert_allclose(
      results[0].pooled + results[1].pooled,
      np.sum(output.hidden[0], axis=0),
      rtol=1e-4,
    )
    given = [one for r in results for one in r.prompt_logprobs]
    self.assertLen(given, 10)
    (of_chosen,) = results[1].logprobs
    self.assertEqual(of_chosen.rank, 1)
    self.assertLen(of_chosen.top, 2)
    tokens = [*prompt[1:], *results[1].tokens]
    for i, one in enumerate([*given, of_chosen]):
      self.assertAlmostEqual(one.logprob, wanted[i, tokens[i]], places=4)
      best = np.argsort(-wanted[i])[: len(one.top)]
      self.assertEqual([token for token, _ in one.top], best.tolist())

  def test_masks(self):
    runner = runner_fixtures.shared_runner(runner_fixtures.DENSE)
    prompts = runner_fixtures.make_prompts(3, 4)
    texts = runner_fixtures.Texts(runner, prompts)
    masks = np.zeros((1, 2), np.uint32)
    masks[0, 1] = 1 << 5  # Token 37.
    # Only requests with a constraint have masks.
    runner.admit(1, runner_fixtures.constrained(prompts[0]), prompts[0])
    results = texts.run(texts.row(0, 3, masks=masks), texts.row(1, 4)).result()
    self.assertEqual(results[0].tokens, (37,))
    self.assertEqual(
      list(results[1].tokens),
      runner_fixtures.expected(runner_fixtures.DENSE, prompts)[1][:1],
    )

  def test_drafts(self):
    """They are verified, whoever makes them; a bad model changes nothing."""
    prompts = runner_fixtures.make_prompts(5, 3)
    wanted = runner_fixtures.expected(runner_fixtures.DENSE, prompts)
    bad = runner_fixtures.source(
      runner_fixtures.DENSE,
      params=runner_fixtures.make_params(runner_fixtures.DENSE, seed=1),
    )
    runner = runner_fixtures.make_runner(
      runner_fixtures.DENSE, num_drafts=3, draft=bad
    )
    texts = runner_fixtures.Texts(runner, prompts)
    texts.add(texts.run(texts.row(0, 5), texts.row(1, 3)).result(), 0, 1)
    for _ in range(runner_fixtures.NUM_TOKENS - 1):
      texts.draft(3)
    self.assertEqual(
      [said[: runner_fixtures.NUM_TOKENS] for said in texts.said], wanted
    )

    # Those of the host, in place of the bad model's.
    runner._draft = None
    texts = runner_fixtures.Texts(runner, prompts)
    texts.add(texts.run(texts.row(0, 5), texts.row(1, 3)).result(), 0, 1)
    # The second is wrong; and there is none.
    drafts = [wanted[0][1], (wanted[0][2] + 1) % 64, wanted[0][3]]
    results = texts.run(texts.row(0, drafts=drafts), texts.row(1)).result()
    self.assertLen(results[0].tokens, 2)
    texts.add(results, 0, 1)
    texts.start[0] += 1
    # All are right.
    rows = [
      texts.row(1, drafts=wanted[1][2:4]),
      texts.row(0, drafts=wanted[0][3:6]),
    ]
    results = texts.run(*rows).result()
    self.assertEqual([len(r.tokens) for r in results], [3, 4])
    texts.add(results, 1, 0)
    self.assertEqual(texts.said[1], wanted[1][:5])
    self.assertEqual(texts.said[0][: runner_fixtures.NUM_TOKENS], wanted[0])

  def test_a_model_that_drafts_for_itself_is_right(self):
    prompts = runner_fixtures.make_prompts(5, 3)
    sampling = request_lib.Sampling(temperature=1.0, seed=3)
    alone = runner_fixtures.Texts(
      runner_fixtures.shared_runner(runner_fixtures.DENSE),
      prompts,
      sampling=sampling,
    ).finish()
    runner = runner_fixtures.make_runner(
      runner_fixtures.DENSE,
      num_drafts=2,
      draft=runner_fixtures.source(runner_fixtures.DENSE),
    )
    texts = runner_fixtures.Texts(runner, prompts, sampling=sampling)
    texts.add(texts.run(texts.row(0, 5), texts.row(1, 3)).result(), 0, 1)
    for _ in range(2):
      texts.draft(2)
    for said, wanted in zip(texts.said, alone, strict=True):
      self.assertLen(said, 7)
      self.assertEqual(said[: runner_fixtures.NUM_TOKENS], wanted)

  def test_other_params(self):
    prompts = runner_fixtures.make_prompts(4, 9)
    runner = runner_fixtures.make_runner(runner_fixtures.DENSE)
    runner_fixtures.Texts(runner, prompts).finish()
    other = runner_fixtures.make_params(runner_fixtures.DENSE, seed=1)
    runner.set_params(
      runner.prepare_params(
        runner_fixtures.source(runner_fixtures.DENSE, params=other).params
      )
    )
    texts = runner_fixtures.Texts(runner, prompts)
    self.assertEqual(
      texts.finish(),
      runner_fixtures.expected(runner_fixtures.DENSE, prompts, params=other),
    )
    with self.assertRaisesRegex(ValueError, "head_DV"):
      runner.prepare_params(
        runner_fixtures.source(runner_fixtures.KINDS[0][1]).params
      )

  def test_what_does_not_fit(self):
    gated = dict(runner_fixtures.KINDS)["gated_delta_net"]
    with self.assertRaisesRegex(ValueError, "linear attention"):
      runner_fixtures.make_runner(gated, num_drafts=2)
    larger = dataclasses.replace(runner_fixtures.DENSE, vocab_size=65)
    with self.assertRaisesRegex(ValueError, "vocabulary of 65"):
      runner_fixtures.make_runner(
        runner_fixtures.DENSE,
        num_drafts=2,
        draft=runner_fixtures.source(larger),
      )
    windowed = runner_fixtures.make_config(runner_fixtures.WINDOW)
    with self.assertRaisesRegex(ValueError, "without a window"):
      runner_fixtures.make_runner(
        windowed,
        draft=runner_fixtures.source(runner_fixtures.DENSE),
        num_drafts=1,
      )


if __name__ == "__main__":
  absltest.main()
