import os
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from data import fixtures
from data import wheels


class WheelsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.wheels = self.folder / "wheels"
    self.lock = self.folder / "requirements.txt"
    self.target = self.folder / "packages"
    pins = [
      fixtures.write_wheel(self.wheels, name, {f"{name}/x.txt": f"of {name}"})
      for name in ("one", "two")
    ]
    self.lock.write_text("# A comment.\n" + "".join(pins))

  def unpack(self):
    wheels.unpack(self.lock, self.target, wheels=self.wheels)

  def test_unpacks_the_locked_packages(self):
    self.unpack()
    for name in ("one", "two"):
      text = (self.target / name / "x.txt").read_text()
      self.assertEqual(text, f"of {name}")

  def test_either_installer_does(self):
    tools = wheels._installers()
    self.assertIn("uv", [tool for tool, _, _ in tools])
    for tool in tools:
      with mock.patch.object(wheels, "_installers", lambda tool=tool: [tool]):
        target = self.folder / tool[0]
        wheels.unpack(self.lock, target, wheels=self.wheels)
        self.assertTrue((target / "two" / "x.txt").is_file(), tool[0])

  def test_the_second_installer_helps_the_first(self):
    broken = ("broken", ["false"], dict(os.environ))
    tools = [broken, *wheels._installers()]
    with mock.patch.object(wheels, "_installers", lambda: tools):
      self.unpack()
    self.assertTrue((self.target / "one" / "x.txt").is_file())

  def test_what_is_there_is_left_as_is(self):
    self.target.mkdir()
    self.unpack()
    self.assertEmpty(list(self.target.iterdir()))

  def test_refuses_another_digest(self):
    fixtures.write_wheel(self.wheels, "two", {"two/x.txt": "changed"})
    with self.assertRaisesRegex(ValueError, "(?is)hash.*one==1.0, two==1.0"):
      self.unpack()
    self.assertFalse(self.target.exists())
    self.assertEmpty(list(self.folder.glob("*.partial")))

  def test_a_missing_package_is_named_with_the_way_out(self):
    next(self.wheels.glob("two*")).unlink()
    message = f"(?s)two.*pip download .* put the wheels in {self.wheels}"
    with self.assertRaisesRegex(ValueError, message):
      self.unpack()

  def test_uv_gets_the_settings_of_pip(self):
    environment = {"PIP_INDEX_URL": "https://mirror/simple", "PIP_CERT": "/c"}
    with mock.patch.dict(os.environ, environment, clear=True):
      given = {tool: env for tool, _, env in wheels._installers()}["uv"]
    self.assertEqual(given["UV_DEFAULT_INDEX"], "https://mirror/simple")
    self.assertEqual(given["SSL_CERT_FILE"], "/c")
    environment["UV_DEFAULT_INDEX"] = "https://own/simple"
    with mock.patch.dict(os.environ, environment, clear=True):
      given = {tool: env for tool, _, env in wheels._installers()}["uv"]
    self.assertEqual(given["UV_DEFAULT_INDEX"], "https://own/simple")


if __name__ == "__main__":
  absltest.main()
