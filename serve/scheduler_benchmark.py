"""What the scheduler costs, a step of decoding.

bazel run -c opt //serve:scheduler_benchmark
"""

import argparse
import time

from serve import batch as batch_lib
from serve import request as request_lib
from serve import scheduler as scheduler_lib
from serve import scheduler_config

_PAGE_SIZE = 16
_PROMPT = 512


def measure(*, rows: int, windows: tuple[int, ...], steps: int) -> float:
  """Milliseconds of `schedule` and `update` together: the median.

  Args:
    rows: Requests that are decoded at the same time.
    windows: Of the model's attention; 0: none.
    steps: Tokens of each.
  """
  max_len = _PROMPT + steps + 1
  pages = -(-max_len // _PAGE_SIZE)
  scheduler = scheduler_lib.Scheduler(
    scheduler_config.SchedulerConfig(
      max_rows=rows,
      prefill_tokens=256,
      max_len=max_len,
      page_size=_PAGE_SIZE,
      num_pages=dict.fromkeys(windows, rows * pages + 1),
    )
  )
  for i in range(rows):
    prompt = tuple((i + 1) * j % 1000 for j in range(_PROMPT))
    scheduler.add(
      request_lib.Request(id=str(i), prompt=prompt, max_tokens=steps)
    )
  result = batch_lib.RowResult(tokens=(1,))
  before, times = None, []
  while True:
    start = time.perf_counter()
    batch = scheduler.schedule(start)
    if before is not None:
      scheduler.update(before, [result] * len(before.rows))
    seconds = time.perf_counter() - start
    if batch is None:
      break
    if not batch.is_prefill and len(batch.rows) == rows:
      times.append(seconds)
    before = batch
  return 1000 * sorted(times)[len(times) // 2]


def main() -> None:
  """Prints a line for each number of rows."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--steps", type=int, default=256, help="tokens of a text")
  args = parser.parse_args()
  for windows in ((0,), (0, 128)):
    for rows in (1, 8, 32, 128):
      took = measure(rows=rows, windows=windows, steps=args.steps)
      print(f"windows {windows!s:9} rows {rows:3}: {took:.3f} ms")


if __name__ == "__main__":
  main()
