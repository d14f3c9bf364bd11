"""Memory in use, on the devices and on the host."""

import resource

import jax

_GIB = 2**30


def usage() -> dict[str, float]:
  """GiB now, by name; microseconds, no work on the devices.

  Returns:
    `memory/host_peak` of this process. Where devices count theirs (not CPUs),
    of the fullest of this process's: `memory/device`, its `memory/device_peak`
    since the process began, and `memory/device_limit`.
  """
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  result = {"memory/host_peak": peak / _GIB}
  all_stats = [device.memory_stats() or {} for device in jax.local_devices()]
  for name, key in (
    ("memory/device", "bytes_in_use"),
    ("memory/device_peak", "peak_bytes_in_use"),
    ("memory/device_limit", "bytes_limit"),
  ):
    counts = [stats[key] for stats in all_stats if key in stats]
    if counts:
      result[name] = max(counts) / _GIB
  return result
