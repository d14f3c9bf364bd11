"""What a train step compiled for a TPU slice needs and does, per device.

Everything is the compiler's word or counted in its program; nothing has run.
What may be believed: memory (a program that does not fit is refused), FLOPs
(`jaxpr_flops.py`), collectives and whether the schedule leaves them time
(`hlo_traffic.py`). The estimated time is of compute alone, without Pallas
kernels, by the compiler's own model of them.
"""

from collections.abc import Iterator
import dataclasses
import re
from typing import Any

import jax

from model import flops
from model import schema
from model import sharding
from train import compiler_options
from train import config as config_lib
from train import hlo
from train import hlo_traffic
from train import jaxpr_flops
from train import program
from train import topology as topology_lib

_GIB = 2.0**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
  """Bytes of a device's memory.

  Attributes:
    capacity: What a program can have.
    arguments: State and batch.
    outputs: New state and metrics.
    aliased: Outputs that take the place of arguments.
    temporaries: All else, while the step runs.
    program: Its code.
    in_use: All of it; where it does not fit, what the compiler says it needs at
      least.
    refusal: What the compiler says where it does not fit, else empty.
  """

  capacity: float
  arguments: float
  outputs: float
  aliased: float
  temporaries: float
  program: float
  in_use: float
  refusal: str

  @property
  def fits(self) -> bool:
    return not self.refusal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
  """What a device does in one step.

  Attributes:
    memory_bytes: Read from and written to its memory.
    compute_seconds: The compiler's estimate, kernels left out; 0: none.
    num_kernels: Pallas kernels in the program.
    unknown_loops: Loops whose length only the data tells; they count once.
    collectives: Largest first.
  """

  memory_bytes: float
  compute_seconds: float
  num_kernels: int
  unknown_loops: int
  collectives: tuple[hlo_traffic.Collective, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """One compiled step. Sizes, FLOPs and times are per device.

  Attributes:
    config: The run.
    topology: The slice.
    shape: Sequences and tokens of each in a batch.
    mesh: Devices along each axis.
    memory: What it needs.
    model_flops: Of the model's definition (//model:flops).
    counted_flops: Of the products in the program.
    work: What it does; None where it does not fit.
    versions: Of what compiled it.
  """

  config: config_lib.RunConfig
  topology: topology_lib.Topology
  shape: tuple[int, int]
  mesh: dict[str, int]
  memory: Memory
  model_flops: float
  counted_flops: float
  work: Work | None
  versions: dict[str, str]


def compile_steps(
  config: config_lib.RunConfig, topology: topology_lib.Topology
) -> Iterator[Report]:
  """Compiles the run's step for each shape of its batches, and reports.

  Raises:
    ValueError: libtpu is missing, or the run does not fit the slice's mesh.
  """
  devices = topology_lib.devices(topology)
  mesh = sharding.make_mesh(config.mesh, devices)
  with jax.set_mesh(mesh):
    traced = program.trace(config, mesh)
    for shape, step in traced.train_steps.items():
      yield _report(config, topology, mesh, (shape[0], shape[1]), step)


def _report(
  config: config_lib.RunConfig,
  topology: topology_lib.Topology,
  mesh: jax.sharding.Mesh,
  shape: tuple[int, int],
  step: jax.stages.Traced,
) -> Report:
  tokens = shape[0] * shape[1]
  needed = tokens * flops.train_per_token(config.model, seq_len=shape[1])
  capacity = topology.generation.hbm_bytes
  work = None
  try:
    compiled = program.compile_step(step, mesh)
    memory = _memory(compiled, capacity)
    work = _work(compiled, topology)
  except jax.errors.JaxRuntimeError as error:
    memory = refused(str(error), capacity)
  return Report(
    config=config,
    topology=topology,
    shape=shape,
    mesh={axis: size for axis, size in mesh.shape.items() if size > 1},
    memory=memory,
    model_flops=needed / mesh.size,
    counted_flops=jaxpr_flops.count(step.jaxpr) / mesh.size,
    work=work,
    versions={"jax": jax.__version__, "libtpu": topology_lib.version()},
  )


def _memory(compiled: jax.stages.Compiled, capacity: float) -> Memory:
  analysis: Any = compiled.memory_analysis()
  arguments = analysis.argument_size_in_bytes
  outputs = analysis.output_size_in_bytes
  aliased = analysis.alias_size_in_bytes
  temporaries = analysis.temp_size_in_bytes
  code = analysis.generated_code_size_in_bytes
  return Memory(
    capacity=capacity,
    arguments=arguments,
    outputs=outputs,
    aliased=aliased,
    temporaries=temporaries,
    program=code,
    in_use=arguments + outputs - aliased + temporaries + code,
    refusal="",
  )


def refused(message: str, capacity: float) -> Memory:
  """What the compiler says of a program that does not fit.

  Raises:
    ValueError: It says something else, such as that an option is unknown.
  """
  line = message.splitlines()[0]
  if "RESOURCE_EXHAUSTED" not in message:
    raise ValueError(
      f"The TPU compiler refuses the program: {line} If it names an option, "
      "train/compiler_options.py sets it."
    )
  # "... HLO temporaries (19.1G) exceeds ..." or "Used 19.1G of 15.7G ...".
  sizes = re.search(r"(?:\(|Used )([\d.]+)([KMGT])\)? (?:exceeds|of)", message)
  units = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}
  wanted = float(sizes[1]) * units[sizes[2]] if sizes else capacity
  return Memory(
    capacity=capacity,
    arguments=0.0,
    outputs=0.0,
    aliased=0.0,
    temporaries=0.0,
    program=0.0,
    in_use=wanted,
    refusal=line,
  )


