import json
import os
import pathlib
from unittest import mock

from absl import flags
from absl.testing import absltest
from absl.testing import flagsaver

from data import fixtures
from data import manifest
from tools.tokenize import beam_runner
from tools.tokenize import main


class MainTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    fixtures.write_tokenizer(self.folder / "tokenizer")
    fixtures.write_jsonl(self.folder / "in.jsonl", ["one text", "", "another"])

  def run_main(self, beam_arguments=(), **values):
    # As bazel run does: elsewhere, with the user's directory in a variable.
    directory = {"BUILD_WORKING_DIRECTORY": str(self.folder)}
    settings = {
      "input": ["in.jsonl"],
      "output": "out",
      "tokenizer": "tokenizer",
      "num_workers": 1,
      **values,
    }
    with (
      mock.patch.dict(os.environ, directory),
      flagsaver.flagsaver(**settings),
      mock.patch("builtins.print") as printed,
    ):
      main.main(beam_arguments)
    return [call.args[0] for call in printed.call_args_list]

  def test_makes_a_dataset(self):
    lines = self.run_main(num_shards=2)
    made = manifest.load(self.folder / "out")
    self.assertEqual((made.num_documents, len(made.shards)), (2, 2))
    self.assertRegex(lines[0], "out: 2 documents,.* 1 without text,")

  def test_makes_megatrons_files(self):
    self.run_main(output_format=main.OutputFormat.MEGATRON)
    note = json.loads((self.folder / "out_text_document.json").read_text())
    self.assertEqual((note["num_documents"], note["num_empty"]), (3, 1))
    for suffix, file in note["files"].items():
      made = self.folder / f"out_text_document.{suffix}"
      self.assertEqual(made.stat().st_size, file["size"])

  def test_leaves_out_what_is_asked(self):
    text = "the answer to it all is forty two and no more"
    texts = ["short", text, text, text + ".", "한국어 문장은 여기에 하나 있다."]
    fixtures.write_jsonl(self.folder / "in.jsonl", texts)
    (self.folder / "eval.jsonl").write_text(json.dumps({"q": text}) + "\n")
    lines = self.run_main(
      min_chars=8,
      languages=["en"],
      drop_copies=True,
      near_copies=0.8,
      evaluation=["eval.jsonl#q"],
      evaluation_ngram=5,
    )
    self.assertEqual(
      manifest.load(self.folder / "out").screening["dropped"],
      {"too_short": 1, "language": 1, "copy": 1, "near_copy": 1},
    )
    self.assertIn("  left out, near copy: 1 documents", lines)
    self.assertRegex(lines[-1], "eval.jsonl#q: in 3 documents .1 examples, 0 ")

  def test_errors_are_messages(self):
    with self.assertRaisesRegex(ValueError, "input .* does not exist"):
      self.run_main(input=["missing"])
    with self.assertRaisesRegex(ValueError, "no field 'body' in text"):
      self.run_main(field="body")
    with self.assertRaisesRegex(ValueError, "output is 'gs://b/o'; only"):
      self.run_main(output="gs://b/o")
    with self.assertRaisesRegex(ValueError, "drop is set, but"):
      self.run_main(drop_contaminated=True)

  def test_beam(self):
    with self.assertRaisesRegex(ValueError, "set --runner=beam"):
      self.run_main(("--runner=DirectRunner",))
    if beam_runner.beam is None:
      with self.assertRaisesRegex(ValueError, "//tools/tokenize:beam"):
        self.run_main(runner=main.Runner.BEAM)

  def test_split_arguments(self):
    argv = ["main", "--input=a", "--", "--runner=x", "--"]
    self.assertEqual(
      main.split_arguments(argv),
      (["main", "--input=a"], ("--runner=x", "--")),
    )
    self.assertEqual(main.split_arguments(argv[:2]), (argv[:2], ()))

  def test_format_is_one_of_ours(self):
    with self.assertRaises(flags.IllegalFlagValueError):
      flags.FLAGS["format"].parse("docx")


if __name__ == "__main__":
  absltest.main()
