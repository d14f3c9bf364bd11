import contextlib
import io
import os
import pathlib
import shutil
from unittest import mock

from absl.testing import absltest
from absl.testing import flagsaver

from data import fixtures as data_fixtures
from model.hf import fixtures
from tools.hf import import_main


class ImportMainTest(absltest.TestCase):
  def test_main(self):
    root = pathlib.Path(self.create_tempdir().full_path)
    fixtures.write(
      root / "tiny",
      fixtures.tensors(vocab=320),
      values=fixtures.config(vocab_size=320),
    )

    def run(**values):
      with (
        mock.patch.dict(os.environ, BUILD_WORKING_DIRECTORY=str(root)),
        flagsaver.flagsaver(input="tiny", output="out", **values),
        contextlib.redirect_stdout(io.StringIO()) as stdout,
      ):
        import_main.main()
      return stdout.getvalue()

    text = run()
    self.assertRegex(
      text,
      f"{root}/out/0: tiny, [0-9,]+ parameters in float32, no tokenizer\n"
      r"[0-9,]+ bytes read in .* MB/s\), .* MB of memory",
    )
    self.assertIn("the model's own tokenizer.json", text)
    shutil.rmtree(root / "out")
    data_fixtures.write_tokenizer(root / "tiny")
    text = run(param_dtype="bfloat16", name="other")
    self.assertIn("other, ", text)
    self.assertIn("in bfloat16, its tokenizer\n", text)
    self.assertIn(f"--checkpoint={root}/out ", text)


if __name__ == "__main__":
  absltest.main()
