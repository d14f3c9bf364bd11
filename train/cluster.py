"""Which processes make up a run: by flags, or by what the scheduler says.

JAX finds some clusters itself; this does it in the open, so that it can be
tested, printed and refused with a message, and where JAX's rules do harm: it
gives a Slurm task that has a node to itself one GPU of that node's eight.

  flags        --coordinator, --num_processes, --process_id
  variables    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID; or
               JOB_COMPLETION_INDEX, in an indexed Job or a JobSet
  TPU on GKE   TPU_WORKER_HOSTNAMES, TPU_WORKER_ID, MEGASCALE_*
  TPU VM       the same from the metadata server
  Slurm        what srun sets for a task
"""

from collections.abc import Callable, Mapping
import dataclasses
import pathlib
import re
import urllib.error
import urllib.request

from absl import logging
from jax._src import hardware_utils

_PORT = 8476
# Above the ports that Linux gives to outgoing connections.
_FIRST_SLURM_PORT, _NUM_SLURM_PORTS = 61440, 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
  """A process and its place among those of a run.

  Attributes:
    coordinator: host:port where process 0 listens.
    num_processes: Of the run.
    process_id: This one's number.
    local_devices: GPUs of the host that are this process's; None: all.
    source: What said so, for people.
  """

  coordinator: str
  num_processes: int
  process_id: int
  local_devices: tuple[int, ...] | None = None
  source: str

  def __post_init__(self):
    if self.num_processes < 1:
      raise ValueError(
        f"{self.source}: the number of processes is {self.num_processes}; it "
        "must be 1 or more."
      )
    if not 0 <= self.process_id < self.num_processes:
      raise ValueError(
        f"{self.source}: this process's number is {self.process_id}; of "
        f"{self.num_processes} processes it must be 0 to "
        f"{self.num_processes - 1}."
      )
    host, _, port = self.coordinator.rpartition(":")
    if not host or not port.isdigit():
      raise ValueError(
        f"{self.source}: the coordinator is {self.coordinator!r}; give "
        f"HOST:PORT of process 0, such as 10.0.0.1:{_PORT}."
      )


def find(
  *,
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  environment: Mapping[str, str],
  read_metadata: Callable[[str], str | None] | None = None,
) -> Cluster | None:
  """The processes that this one runs with, or None if it runs alone.

  Args:
    coordinator: --coordinator.
    num_processes: --num_processes.
    process_id: --process_id.
    environment: Environment variables.
    read_metadata: (attribute of a TPU VM) -> value, or None if it has none;
      not given: asks the metadata server where there are TPUs.

  Raises:
    ValueError: Flags or variables are incomplete or contradict each other.
  """
  flags = {
    "--coordinator": coordinator,
    "--num_processes": num_processes,
    "--process_id": process_id,
  }
  missing = [name for name, value in flags.items() if value is None]
  if missing and len(missing) < len(flags):
    given = [name for name in flags if name not in missing]
    raise ValueError(
      f"{', '.join(given)} needs {', '.join(missing)} as well; give all three, "
      "or none where Slurm, Kubernetes or a TPU pod starts the processes."
    )
  if coordinator is None or num_processes is None or process_id is None:
    found = (
      _from_variables(environment)
      or _from_tpu(environment, read_metadata)
      or _from_slurm(environment)
    )
  else:
    found = Cluster(
      coordinator=coordinator,
      num_processes=num_processes,
      process_id=process_id,
      source="--coordinator, --num_processes, --process_id",
    )
  return found if found is not None and found.num_processes > 1 else None


def _from_variables(environment: Mapping[str, str]) -> Cluster | None:
  """JAX's own variables; on Kubernetes the index of the pod is its number."""
  if "JAX_NUM_PROCESSES" not in environment:
    return None
  names = ["JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES"]
  process = "JAX_PROCESS_ID"
  if process not in environment and "JOB_COMPLETION_INDEX" in environment:
    process = "JOB_COMPLETION_INDEX"
  names.append(process)
  return Cluster(
    coordinator=_with_port(_require(environment, names[0], names)),
    num_processes=_integer(environment, names[1]),
    process_id=_integer(environment, process, names),
    source=", ".join(names),
  )


