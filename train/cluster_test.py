"""Who belongs to a run, as flags and schedulers say it."""

import http.server
import threading

from absl.testing import absltest
from absl.testing import parameterized

from train import cluster

_SLURM = {
  "SLURM_JOB_ID": "4097",
  "SLURM_STEP_ID": "2",
  "SLURM_STEP_NODELIST": "gpu[003,007-009]-ib,login1",
  "SLURM_STEP_NUM_TASKS": "4",
  "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
  "SLURM_PROCID": "2",
  "SLURM_LOCALID": "0",
  "SLURM_NODEID": "2",
}
_GKE = {"TPU_WORKER_HOSTNAMES": "pod-0.svc,pod-1.svc", "TPU_WORKER_ID": "1"}
_METADATA = {
  "agent-worker-number": "3",
  "worker-network-endpoints": "a:0:10.0.0.7,b:1:10.0.0.8,c:2:x,d:3:y",
  "tpu-env": "ZONE: 'z'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"
  "MEGASCALE_COORDINATOR_ADDRESS: '10.0.0.1:8080'\n",
}


def find(**settings) -> cluster.Cluster:
  found = cluster.find(**settings)
  assert found is not None
  return found


def summary(found):
  return (found.coordinator, found.num_processes, found.process_id)


class ClusterTest(parameterized.TestCase):
  def test_alone(self):
    self.assertIsNone(cluster.find(environment={}))

  def test_flags(self):
    found = find(
      coordinator="a:1", num_processes=2, process_id=1, environment=_SLURM
    )
    self.assertEqual(summary(found), ("a:1", 2, 1))
    self.assertIsNone(
      cluster.find(
        coordinator="a:1", num_processes=1, process_id=0, environment={}
      )
    )

  @parameterized.parameters(
    ({"process_id": 0}, "--process_id needs --coordinator, --num_processes"),
    (
      {"coordinator": "a:1", "num_processes": 2},
      "--coordinator, --num_processes needs --process_id",
    ),
    (
      {"coordinator": "a:1", "num_processes": 2, "process_id": 2},
      "this process's number is 2; of 2 processes it must be 0 to 1",
    ),
    (
      {"coordinator": "a:1", "num_processes": 0, "process_id": 0},
      "number of processes is 0",
    ),
    (
      {"coordinator": "a", "num_processes": 2, "process_id": 0},
      "coordinator is 'a'; give HOST:PORT",
    ),
  )
  def test_refuses_flags(self, flags, message):
    with self.assertRaisesRegex(ValueError, message):
      cluster.find(environment={}, **flags)

  def test_variables(self):
    environment = {
      "JAX_COORDINATOR_ADDRESS": "run-workers-0-0.run",
      "JAX_NUM_PROCESSES": "4",
      "JOB_COMPLETION_INDEX": "3",
    }
    found = find(environment=environment)
    self.assertEqual(summary(found), ("run-workers-0-0.run:8476", 4, 3))
    self.assertIn("JOB_COMPLETION_INDEX", found.source)
    found = find(environment=environment | {"JAX_PROCESS_ID": "1"})
    self.assertEqual(found.process_id, 1)

  @parameterized.parameters(
    ({"JAX_NUM_PROCESSES": "2"}, "JAX_COORDINATOR_ADDRESS is not set"),
    (
      {"JAX_NUM_PROCESSES": "2", "JAX_COORDINATOR_ADDRESS": "a"},
      "JAX_PROCESS_ID is not set, but JAX_COORDINATOR_ADDRESS, JAX_NUM_PROC",
    ),
    (
      {"JAX_NUM_PROCESSES": "two", "JAX_COORDINATOR_ADDRESS": "a"},
      "JAX_NUM_PROCESSES='two' must be a number",
    ),
  )
  def test_refuses_variables(self, environment, message):
    with self.assertRaisesRegex(ValueError, message):
      cluster.find(environment=environment)

  def test_tpu_on_gke(self):
    found = find(environment=_GKE)
    self.assertEqual(summary(found), ("pod-0.svc:8476", 2, 1))

  def test_slices_on_gke(self):
    environment = _GKE | {
      "MEGASCALE_NUM_SLICES": "3",
      "MEGASCALE_SLICE_ID": "2",
      "MEGASCALE_COORDINATOR_ADDRESS": "job-0-0.svc:8081",
    }
    found = find(environment=environment)
    self.assertEqual(summary(found), ("job-0-0.svc:8476", 6, 5))

  def test_newer_gke_names_addresses(self):
    environment = _GKE | {"TPU_PROCESS_ADDRESSES": "x:8471,y:8471,z:8471"}
    found = find(environment=environment)
    self.assertEqual(summary(found), ("x:8476", 3, 1))

  def test_one_tpu_host_is_alone(self):
    self.assertIsNone(
      cluster.find(
        environment={"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
      )
    )

  def test_another_platform_is_asked_for(self):
    self.assertIsNone(cluster.find(environment=_GKE | {"JAX_PLATFORMS": "cpu"}))

  def test_tpu_vm(self):
    found = find(environment={}, read_metadata=_METADATA.get)
    self.assertEqual(summary(found), ("10.0.0.1:8476", 8, 7))
    one_slice = {k: v for k, v in _METADATA.items() if k != "tpu-env"}
    found = find(environment={}, read_metadata=one_slice.get)
    self.assertEqual(summary(found), ("10.0.0.7:8476", 4, 3))
    self.assertIsNone(cluster.find(environment={}, read_metadata={}.get))

  def test_metadata_server(self):
    headers = []

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_GET(self):
        headers.append(self.headers["Metadata-Flavor"])
        name = self.path.removeprefix(
          "/computeMetadata/v1/instance/attributes/"
        )
        self.send_response(200 if name in _METADATA else 404)
        self.end_headers()
        self.wfile.write(_METADATA.get(name, "").encode())

      def log_message(self, format, *args):
        pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
      threading.Thread(target=server.serve_forever, daemon=True).start()
      host = f"127.0.0.1:{server.server_port}"
      read = cluster._reader({"GCE_METADATA_IP": host})
      self.assertEqual(read("agent-worker-number"), "3")
      self.assertIsNone(read("other"))
      server.shutdown()
    self.assertEqual(headers, ["Google", "Google"])
    with self.assertRaisesRegex(ValueError, "--coordinator.*MDS_QUERY=1"):
      read("agent-worker-number")

  def test_slurm(self):
    found = find(environment=_SLURM)
    # 61440 + (4097 + 2) % 4096
    self.assertEqual(summary(found), ("gpu003-ib:61443", 4, 2))
    self.assertIsNone(found.local_devices)

  @parameterized.parameters(
    ("node7", "node7"),
    ("node7,node9", "node7"),
    ("n[5]", "n5"),
    ("r[1-2]n[04-08],x", "r1n04"),
  )
  def test_first_host_of_slurm(self, nodes, host):
    found = find(environment=_SLURM | {"SLURM_STEP_NODELIST": nodes})
    self.assertEqual(found.coordinator.split(":")[0], host)

  @parameterized.parameters(
    # A task that has the node takes all GPUs, whatever its local number.
    ("1(x4)", "0,1,2,3,4,5,6,7", None),
    ("4", "0,1,2,3", (1,)),
    ("2(x2)", "0,1,2,3,4,5,6,7", (4, 5, 6, 7)),
    ("4,2(x2)", "", (1,)),
    # Bound by Slurm.
    ("4", "3", None),
  )
  def test_devices_of_slurm(self, per_node, visible, devices):
    environment = _SLURM | {
      "SLURM_STEP_TASKS_PER_NODE": per_node,
      "SLURM_LOCALID": "1",
      "CUDA_VISIBLE_DEVICES": visible,
    }
    found = find(environment=environment)
    self.assertEqual(found.local_devices, devices)

  def test_devices_that_tasks_cannot_share(self):
    environment = _SLURM | {
      "SLURM_STEP_TASKS_PER_NODE": "3",
      "CUDA_VISIBLE_DEVICES": "0,1,2,3",
    }
    with self.assertRaisesRegex(ValueError, "4 GPUs cannot be shared by 3"):
      cluster.find(environment=environment)

  def test_sbatch_without_srun(self):
    with self.assertLogs(level="WARNING") as logs:
      self.assertIsNone(cluster.find(environment={"SLURM_NTASKS": "4"}))
    self.assertIn("srun did not start this process", logs.output[0])


if __name__ == "__main__":
  absltest.main()