def _work(
  compiled: jax.stages.Compiled, topology: topology_lib.Topology
) -> Work:
  module = hlo.parse(compiled.as_text() or "")
  clock = topology.generation.clock
  return Work(
    memory_bytes=hlo_traffic.memory_bytes(module),
    compute_seconds=hlo_traffic.cycles(module) / clock if clock else 0.0,
    num_kernels=hlo_traffic.num_kernels(module),
    unknown_loops=hlo_traffic.unknown_loops(module),
    collectives=tuple(hlo_traffic.collectives(module)),
  )


def to_json(report: Report) -> dict[str, Any]:
  """All of it as plain values: bytes, FLOPs, seconds."""
  clock = report.topology.generation.clock
  memory = dataclasses.asdict(report.memory) | {"fits": report.memory.fits}
  work = None
  if report.work is not None:
    work = dataclasses.asdict(report.work)
    for one in work["collectives"]:
      cycles = one.pop("compute_cycles")
      one["compute_seconds"] = cycles / clock if clock else 0.0
  generation = report.topology.generation
  return {
    "model": report.config.model.name,
    "topology": report.topology.name,
    "devices": report.topology.num_devices,
    "device_kind": generation.device_kind,
    "mesh": report.mesh,
    "batch_size": report.shape[0],
    "seq_len": report.shape[1],
    "memory": memory,
    "model_flops": report.model_flops,
    "counted_flops": report.counted_flops,
    "peak_flops": generation.peak_flops,
    "hbm_rate": generation.hbm_rate,
    "work": work,
    "versions": report.versions,
    "config": schema.to_dict(report.config),
  }


def to_text(report: Report) -> str:
  """For people, and to be compared with a later one: figures are rounded."""
  return "\n".join([*_what(report), "", *_memory_lines(report.memory), ""]) + (
    "\n".join(_work_lines(report))
  )