def _from_tpu(
  environment: Mapping[str, str],
  read_metadata: Callable[[str], str | None] | None,
) -> Cluster | None:
  """The hosts of a slice, and of all slices where there are several."""
  platforms = environment.get("JAX_PLATFORMS", "")
  if platforms and "tpu" not in platforms.split(","):
    return None
  workers = _gke_workers(environment)
  if workers is not None:
    worker = _integer(environment, "TPU_WORKER_ID", ["TPU_WORKER_HOSTNAMES"])
    slices = environment
    source = "TPU_WORKER_HOSTNAMES, TPU_WORKER_ID"
  elif "TPU_SKIP_MDS_QUERY" in environment:
    return None
  else:
    if read_metadata is None:
      if not hardware_utils.num_available_tpu_chips_and_device_id()[0]:
        return None
      read_metadata = _reader(environment)
    number = read_metadata("agent-worker-number")
    endpoints = read_metadata("worker-network-endpoints")
    if number is None or endpoints is None:
      return None
    worker = int(number)
    # `host`, or `name:number:address` as older machines have it.
    workers = [part.split(":")[-1] for part in endpoints.split(",")]
    slices = _tpu_environment(read_metadata("tpu-env") or "") | dict(
      environment
    )
    source = "metadata of the TPU VM"
  num_slices = int(slices.get("MEGASCALE_NUM_SLICES", "") or 1)
  slice_id = int(slices.get("MEGASCALE_SLICE_ID", "") or 0)
  first = slices.get("MEGASCALE_COORDINATOR_ADDRESS", "") or workers[0]
  if num_slices > 1:
    source += ", MEGASCALE_NUM_SLICES, MEGASCALE_SLICE_ID"
  return Cluster(
    # Megascale listens there too, on a port of its own.
    coordinator=f"{first.split(':')[0]}:{_PORT}",
    num_processes=len(workers) * num_slices,
    process_id=worker + slice_id * len(workers),
    source=source,
  )


def _gke_workers(environment: Mapping[str, str]) -> list[str] | None:
  """The hosts of this slice, as GKE gives them to its pods."""
  if "TPU_WORKER_ID" not in environment:
    return None
  names = environment.get("TPU_WORKER_HOSTNAMES", "")
  if path := environment.get("TPU_PROCESS_ADDRESSES_PATH"):
    names = pathlib.Path(path).read_text(encoding="utf-8").strip()
  names = environment.get("TPU_PROCESS_ADDRESSES") or names
  return [name.split(":")[0] for name in names.split(",")] if names else None


def _tpu_environment(text: str) -> dict[str, str]:
  """The attribute tpu-env: lines of NAME: 'value'."""
  pairs = (line.partition(":") for line in text.splitlines())
  return {name.strip(): value.strip().strip("'") for name, _, value in pairs}


def _reader(environment: Mapping[str, str]) -> Callable[[str], str | None]:
  """Asks Google Cloud's metadata server, as every VM there can."""
  host = environment.get("GCE_METADATA_IP", "metadata.google.internal")
  base = f"http://{host}/computeMetadata/v1/instance/attributes"

  def read(attribute: str) -> str | None:
    request = urllib.request.Request(
      f"{base}/{attribute}", headers={"Metadata-Flavor": "Google"}
    )
    try:
      with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.read().decode()
    except urllib.error.HTTPError as error:
      if error.code == 404:
        return None
      raise ValueError(_unreadable(base, error)) from error
    except OSError as error:
      raise ValueError(_unreadable(base, error)) from error

  return read


