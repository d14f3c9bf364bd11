import dataclasses
import enum
import functools
import json
from typing import ClassVar, Literal

from absl.testing import absltest
from absl.testing import parameterized

from model import config as model_config
from model import schema
from model.presets import deepseek
from model.presets import gemma
from model.presets import gpt_oss
from model.presets import kanana
from model.presets import llama
from model.presets import qwen
from model.presets import small


class Color(enum.Enum):
  RED = "red"
  BLUE = "blue"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
  width: int
  scale: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Circle:
  KIND: ClassVar[str] = "circle"
  radius: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Square:
  KIND: ClassVar[str] = "square"
  side: float
  hole: Circle | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
  shape: Circle | Square
  others: tuple[Circle | Square, ...] = ()
  frame: Circle | Square | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
  name: str
  inner: Inner = Inner(width=1)
  inners: tuple[Inner, ...] = ()
  sizes: tuple[int, ...] = ()
  limit: int | None = None
  color: Color = Color.RED
  mode: Literal["fast", "slow"] = "fast"
  flag: bool = False
  made: list = dataclasses.field(default_factory=list, init=False)


def read(**fields):
  return schema.from_dict(Outer, {"name": "x"} | fields, path="run")


class SchemaTest(parameterized.TestCase):
  def test_defaults(self):
    self.assertEqual(read(), Outer(name="x"))

  def test_converts(self):
    outer = read(
      inner={"width": 3, "scale": 2},
      inners=[{"width": 4}, {"width": 5}],
      sizes=[1, 2],
      limit=7,
      color="blue",
      mode="slow",
      flag=True,
    )
    self.assertEqual(
      outer,
      Outer(
        name="x",
        inner=Inner(width=3, scale=2.0),
        inners=(Inner(width=4), Inner(width=5)),
        sizes=(1, 2),
        limit=7,
        color=Color.BLUE,
        mode="slow",
        flag=True,
      ),
    )
    self.assertIsInstance(outer.inner.scale, float)
    self.assertIsInstance(outer.sizes, tuple)

  def test_none_for_optional(self):
    self.assertIsNone(read(limit=None).limit)

  def test_instance_for_mapping(self):
    self.assertEqual(read(inner=Inner(width=9)).inner, Inner(width=9))

  @parameterized.parameters(
    (
      {"nam": "y"},
      r"^run\.nam is not a setting \(value 'y'\); did you mean run\.name\? "
      r"run has: color, flag, inner, inners, limit, mode, name, sizes\.$",
    ),
    ({"zzz": 1}, r"^run\.zzz is not a setting \(value 1\)\. run has: color"),
    ({"made": []}, r"^run\.made is not a setting"),
    (
      {"inner": {"width": 1, "scal": 2}},
      r"^run\.inner\.scal is not .*did you mean run\.inner\.scale\?",
    ),
    (
      {"inner": {"scale": 2.0}},
      r"^run\.inner\.width is missing; Inner requires it\.$",
    ),
    (
      {"inners": [{"width": 1}, {"width": "2"}]},
      r"^run\.inners\[1\]\.width='2' is str; it must be int\.$",
    ),
    ({"inner": 3}, r"^run\.inner=3 must be a mapping with the fields of Inner"),
    ({"inner": None}, r"^run\.inner=None must be a mapping"),
    ({"name": 1}, r"^run\.name=1 is int; it must be str\.$"),
    ({"name": None}, r"^run\.name=None is NoneType; it must be str\.$"),
    ({"limit": "8"}, r"^run\.limit='8' is str; it must be int\.$"),
    ({"limit": True}, r"^run\.limit=True is bool; it must be int\.$"),
    ({"limit": 2.0}, r"^run\.limit=2\.0 is float; it must be int\.$"),
    ({"flag": 1}, r"^run\.flag=1 is int; it must be bool\.$"),
    (
      {"inner": {"width": 1, "scale": True}},
      r"^run\.inner\.scale=True is bool; it must be float\.$",
    ),
    (
      {"inner": {"width": 1, "scale": "1e-3"}},
      r"^run\.inner\.scale='1e-3' is str; it must be float\.$",
    ),
    ({"sizes": 3}, r"^run\.sizes=3 must be a list\.$"),
    ({"sizes": "12"}, r"^run\.sizes='12' must be a list\.$"),
    ({"sizes": [1, 2.5]}, r"^run\.sizes\[1\]=2\.5 is float; it must be int"),
    ({"color": "green"}, r"^run\.color='green' must be one of 'red', 'blue'"),
    ({"mode": "fas"}, r"^run\.mode='fas' must be one of 'fast', 'slow'\.$"),
    ({"mode": None}, r"^run\.mode=None must be one of 'fast', 'slow'\.$"),
  )
  def test_refuses(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      read(**fields)

  def test_missing_key(self):
    with self.assertRaisesRegex(
      ValueError, r"^run\.name is missing; Outer requires it\.$"
    ):
      schema.from_dict(Outer, {}, path="run")

  def test_validation_of_the_class_runs(self):
    with self.assertRaisesRegex(ValueError, "MlpConfig.dim=0 must be positive"):
      schema.from_dict(model_config.MlpConfig, {"dim": 0}, path="mlp")

  @parameterized.parameters(
    small.m1,
    kanana.v2_30b_a3b,
    llama.v3_1_8b,
    gemma.v3_4b,
    gpt_oss.m20b,
    qwen.v3_next_80b_a3b,
    functools.partial(deepseek.v3, mtp=True),
  )
  def test_round_trip_of_presets(self, make):
    config = make()
    text = json.dumps(schema.to_dict(config))
    back = schema.from_dict(
      model_config.ModelConfig, json.loads(text), path="model"
    )
    self.assertEqual(back, config)

  def test_round_trip_of_everything(self):
    outer = read(
      inners=[{"width": 4}], sizes=[1, 2], limit=7, color="blue", flag=True
    )
    plain = schema.to_dict(outer)
    self.assertEqual(
      plain,
      {
        "name": "x",
        "inner": {"width": 1, "scale": 1.0},
        "inners": [{"width": 4, "scale": 1.0}],
        "sizes": [1, 2],
        "limit": 7,
        "color": "blue",
        "mode": "fast",
        "flag": True,
      },
    )
    self.assertEqual(schema.from_dict(Outer, plain, path="run"), outer)

  def test_unions_by_kind(self):
    plain = {
      "shape": {"kind": "square", "side": 2, "hole": {"radius": 1}},
      "others": [{"kind": "circle", "radius": 1.0}],
      "frame": None,
    }
    drawing = schema.from_dict(Drawing, plain, path="drawing")
    self.assertEqual(
      drawing,
      Drawing(
        shape=Square(side=2.0, hole=Circle(radius=1.0)),
        others=(Circle(radius=1.0),),
      ),
    )
    written = schema.to_dict(drawing)
    self.assertEqual(
      written["shape"],
      {
        "kind": "square",
        "side": 2.0,
        "hole": {"kind": "circle", "radius": 1.0},
      },
    )
    self.assertEqual(list(written["shape"]), ["kind", "side", "hole"])
    self.assertIsNone(written["frame"])
    back = schema.from_dict(
      Drawing, json.loads(json.dumps(written)), path="drawing"
    )
    self.assertEqual(back, drawing)

  def test_instance_in_a_union(self):
    circle = Circle(radius=1.0)
    drawing = schema.from_dict(Drawing, {"shape": circle}, path="drawing")
    self.assertIs(drawing.shape, circle)

  @parameterized.parameters(
    (
      {"radius": 1.0},
      r"^d\.shape=\{'radius': 1\.0\} must be a mapping whose 'kind' is one of "
      r"'circle', 'square'\.$",
    ),
    (
      {"kind": "triangle", "side": 1.0},
      r"^d\.shape=.*'triangle'.* whose 'kind' is one of 'circle', 'square'\.$",
    ),
    ({"kind": ["circle"]}, r"^d\.shape=.* whose 'kind' is one of 'circle'"),
    ({"kind": None}, r"^d\.shape=.* whose 'kind' is one of 'circle'"),
    (3, r"^d\.shape=3 must be a mapping whose 'kind' is one of 'circle'"),
    (None, r"^d\.shape=None must be a mapping whose 'kind' is one of 'circle'"),
    (
      Inner(width=1),
      r"^d\.shape=Inner\(.*\) must be a mapping whose 'kind' is one of",
    ),
    (
      {"kind": "circle", "side": 1.0},
      r"^d\.shape\.side is not a setting \(value 1\.0\)",
    ),
    ({"kind": "square"}, r"^d\.shape\.side is missing; Square requires it"),
    (
      {"kind": "square", "side": 1.0, "hole": {"kind": "square", "side": 1.0}},
      r"^d\.shape\.hole\.kind='square' must be 'circle'\.$",
    ),
  )
  def test_refuses_in_a_union(self, shape, message):
    with self.assertRaisesRegex(ValueError, message):
      schema.from_dict(Drawing, {"shape": shape}, path="d")

  def test_a_mixer_is_no_feed_forward(self):
    block = schema.to_dict(small.m1().groups[0].pattern[0])
    with self.assertRaisesRegex(
      ValueError,
      r"^block\.mixer=.* whose 'kind' is one of 'attention', 'mla', "
      r"'gated_delta_net'\.$",
    ):
      schema.from_dict(
        model_config.BlockConfig,
        block | {"mixer": block["feed_forward"]},
        path="block",
      )

  def test_flatten(self):
    self.assertEqual(
      schema.flatten({"a": {"b": 1, "c": [2, {"d": None}]}, "e": "f"}),
      {"a.b": 1, "a.c.0": 2, "a.c.1.d": None, "e": "f"},
    )
    self.assertEqual(schema.flatten({"a": []}), {})
    self.assertEqual(schema.flatten(3, path="x"), {"x": 3})


if __name__ == "__main__":
  absltest.main()
