"""A run small enough to train in a test."""

import dataclasses
import json
import os
import pathlib
import sys
from typing import Any

from data import config as data_config
from data import fixtures
from model import config as model_config
from model import schema
from train import config
from train import optimizer
from train import schedule

SEQ_LEN = 32
VOCAB_SIZE = 300


def model(**settings) -> model_config.ModelConfig:
  """Two layers of width 32, with grouped queries."""
  defaults: dict[str, Any] = {
    "name": "tiny",
    "vocab_size": VOCAB_SIZE,
    "dim": 32,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "mlp_dim": 64,
    "tie_embeddings": True,
    "max_seq_len": 64,
  }
  return model_config.dense(**(defaults | settings))


def run_config(
  data: data_config.DataConfig | None = None, *, steps: int = 6, **settings
) -> config.RunConfig:
  """A run of a few steps in float32.

  Args:
    data: What to train on; synthetic tokens if not given.
    steps: Its length.
    **settings: Further fields of RunConfig.
  """
  if data is None:
    data = data_config.DataConfig(
      kind=data_config.Kind.SYNTHETIC, vocab_size=VOCAB_SIZE
    )
  defaults: dict[str, Any] = {
    "model": model(),
    "data": data,
    "execution": model_config.ExecutionConfig(compute_dtype="float32"),
    "schedule": schedule.ScheduleConfig(kind="constant", peak=1e-2),
    "optimizer": optimizer.OptimizerConfig(),
    "run": config.LoopConfig(
      steps=steps, batch_size=8, seq_len=SEQ_LEN, log_every=2
    ),
    "checkpoint": config.CheckpointConfig(every=2, keep=5),
    "eval": config.EvalConfig(every=4, max_batches=1, sample_tokens=8),
  }
  return config.RunConfig(**(defaults | settings))


def text_config(root: pathlib.Path, **settings) -> config.RunConfig:
  """A run on two small sources of real text, written under `root`."""
  return run_config(fixtures.write_mixture(root), **settings)


def with_steps(run: config.RunConfig, steps: int) -> config.RunConfig:
  """The same run, of another length."""
  return dataclasses.replace(run, run=dataclasses.replace(run.run, steps=steps))


def write_experiment(path: pathlib.Path, run: config.RunConfig) -> pathlib.Path:
  """Writes an experiment file that gives `run`."""
  values = json.dumps(schema.to_dict(run))
  path.write_text(
    "import json\n"
    "from train import config\n"
    "def get_config():\n"
    f"  saved = json.loads({values!r})\n"
    "  return config.to_config_dict(config.from_saved(saved))\n"
  )
  return path


def main_command(*arguments: str) -> list[str]:
  """The command that runs the trainer with this interpreter."""
  return [sys.executable, "-m", "train.main", *arguments]


def main_environment() -> dict[str, str]:
  """This process's environment, where `main_command` finds its imports."""
  return os.environ | {
    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    "JAX_PLATFORMS": "cpu",
    # Two runs that are compared bit by bit must be compiled alike.
    "XLA_FLAGS": "",
  }