def _unreadable(base: str, error: OSError) -> str:
  return (
    f"There are TPUs here, but {base} cannot be read ({error}), which would "
    "name the other hosts. Give --coordinator, --num_processes and "
    "--process_id, or set TPU_SKIP_MDS_QUERY=1 if this host runs alone."
  )


def _from_slurm(environment: Mapping[str, str]) -> Cluster | None:
  """What srun sets for a task; sbatch's own script is not one."""
  if "SLURM_STEP_NODELIST" not in environment:
    if int(environment.get("SLURM_NTASKS", "1")) > 1:
      logging.warning(
        "SLURM_NTASKS=%s, but srun did not start this process: it runs alone.",
        environment["SLURM_NTASKS"],
      )
    return None
  names = ["SLURM_STEP_NODELIST"]
  total = "SLURM_STEP_NUM_TASKS"
  if total not in environment:
    total = "SLURM_NTASKS"
  job = _integer(environment, "SLURM_JOB_ID", names)
  step = environment.get("SLURM_STEP_ID", "0")
  offset = job + (int(step) if step.isdigit() else 0)
  host = _first_host(environment["SLURM_STEP_NODELIST"])
  return Cluster(
    coordinator=f"{host}:{_FIRST_SLURM_PORT + offset % _NUM_SLURM_PORTS}",
    num_processes=_integer(environment, total, names),
    process_id=_integer(environment, "SLURM_PROCID", names),
    local_devices=_slurm_devices(environment),
    source=f"Slurm ({total}, SLURM_PROCID)",
  )


def _first_host(nodes: str) -> str:
  """The first of Slurm's list of hosts, such as `gpu[003,007-9]-ib,login1`."""
  match = re.match(r"(?:\[[^\]]*\]|[^,\[])+", nodes)
  if match is None:
    raise ValueError(f"SLURM_STEP_NODELIST={nodes!r} names no host.")
  return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", match[0])


def _slurm_devices(environment: Mapping[str, str]) -> tuple[int, ...] | None:
  """GPUs of a task that shares its host with others: an equal part.

  None for all that it sees: it is alone there, or Slurm has bound it.
  """
  visible = [
    name
    for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if name
  ]
  num_tasks = _tasks_on_this_node(environment)
  local = int(environment.get("SLURM_LOCALID", "0"))
  if num_tasks == 1 or len(visible) == 1:
    return None
  if not visible:
    return (local,)
  share = len(visible) // num_tasks
  if share * num_tasks != len(visible):
    raise ValueError(
      f"CUDA_VISIBLE_DEVICES={','.join(visible)}: {len(visible)} GPUs cannot "
      f"be shared by {num_tasks} tasks of a node; ask Slurm for a number of "
      "tasks that divides them, or bind them with --gpus-per-task."
    )
  return tuple(range(local * share, (local + 1) * share))


def _tasks_on_this_node(environment: Mapping[str, str]) -> int:
  """From lists such as `8(x2),4`; one entry for each node."""
  counts: list[int] = []
  listed = environment.get("SLURM_STEP_TASKS_PER_NODE", "1")
  for count, repeats in re.findall(r"(\d+)(?:\(x(\d+)\))?", listed):
    counts += [int(count)] * int(repeats or 1)
  node = int(environment.get("SLURM_NODEID", "0"))
  return counts[node] if node < len(counts) else counts[-1]


def _with_port(address: str) -> str:
  return address if ":" in address else f"{address}:{_PORT}"


def _require(
  environment: Mapping[str, str], name: str, others: list[str]
) -> str:
  if not environment.get(name):
    given = ", ".join(other for other in others if other in environment)
    raise ValueError(f"{name} is not set, but {given} is; set it too.")
  return environment[name]


def _integer(
  environment: Mapping[str, str], name: str, others: list[str] | None = None
) -> int:
  value = _require(environment, name, others or [])
  if not value.isdigit():
    raise ValueError(f"{name}={value!r} must be a number.")
  return int(value)
