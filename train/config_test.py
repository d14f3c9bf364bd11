"""Configs: reading, overriding, refusing, comparing."""

import dataclasses
import importlib
import json
import os
import pathlib
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import ml_collections

from model import config as model_config
from model import schema
from model import sharding
from model.presets import deepseek
from model.presets import gemma
from model.presets import gpt_oss
from model.presets import kanana
from model.presets import qwen
from train import balance
from train import config
from train import ema
from train import fixtures
from train import optimizer
from train import schedule

_HERE = pathlib.Path(__file__).parent
_EXPERIMENTS = sorted(path.stem for path in (_HERE / "configs").glob("*.py"))


def _experiment(name: str) -> ml_collections.ConfigDict:
  return importlib.import_module(f"train.configs.{name}").get_config()


class ReadTest(parameterized.TestCase):
  def test_round_trip(self):
    run = fixtures.run_config()
    read = config.from_config_dict(config.to_config_dict(run), base_dir="/")
    self.assertEqual(read, run)

  @parameterized.parameters(
    deepseek.v3,
    gemma.v3_4b,
    gpt_oss.m20b,
    kanana.v2_30b_a3b,
    qwen.v3_next_80b_a3b,
  )
  def test_round_trip_of_unions(self, make):
    """What kind a mixer, feed-forward or scaling is survives the ConfigDict."""
    run = dataclasses.replace(fixtures.run_config(), model=make())
    overridable = config.to_config_dict(run)
    read = config.from_config_dict(overridable, base_dir="/")
    self.assertEqual(read, run)

  def test_override_inside_a_union(self):
    run = dataclasses.replace(fixtures.run_config(), model=gemma.v3_4b())
    overridable = config.to_config_dict(run)
    block = overridable.model.groups[0].pattern[5]
    block.mixer.window = 7
    block.mixer.rope.scaling.factor = 2.0
    block.feed_forward.dim = 48
    changed = config.from_config_dict(overridable, base_dir="/")
    block = changed.model.groups[0].pattern[5]
    assert isinstance(block.mixer, model_config.AttentionConfig)
    self.assertEqual(block.mixer.window, 7)
    self.assertEqual(
      block.mixer.rope,
      model_config.RopeConfig(
        theta=1e6, scaling=model_config.LinearScaling(factor=2.0)
      ),
    )
    self.assertEqual(block.feed_forward.dim, 48)

  def test_another_kind_by_override(self):
    overridable = config.to_config_dict(fixtures.run_config())
    overridable.model.groups[0].pattern[0].mixer.kind = "mla"
    with self.assertRaisesRegex(
      ValueError,
      r"config.model.groups\[0\].pattern\[0\].mixer.head_dim is not a setting",
    ):
      config.from_config_dict(overridable, base_dir="/")

  def test_saved_round_trip(self):
    run = fixtures.run_config()
    saved = json.loads(json.dumps(schema.to_dict(run)))
    self.assertEqual(config.from_saved(saved), run)

  def test_overrides_reach_the_run(self):
    overridable = config.to_config_dict(fixtures.run_config())
    overridable.run.steps = 7
    overridable.mesh.fsdp = 4
    overridable.model.groups[0].repeats = 5
    run = config.from_config_dict(overridable, base_dir="/")
    self.assertEqual(run.run.steps, 7)
    self.assertEqual(run.mesh.fsdp, 4)
    self.assertEqual(run.model.num_layers, 5)

  def test_unset_fields_are_typed(self):
    overridable = config.to_config_dict(fixtures.run_config())
    with self.assertRaises(TypeError):
      overridable.mesh.fsdp = "four"
    with self.assertRaises((AttributeError, KeyError)):
      overridable.mesh.fdsp = 4

  def test_unknown_field_of_an_experiment(self):
    overridable = config.to_config_dict(fixtures.run_config())
    with overridable.unlocked():
      overridable.optimizer.weight_decy = 0.1
    with self.assertRaisesRegex(
      ValueError,
      "config.optimizer.weight_decy is not a setting.*"
      "did you mean config.optimizer.weight_decay",
    ):
      config.from_config_dict(overridable, base_dir="/")

  def test_wrong_type_in_an_experiment(self):
    overridable = config.to_config_dict(fixtures.run_config())
    with overridable.unlocked():
      del overridable.run["steps"]
      overridable.run.steps = "many"
    with self.assertRaisesRegex(ValueError, "config.run.steps='many' is str"):
      config.from_config_dict(overridable, base_dir="/")

  def test_missing_field(self):
    overridable = config.to_config_dict(fixtures.run_config())
    with overridable.unlocked():
      del overridable.run["steps"]
    with self.assertRaisesRegex(ValueError, "config.run.steps is missing"):
      config.from_config_dict(overridable, base_dir="/")

  def test_relative_data_paths_start_at_the_user(self):
    folder = self.create_tempdir().full_path
    run = fixtures.text_config(pathlib.Path(folder))
    relative = dataclasses.replace(
      run.data,
      tokenizer="tok",
      sources=tuple(
        dataclasses.replace(source, path=f"x/{source.name}")
        for source in run.data.sources
      ),
    )
    run = dataclasses.replace(run, data=relative)
    read = config.from_config_dict(config.to_config_dict(run), base_dir="/u")
    self.assertEqual(read.data.tokenizer, "/u/tok")
    self.assertEqual(read.data.sources[0].path, "/u/x/a")
    self.assertEqual(
      read.data.sources[0].eval_path, run.data.sources[0].eval_path
    )


