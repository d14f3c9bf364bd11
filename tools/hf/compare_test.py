import contextlib
import io
import pathlib
import shutil
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from safetensors import numpy as library

from tools.hf import compare

_TESTDATA = pathlib.Path(__file__).parents[2] / "model/hf/testdata"


class ComparisonTest(parameterized.TestCase):
  @parameterized.parameters(
    (0.5, True), (1.0, True), (1.01, False), (float("nan"), False)
  )
  def test_verdict(self, difference, passed):
    line = compare.Comparison(name="x", difference=difference, tolerance=1.0)
    self.assertEqual(line.passed, passed)
    self.assertEndsWith(str(line), "ok" if passed else "FAILED")


class CompareTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)

  def copy(self, case):
    return pathlib.Path(shutil.copytree(_TESTDATA / case, self.root / case))

  def failures(self, folder, **settings):
    return {
      line.name
      for line in compare.compare(folder, **settings)
      if not line.passed
    }

  @parameterized.parameters(
    ("llama_gqa_untied", 13), ("deepseek_v3_yarn", 16), ("qwen3_moe", 18)
  )
  def test_goldens(self, case, num_lines):
    lines = list(compare.compare(_TESTDATA / case))
    self.assertEqual([str(line) for line in lines if not line.passed], [])
    self.assertLen(lines, num_lines)

  def test_other_numbers_fail(self):
    folder = self.copy("llama_gqa_untied")
    with np.load(folder / compare.GOLDEN) as file:
      golden = dict(file)
    perturbed = {
      "logits",
      "loss",
      "hidden_states",
      "grad/model.layers.1.self_attn.k_proj.weight",
      "leftpad_logits",
      "gen_step_logits",
    }
    for name in perturbed:
      golden[name] = golden[name] * np.float32(1 + 2e-3)
    golden["token_nll"][0, 0] = np.nan
    golden["gen_sequence"][-1] += 1
    golden["genb_sequences"][2, -1] += 1
    np.savez(folder / compare.GOLDEN, **golden)
    norms = folder / compare.GRAD_NORMS
    norms.write_text(
      norms.read_text().replace('"global_norm": ', '"global_norm": 1')
    )
    failed = self.failures(folder, config_file="config_legacy.json")
    perturbed |= {"token_nll", "gen_sequence", "genb_sequences"}
    self.assertContainsSubset(perturbed, failed)
    (norm,) = failed - perturbed
    self.assertEndsWith(norm, "worst: all")

  def test_other_weights_fail(self):
    folder = self.copy("llama_gqa_untied")
    file = folder / "model.safetensors"
    tensors = library.load_file(file)
    name = "model.layers.2.mlp.up_proj.weight"
    tensors[name] = tensors[name] * np.float32(1.001)
    library.save_file(tensors, file)
    failed = self.failures(folder)
    self.assertIn("logits", failed)
    self.assertNotIn("gen_sequence", failed)


class RunTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)

  def test_norms_of_what_the_model_has_not(self):
    ours = {"a": np.ones(4)}
    norms = {"norms": {"a": 2.0, "empty": 0.0}, "global_norm": 2.0}
    self.assertTrue(compare._worst_norm(ours, norms).passed)
    with self.assertRaisesRegex(ValueError, "has b, but the model no such"):
      compare._worst_norm(ours, norms | {"norms": {"b": 1.0}})

  def test_folders(self):
    with self.assertRaisesRegex(ValueError, "has no golden.npz, and neither"):
      compare.find_folders(self.root)
    for name in ("b", "a", "c"):
      (self.root / name).mkdir()
    for name in ("b", "a"):
      (self.root / name / compare.GOLDEN).touch()
    a, b = self.root / "a", self.root / "b"
    self.assertEqual(compare.find_folders(self.root), [a, b])
    self.assertEqual(compare.find_folders(b), [b])

  def test_a_folder_that_fails_does_not_stop_the_others(self):
    folders = []
    for name in ("no_zip", "lacks", "no_config"):
      folder = self.root / name
      folder.mkdir()
      folders.append(folder)
    (folders[0] / compare.GOLDEN).write_text("?")
    np.savez(folders[1] / compare.GOLDEN, input_ids=np.zeros(3))
    inputs: dict[str, Any] = {
      name: np.zeros((1, 2), np.int32) for name in compare.INPUTS
    }
    np.savez(folders[2] / compare.GOLDEN, **inputs)
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
      failed = compare.run(folders)
    self.assertEqual(failed, 3)
    text = stdout.getvalue()
    for message in (
      "no_zip/golden.npz cannot be read",
      "lacks/golden.npz lacks attention_mask, labels, logits. FAILED",
      "no_config/config.json does not exist",
      "0 passed, 3 failed\n",
    ):
      self.assertIn(message, text)


if __name__ == "__main__":
  absltest.main()
