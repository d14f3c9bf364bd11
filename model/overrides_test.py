import dataclasses

from absl.testing import absltest

from model import overrides


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Part:
  size: int | None = None
  names: tuple[str, ...] = ("a", "b")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Settings:
  part: _Part = _Part()
  parts: tuple[_Part, ...] = (_Part(size=3),)
  rate: float = 0.5


class OverridesTest(absltest.TestCase):
  def test_there_and_back(self):
    found = overrides.to_plain(overrides.to_config_dict(_Settings()))
    part = {"size": None, "names": ["a", "b"]}
    self.assertEqual(
      found, {"part": part, "parts": [part | {"size": 3}], "rate": 0.5}
    )

  def test_an_unset_field_has_its_type(self):
    config = overrides.to_config_dict(_Settings())
    config.part.size = 7
    self.assertEqual(overrides.to_plain(config)["part"]["size"], 7)
    with self.assertRaises(TypeError):
      config.part.size = "7"
    with self.assertRaises(AttributeError):
      config.part.sise = 7

  def test_absolute_path(self):
    self.assertEqual(overrides.absolute_path("x/../y", "/here"), "/here/y")
    for path in ("", "gs://bucket/x", "/there"):
      self.assertEqual(overrides.absolute_path(path, "/here"), path)


if __name__ == "__main__":
  absltest.main()