class CheckTest(parameterized.TestCase):
  @parameterized.parameters(
    ({"steps": 0}, "run.steps=0 must be at least 1"),
    ({"batch_size": 0}, "run.batch_size=0"),
    ({"accumulation": 3}, "run.batch_size=8 must be a multiple of.*=3"),
    ({"seq_len": 65}, "run.seq_len=65 exceeds the model's context.*=64"),
  )
  def test_refuses_a_loop(self, changed, message):
    run = fixtures.run_config()
    with self.assertRaisesRegex(ValueError, message):
      dataclasses.replace(run, run=dataclasses.replace(run.run, **changed))

  @parameterized.parameters(
    (config.CheckpointConfig, {"every": 0}, "checkpoint.every=0"),
    (config.CheckpointConfig, {"keep": 0}, "checkpoint.keep=0"),
    (config.EvalConfig, {"every": 0}, "eval.every=0"),
    (config.EvalConfig, {"max_batches": 0}, "eval.max_batches=0"),
    (config.EvalConfig, {"temperature": -0.1}, "eval.temperature=-0.1"),
    (config.ObserveConfig, {"layers_every": 0}, "observe.layers_every=0"),
    (config.ObserveConfig, {"profile_steps": 0}, "observe.profile_steps=0"),
    (config.ObserveConfig, {"profile_at": (5, 0)}, r"profile_at=\(5, 0\)"),
    (config.ObserveConfig, {"profile_every": 3}, "profile_every=3 must exceed"),
  )
  def test_refuses_a_section(self, section, settings, message):
    with self.assertRaisesRegex(ValueError, message):
      section(**settings)

  def test_traces_must_begin_within_the_run(self):
    traced = config.ObserveConfig(profile_at=(2, 7))
    with self.assertRaisesRegex(ValueError, r"=\(2, 7\) is .*run.steps=6"):
      dataclasses.replace(fixtures.run_config(steps=6), observe=traced)
    dataclasses.replace(fixtures.run_config(steps=7), observe=traced)

  def test_samples_must_fit_the_context(self):
    root = pathlib.Path(self.create_tempdir().full_path)
    run = fixtures.text_config(root)
    prompts = config.EvalConfig(prompts=("x",), sample_tokens=33)
    with self.assertRaisesRegex(ValueError, "sample_tokens=33: .* 66 tokens"):
      dataclasses.replace(run, eval=prompts)

  def test_prompts_need_a_tokenizer(self):
    run = fixtures.run_config()
    with self.assertRaisesRegex(ValueError, "eval.prompts=.*no tokenizer"):
      dataclasses.replace(
        run, eval=dataclasses.replace(run.eval, prompts=("x",))
      )

  @parameterized.parameters("aux_loss_weight", "z_loss_weight")
  def test_losses_of_routers_need_experts(self, name):
    run = fixtures.run_config()
    settings: dict[str, Any] = {name: 0.1}
    losses = balance.BalanceConfig(**settings)
    with self.assertRaisesRegex(
      ValueError, f"balance.{name}=0.1, but tiny has no experts"
    ):
      dataclasses.replace(run, balance=losses)
    dataclasses.replace(run, balance=losses, model=kanana.moe_13b())

  @parameterized.parameters(
    (None, "global_batch", []),
    (None, "batch", ["run.accumulation"]),
    (1.25, "sequence", ["mesh.fsdp", "run.accumulation"]),
  )
  def test_pieces_matter_where_experts_see_them(
    self, capacity, scope, expected
  ):
    model = kanana.moe_13b()
    (group,) = model.groups
    (block,) = group.pattern
    assert isinstance(block.feed_forward, model_config.MoeConfig)
    moe = dataclasses.replace(block.feed_forward, capacity_factor=capacity)
    block = dataclasses.replace(block, feed_forward=moe)
    group = dataclasses.replace(group, pattern=(block,))
    old = dataclasses.replace(
      fixtures.run_config(),
      model=dataclasses.replace(model, groups=(group,)),
      balance=balance.BalanceConfig(aux_loss_weight=0.1, aux_loss_scope=scope),
    )
    new = dataclasses.replace(
      old,
      run=dataclasses.replace(old.run, accumulation=2),
      mesh=sharding.MeshConfig(fsdp=2),
    )
    self.assertEqual(sorted(config.changes(old, new)), expected)

  def test_an_average_must_be_right(self):
    free = optimizer.OptimizerConfig(kind="schedule_free")
    average = ema.EmaConfig(decay=0.99)
    low = model_config.ExecutionConfig(param_dtype="bfloat16")
    refused: tuple[tuple[dict[str, Any], str], ...] = (
      ({"ema": average, "execution": low}, "execution.param_dtype='bfloat16'"),
      ({"optimizer": free, "execution": low}, "set it to 'float32'"),
      ({"optimizer": free, "ema": average}, "leave ema.decay unset"),
      (
        {
          "optimizer": free,
          "schedule": schedule.ScheduleConfig(kind="cosine", peak=1e-2),
        },
        "schedule.kind='cosine' with optimizer.kind='schedule_free'",
      ),
    )
    for settings, message in refused:
      with self.assertRaisesRegex(ValueError, message):
        fixtures.run_config(**settings)
    with self.assertRaisesRegex(ValueError, "balance.bias_update_rate=0.001"):
      fixtures.run_config(optimizer=free, model=deepseek.v3())

  def test_a_schedule_must_fit_the_run(self):
    run = fixtures.run_config()
    long = dataclasses.replace(run.schedule, warmup_steps=100)
    with self.assertRaisesRegex(ValueError, "exceed the 6 steps"):
      dataclasses.replace(run, schedule=long)


