import os
import pathlib
from unittest import mock

from absl import flags
from absl.testing import absltest
from absl.testing import flagsaver

from data import fixtures
from data import manifest
from tools.tokenize import main


class MainTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    fixtures.write_tokenizer(self.folder / "tokenizer")
    fixtures.write_jsonl(self.folder / "in.jsonl", ["one text", "", "another"])

  def run_main(self, **values):
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
    ):
      main.main()

  def test_makes_a_dataset(self):
    self.run_main(num_shards=2)
    made = manifest.load(self.folder / "out")
    self.assertEqual((made.num_documents, len(made.shards)), (2, 2))

  def test_errors_are_messages(self):
    with self.assertRaisesRegex(ValueError, "input .* does not exist"):
      self.run_main(input=["missing"])
    with self.assertRaisesRegex(ValueError, "no field 'body' in text"):
      self.run_main(field="body")

  def test_format_is_one_of_ours(self):
    with self.assertRaises(flags.IllegalFlagValueError):
      flags.FLAGS["format"].parse("docx")


if __name__ == "__main__":
  absltest.main()
