import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import flagsaver

from serve import checkpoint_fixtures
from serve import config as config_lib
from serve import generate

_CONFIG = config_lib.ServeConfig(
  runner=config_lib.RunnerConfig(
    compute_dtype="float32",
    max_rows=2,
    max_len=48,
    prefill_tokens=16,
    compilation_cache="",
  )
)


class GenerateTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(
      cls.enterClassContext(tempfile.TemporaryDirectory())
    )
    folder = checkpoint_fixtures.write_tokenizer(cls.root / "tokenizer")
    checkpoint_fixtures.write(cls.root / "run", tokenizer=folder)

  def answer(self, **values):
    settings = {
      "checkpoint": str(self.root / "run"),
      "import_folder": str(self.root / "imported"),
      "max_tokens": 5,
      "temperature": 0.0,
    }
    with flagsaver.flagsaver(**(settings | values)):
      return generate.run(_CONFIG)

  def test_a_file_and_its_completion(self):
    source, output = self.root / "in.jsonl", self.root / "out.jsonl"
    lines = [
      {"id": "text", "prompt": "In the beginning"},
      {"id": "ids", "prompt": [5, 9, 23], "max_tokens": 3, "logprobs": 2},
      {"id": "chat", "messages": [{"role": "user", "content": "word"}]},
      {"id": "sampled", "prompt": "def", "temperature": 1.0, "top_k": 40},
      {"id": "long", "prompt": [20] * 60},
    ]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = {"input": str(source), "output": str(output)}
    totals = self.answer(**files)
    self.assertEqual((totals.num_jobs, totals.num_errors), (5, 1))
    whole = output.read_text()
    found = [json.loads(line) for line in whole.splitlines()]
    self.assertEqual([f["id"] for f in found], [line["id"] for line in lines])
    self.assertIn("shorten", found[4]["error"])
    for answer in found[:4]:
      self.assertIsInstance(answer["text"], str)
      self.assertIn(answer["finish"], ("stop", "length"))
    self.assertLen(found[1]["logprobs"], len(found[1]["tokens"]))
    self.assertLen(found[1]["logprobs"][0]["top"], 2)
    # Torn in the midst: what is missing is made again, and the same.
    output.write_text(whole[: len(whole) // 2])
    self.assertLess(self.answer(**files).num_jobs, 5)
    again = [json.loads(line) for line in output.read_text().splitlines()]
    # Rounded otherwise in other company.
    for scores in zip(again[1]["logprobs"], found[1]["logprobs"], strict=True):
      new, old = (score["logprob"] for score in scores)
      self.assertAlmostEqual(new, old, delta=1e-5)
      new, old = ([id for id, _ in score["top"]] for score in scores)
      self.assertEqual(new, old)
    del again[1]["logprobs"], found[1]["logprobs"]
    self.assertEqual(again, found)

  def test_flags_that_do_not_fit(self):
    for values, message in (
      ({}, "either --input=FILE or --prompt"),
      ({"input": "x", "prompt": ["y"]}, "either --input=FILE or --prompt"),
      ({"input": "x"}, "--output"),
      ({"output": "x", "prompt": ["y"]}, "--output"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        self.answer(**values)


if __name__ == "__main__":
  absltest.main()