class ChangesTest(absltest.TestCase):
  def test_same_run(self):
    self.assertEmpty(
      config.changes(fixtures.run_config(), fixtures.run_config())
    )

  def test_names_what_differs(self):
    old = fixtures.run_config()
    new = dataclasses.replace(
      old, optimizer=dataclasses.replace(old.optimizer, b2=0.99)
    )
    self.assertEqual(config.changes(old, new), {"optimizer.b2": (0.95, 0.99)})

  def test_how_it_is_computed_may_differ(self):
    old = fixtures.run_config()
    new = dataclasses.replace(
      old,
      mesh=dataclasses.replace(old.mesh, data=2),
      checkpoint=config.CheckpointConfig(every=9),
      run=dataclasses.replace(old.run, accumulation=2, log_every=1),
      execution=dataclasses.replace(old.execution, remat="full"),
    )
    self.assertEmpty(config.changes(old, new))


class ExperimentsTest(parameterized.TestCase):
  @parameterized.parameters(*_EXPERIMENTS)
  def test_reads(self, name):
    config.from_config_dict(_experiment(name), base_dir="/")

  @parameterized.parameters(*_EXPERIMENTS)
  def test_equals_its_golden(self, name):
    """Run with UPDATE_GOLDENS=1 under `bazel run` to write what changed."""
    run = config.from_config_dict(_experiment(name), base_dir="/")
    text = "".join(
      f"{key} = {value!r}\n"
      for key, value in sorted(schema.flatten(schema.to_dict(run)).items())
    )
    golden = pathlib.Path("configs") / "goldens" / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDENS"):
      tree = os.environ.get("BUILD_WORKSPACE_DIRECTORY", _HERE.parent)
      target = pathlib.Path(tree) / "train" / golden
      target.parent.mkdir(exist_ok=True)
      target.write_text(text)
    self.assertEqual(text, (_HERE / golden).read_text())

  def test_there_are_experiments(self):
    self.assertContainsSubset({"quickstart", "bench_dense"}, _EXPERIMENTS)


if __name__ == "__main__":
  absltest.main()
