import json
import pathlib
import tempfile
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized

from serve import checkpoint_fixtures
from serve import conventions
from serve import engine as engine_lib
from serve import fixtures
from serve import offline
from serve import scheduler as scheduler_lib
from serve import scheduler_config

_END = 11


def _defaults(**settings):
  values: dict[str, Any] = {
    "max_tokens": 6,
    "generation": conventions.Generation(temperature=0.5, top_k=7),
    "seed": 3,
    "end_ids": frozenset({_END}),
    "start": conventions.Start.AFTER_END,
    "vocab_size": fixtures.VOCAB_SIZE,
  }
  return offline.Defaults(**(values | settings))


def _line(**settings):
  values: dict[str, Any] = {"id": "a", "prompt": [1, 2, 3]}
  return offline.Line(**(values | settings))


def _request(line, place=0, words=None):
  request = offline.make_job(line, place, _defaults(), words).request
  assert request is not None
  return request


class LinesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.file = pathlib.Path(self.create_tempfile("input.jsonl").full_path)

  def test_ids_are_numbers_of_lines(self):
    self.file.write_text(
      '{"prompt": "x"}\n{"id": "b", "prompt": [1]}\n'
      '{"messages": [{"role": "user", "content": "x"}]}\n'
    )
    lines = offline.read_lines(self.file)
    self.assertEqual([line.id for line in lines], [0, "b", 2])

  @parameterized.parameters(
    ('{"prompt": "x"', "truncated"),
    ('{"prompt": "x", "top_q": 1}', "top_q"),
    ('{"prompt": "x", "max_tokens": "many"}', "max_tokens"),
    ('{"id": 1}', "either prompt or messages"),
    ('{"prompt": "x", "messages": []}', "either prompt or messages"),
    ('{"id": 0, "prompt": "x"}', "id is 0, as in line 1"),
  )
  def test_a_bad_line_is_named(self, line, message):
    self.file.write_text('{"prompt": "x"}\n' + line + "\n")
    with self.assertRaisesRegex(ValueError, f"jsonl:2: .*{message}"):
      offline.read_lines(self.file)


class JobTest(absltest.TestCase):
  def test_a_line_goes_before_the_defaults(self):
    request = _request(
      _line(temperature=0.0, max_tokens=3, logit_bias={5: -1.0}, logprobs=2),
      place=4,
    )
    self.assertEqual(request.id, "4")
    self.assertEqual(request.prompt, (1, 2, 3))
    self.assertEqual(request.max_tokens, 3)
    self.assertEqual(request.stop_ids, {_END})
    sampling = request.sampling
    self.assertEqual((sampling.temperature, sampling.top_k), (0.0, 7))
    self.assertEqual(sampling.logit_bias, ((5, -1.0),))
    self.assertEqual(sampling.num_logprobs, 2)

  def test_the_seed_depends_on_the_id_alone(self):
    def seed(place, **settings):
      return _request(_line(**settings), place).sampling.seed

    self.assertEqual(seed(0), seed(7))
    self.assertNotEqual(seed(0), seed(0, id="b"))
    self.assertEqual(seed(0, seed=-1), 2**32 - 1)

  def test_what_cannot_be_asked(self):
    for line, error in (
      (_line(prompt=[97]), "vocabulary of 97"),
      (_line(prompt="text"), "no tokenizer"),
    ):
      job = offline.make_job(line, 0, _defaults(), None)
      self.assertIsNone(job.request)
      self.assertIn(error, str(job.error))

  def test_text_and_conversations(self):
    with tempfile.TemporaryDirectory() as folder:
      folder = pathlib.Path(folder)
      checkpoint_fixtures.write_tokenizer(folder)
      words = offline.Words(folder)
    tokenizer = words.tokenizer
    request = _request(_line(prompt="word"), words=words)
    self.assertEqual(
      request.prompt, (tokenizer.eos_id, *tokenizer.encode("word"))
    )
    messages = [{"role": "user", "content": "word"}]
    request = _request(_line(prompt=None, messages=messages), words=words)
    self.assertEqual(
      tokenizer.decode(request.prompt),
      "user: word<|end_of_text|>assistant:",
    )


class RunTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.runner = fixtures.FakeRunner()
    config = scheduler_config.SchedulerConfig(
      max_rows=4,
      prefill_tokens=16,
      max_len=64,
      page_size=4,
      num_pages={0: 65},
      max_queued_requests=4,
    )
    self.engine = engine_lib.Engine(
      self.runner, scheduler_lib.Scheduler(config)
    )
    self.addCleanup(self.engine.stop)
    self.written = []

  def run_lines(self, lines, *, vocabulary=None, **settings):
    self.engine.start()
    jobs = (
      offline.make_job(line, place, _defaults(**settings), None)
      for place, line in enumerate(lines)
    )
    return offline.run(
      self.engine,
      jobs,
      self.written.append,
      vocabulary=vocabulary,
      num_parallel=6,
    )

  def test_answers_come_in_order(self):
    lines = [
      _line(id=i, prompt=[i], max_tokens=1 + (i * 7) % 23, ignore_end=True)
      for i in range(60)
    ]
    totals = self.run_lines(lines)
    self.assertEqual([line["id"] for line in self.written], [*range(60)])
    for i, line in enumerate(self.written):
      num = 1 + (i * 7) % 23
      self.assertEqual(line["tokens"], fixtures.continuation([i], num))
      self.assertEqual(line["finish"], "length")
      self.assertEqual(line["num_prompt"], 1)
    self.assertEqual((totals.num_jobs, totals.num_errors), (60, 0))
    self.assertEqual(totals.num_prompt, 60)
    self.assertEqual(
      totals.num_output, sum(1 + (i * 7) % 23 for i in range(60))
    )

  def test_errors_are_answers(self):
    bad = [_line(id=i, prompt=[200]) for i in range(40)]
    lines = [_line(id="long", prompt=[1] * 70), *bad, _line(id="good")]
    totals = self.run_lines(lines)
    self.assertEqual([line["id"] for line in self.written][:2], ["long", 0])
    self.assertIn("prompt", self.written[0]["error"])
    self.assertNotIn("tokens", self.written[0])
    self.assertLen(self.written[-1]["tokens"], 6)
    self.assertEqual((totals.num_jobs, totals.num_errors), (42, 41))

  def test_text_up_to_a_stop_string(self):
    with tempfile.TemporaryDirectory() as folder:
      folder = pathlib.Path(folder)
      checkpoint_fixtures.write_tokenizer(folder)
      words = offline.Words(folder)
    tokens = fixtures.continuation([1, 2, 3], 40)
    text = words.tokenizer.decode(
      [t for t in tokens if t not in words.vocabulary.special_ids]
    )
    stop = text[5:7]
    self.run_lines(
      [
        _line(max_tokens=40, ignore_end=True, stop=stop),
        _line(max_tokens=40, ignore_end=True),
      ],
      vocabulary=words.vocabulary,
    )
    first, second = self.written
    self.assertEqual(first["text"], text[: text.index(stop)])
    self.assertEqual(first["finish"], "stop")
    self.assertLess(len(first["tokens"]), 40)
    self.assertEqual(second["text"], text)

  def test_the_end_of_a_text_is_not_text(self):
    tokens = fixtures.continuation([1, 2, 3], 6)
    with tempfile.TemporaryDirectory() as folder:
      folder = pathlib.Path(folder)
      checkpoint_fixtures.write_tokenizer(folder)
      words = offline.Words(folder)
    num = tokens.index(tokens[3]) + 1
    self.run_lines(
      [_line()], vocabulary=words.vocabulary, end_ids=frozenset({tokens[3]})
    )
    (line,) = self.written
    self.assertEqual(line["tokens"], tokens[:num])
    self.assertEqual(line["finish"], "stop")
    shown = [t for t in tokens[: num - 1] if t >= 16]
    self.assertEqual(line["text"], words.tokenizer.decode(shown))

  def test_a_dead_engine_writes_nothing_more(self):
    def fail(index):
      if index == 8:
        raise RuntimeError("device lost")

    self.runner.before_result = fail
    with self.assertRaisesRegex(RuntimeError, "device lost"):
      self.run_lines([_line(id=i, max_tokens=20) for i in range(20)])
    self.assertEmpty(self.written)


class RestartTest(absltest.TestCase):
  def test_a_torn_line_is_made_again(self):
    file = pathlib.Path(self.create_tempfile("output.jsonl").full_path)
    whole = '{"id": 0, "tokens": [1]}\n{"id": "b", "error": "no"}\n'
    file.write_text(whole + '{"id": 2, "tok')
    self.assertEqual(offline.find_answered(file), {0, "b"})
    self.assertEqual(file.read_text(), whole)
    file.unlink()
    self.assertEqual(offline.find_answered(file), set())

  def test_another_file_is_left_alone(self):
    file = pathlib.Path(self.create_tempfile("other").full_path)
    text = json.dumps({"id": 1}) + "\nnot ours\n{"
    file.write_text(text)
    with self.assertRaisesRegex(ValueError, "line 2"):
      offline.find_answered(file)
    self.assertEqual(file.read_text(), text)


if __name__ == "__main__":
  absltest.main()
