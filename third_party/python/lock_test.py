"""Tests of what is asked of uv."""

from absl.testing import absltest

from third_party.python import lock


class LockTest(absltest.TestCase):
  def test_hashes_and_no_index(self):
    command = lock.compile_command("cpu", [])
    self.assertIn("--generate-hashes", command)
    self.assertIn("--no-emit-index-url", command)
    self.assertNotIn("--constraints", command)

  def test_accelerators_keep_the_versions_of_the_cpu(self):
    command = lock.compile_command("tpu", ["--upgrade"])
    self.assertIn("requirements_tpu.txt", command)
    self.assertIn("requirements_cpu.txt", command)
    self.assertEqual(command[-1], "--upgrade")

  def test_clients_are_resolved_for_themselves(self):
    command = lock.compile_command("clients", ["--upgrade"])
    self.assertIn("requirements_clients.txt", command)
    self.assertIn("requirements_clients.in", command)
    self.assertEqual(command[-1], "--upgrade")
    self.assertNotIn("requirements.in", command)
    self.assertNotIn("--constraints", command)

  def test_beam_is_resolved_for_itself(self):
    command = lock.compile_command("beam", [])
    self.assertIn("requirements_beam.in", command)
    self.assertEqual(command[-2:], ["--overrides", "-"])
    self.assertNotIn("requirements.in", command)
    self.assertNotIn("--constraints", command)

  def test_standard_input(self):
    self.assertEqual(lock.standard_input("tpu"), "jax[tpu]")
    self.assertIn("rouge-score", lock.standard_input("clients"))
    self.assertIn("google-apitools>=", lock.standard_input("beam"))


if __name__ == "__main__":
  absltest.main()