def _what(report: Report) -> list[str]:
  config, topology = report.config, report.topology
  rows, seq_len = report.shape
  num = topology.num_devices
  mesh = " x ".join(f"{axis} {size}" for axis, size in report.mesh.items())
  total = flops.count_parameters(config.model)
  options = len(compiler_options.for_device(topology.generation.device_kind))
  versions = ", ".join(f"{k} {v}" for k, v in report.versions.items())
  return [
    f"{config.model.name} on {topology.name}: {num} devices of kind "
    f"{topology.generation.device_kind}",
    f"  parameters   {total.total / 1e9:.2f} B, {total.active / 1e9:.2f} B "
    "active",
    f"  mesh         {mesh or 'one device'}",
    f"  batch        {rows} x {seq_len} tokens, {rows * seq_len // num} per "
    f"device, in {config.run.accumulation} piece(s)",
    f"  precision    parameters {config.execution.param_dtype}, compute "
    f"{config.execution.compute_dtype}",
    f"  remat        {config.execution.remat}",
    f"  optimizer    {config.optimizer.kind}",
    f"  compiler     {versions}, {options} options",
  ]


def _memory_lines(memory: Memory) -> list[str]:
  lines = ["Memory per device, GiB"]
  if memory.fits:
    lines += [
      f"  state and batch  {_gib(memory.arguments)}",
      f"  not in place     {_gib(memory.outputs - memory.aliased)}",
      f"  temporaries      {_gib(memory.temporaries)}",
      f"  program          {_gib(memory.program)}",
    ]
  spare = memory.capacity - memory.in_use
  if memory.fits:
    verdict = f"fits, {_gib(spare).strip()} to spare"
  else:
    verdict = f"DOES NOT FIT, at least {_gib(-spare).strip()} too much"
  lines += [
    f"  in use           {_gib(memory.in_use)} of {_gib(memory.capacity)}: "
    f"{verdict}"
  ]
  if memory.refusal:
    lines += [f"  the compiler: {memory.refusal}"]
  return lines


def _work_lines(report: Report) -> list[str]:
  generation = report.topology.generation
  ratio = report.counted_flops / report.model_flops
  ideal = report.counted_flops / generation.peak_flops
  lines = [
    "",
    "Compute per device and step",
    f"  model            {report.model_flops / 1e12:8.1f} TFLOP",
    f"  counted          {report.counted_flops / 1e12:8.1f} TFLOP, "
    f"{ratio:.2f} of the model's: {1e3 * ideal:.0f} ms at the peak",
  ]
  work = report.work
  if work is None:
    return [*lines, ""]
  if work.compute_seconds:
    seconds = work.compute_seconds
    lines += [
      f"  compiler's guess {1e3 * seconds:8.0f} ms, kernels and collectives "
      "left out",
    ]
  moving = work.memory_bytes / generation.hbm_rate
  lines += [
    f"  memory traffic   {work.memory_bytes / _GIB:8.0f} GiB: "
    f"{1e3 * moving:.0f} ms at the published rate",
    f"  Pallas kernels   {work.num_kernels:8}",
  ]
  if work.unknown_loops:
    lines += [
      f"  loops counted once, their length unknown: {work.unknown_loops}"
    ]
  lines += [
    "",
    "Collectives per device and step",
    f"  {'kind':<19}{'group':>6}{'count':>7}{'GiB':>9}{'async':>8}"
    f"{'hidden':>8}{'by, ms':>9}",
  ]
  for one in work.collectives:
    by = one.compute_cycles / generation.clock if generation.clock else 0.0
    group = one.group_size or "pairs"
    lines += [
      f"  {one.kind:<19}{group:>6}{one.count:>7}{one.num_bytes / _GIB:>9.2f}"
      f"{_share(one.asynchronous_bytes, one.num_bytes):>8}"
      f"{_share(one.overlapped_bytes, one.num_bytes):>8}{1e3 * by:>9.0f}"
    ]
  if not work.collectives:
    lines += ["  none"]
  return [*lines, ""]


def _share(part: float, whole: float) -> str:
  return f"{100 * part / whole:.0f}%" if whole else "-"


def _gib(num_bytes: float) -> str:
  return f"{num_bytes / _GIB:6.2f}"
