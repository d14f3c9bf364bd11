import contextlib
import io
import os
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import flagsaver

from model.hf import fixtures
from model.hf import importer
from model.hf import safetensors_folder
from tools.hf import export_main


class ExportMainTest(absltest.TestCase):
  def test_main(self):
    root = pathlib.Path(self.create_tempdir().full_path)
    tensors = fixtures.tensors()
    fixtures.write(root / "tiny", tensors)
    importer.run(root / "tiny", root / "imported")
    with (
      mock.patch.dict(os.environ, BUILD_WORKING_DIRECTORY=str(root)),
      flagsaver.flagsaver(
        checkpoint="imported",
        output="out",
        dtype="float16",
        max_shard_gb=1e-6,
      ),
      contextlib.redirect_stdout(io.StringIO()) as stdout,
    ):
      export_main.main()
    self.assertRegex(
      stdout.getvalue(),
      f"{root}/out: LlamaForCausalLM, {len(tensors)} tensors, [0-9,]+ bytes",
    )
    found = safetensors_folder.open_folder(root / "out")
    self.assertEqual({found[name].dtype.name for name in found}, {"float16"})
    self.assertGreater(len(list((root / "out").glob("*.safetensors"))), 2)


if __name__ == "__main__":
  absltest.main()
