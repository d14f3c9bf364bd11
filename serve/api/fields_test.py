from absl.testing import absltest
import msgspec

from serve.api import fields


class _Body(msgspec.Struct):
  seed: fields.Seed = 0
  temperature: fields.Temperature = 1.0
  beams: fields.OnlyFalse = None


class FieldsTest(absltest.TestCase):
  def test_limits(self):
    for body in (
      b'{"seed":-9223372036854775808}',
      b'{"seed":9223372036854775807}',
      b'{"temperature":2}',
    ):
      msgspec.json.decode(body, type=_Body)
    for body in (b'{"seed":9223372036854775808}', b'{"temperature":2.1}'):
      with self.assertRaises(msgspec.ValidationError):
        msgspec.json.decode(body, type=_Body)

  def test_only(self):
    info = msgspec.inspect.type_info(_Body)
    assert isinstance(info, msgspec.inspect.StructType)
    (beams,) = [field for field in info.fields if field.name == "beams"]
    assert isinstance(beams.type, msgspec.inspect.Metadata)
    self.assertEqual(fields.allowed(beams.type.extra), (False,))
    self.assertIsNone(fields.allowed(None))


if __name__ == "__main__":
  absltest.main()
