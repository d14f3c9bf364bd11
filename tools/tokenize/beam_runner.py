"""Has the parts of a job done by Apache Beam: on what machines it is told.

Beam only hands the parts out: each is a function of files that writes files, so
what it makes is what processes of one machine make, byte for byte. Input and
output must be at the same path on all machines: a shared folder, or URLs for
the input.
"""

import collections.abc
import dataclasses
from typing import Any

from data import worker_pool

try:
  import apache_beam as beam  # pyrefly: ignore[missing-import]

  # pyrefly: ignore[missing-import]
  from apache_beam.options import pipeline_options
except ImportError:
  # Not in the packages of every program.
  beam = None
  pipeline_options = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beam:
  """A `worker_pool.Runner`.

  Attributes:
    arguments: Beam's own, such as --runner=FlinkRunner.
  """

  arguments: tuple[str, ...] = ()

  def __post_init__(self):
    if beam is None:
      raise ValueError(
        "runner is beam, but Apache Beam is not among the packages; run"
        " `./bazelw run --config=beam //tools/tokenize:beam -- ...`, or install"
        " third_party/python/requirements_beam.txt"
      )

  def __call__(
    self,
    do: collections.abc.Callable[[Any], object],
    parts: collections.abc.Sequence[worker_pool.Part],
    *,
    label: str,
    bytes_done: int,
  ) -> None:
    del bytes_done  # Beam shows its own progress.
    assert beam is not None and pipeline_options is not None
    print(f"{label}: {len(parts)} parts", flush=True)
    options = pipeline_options.PipelineOptions(list(self.arguments))
    try:
      with beam.Pipeline(options=options) as pipeline:
        _ = (
          pipeline
          | "Parts" >> beam.Create(list(parts))
          # Or one worker would do all of them.
          | "Spread" >> beam.Reshuffle()
          | "Do" >> beam.Map(_Do(do))
        )
    except ValueError as error:
      # Of our own errors, Beam says in which step they were.
      message = str(error).partition(" [while running")[0]
      raise ValueError(message) from error


@dataclasses.dataclass(frozen=True)
class _Do:
  """Does a part; what comes of it is in files."""

  do: collections.abc.Callable[[Any], object]

  # Beam checks the types of steps, and fails at a protocol.
  def __call__(self, part: Any) -> None:
    self.do(part)
