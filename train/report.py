"""The end of a run: held-out loss beside baselines, samples, a loss curve."""

import pathlib
from typing import Any

from data import baseline as baseline_lib
from train import evaluate
from train import metrics

CURVE_FILE = "loss.png"


def table(
  results: dict[str, evaluate.HeldOut],
  baselines: dict[str, baseline_lib.Baseline],
) -> str:
  """Held-out bits per byte by source, beside what uses no context at all.

  Args:
    results: By source, and `blend` for the mixture.
    baselines: The same names; empty for data without text.
  """
  columns = ["held out", "tokens", "nats/token", "bits/byte"]
  if baselines:
    columns += ["uniform", "unigram (train)", "unigram (own)"]
  rows = [columns]
  for name, result in results.items():
    row = [
      name,
      f"{result.num_tokens:,}",
      f"{result.nats_per_token:.3f}",
      f"{result.bits_per_byte:.3f}",
    ]
    if baselines:
      base = baselines[name]
      for loss in (base.uniform, base.train_unigram, base.own_unigram):
        row.append(f"{loss.bits_per_byte:.3f}")
    rows.append(row)
  widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
  lines = [
    "  ".join(
      cell.ljust(width) if i == 0 else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    for row in rows
  ]
  if baselines:
    lines.append(
      "Baselines are in bits/byte and look at no context; unigram (own) knows "
      "the held-out text's own frequencies."
    )
  return "\n".join(lines)


def draw_curve(
  workdir: pathlib.Path, baselines: dict[str, baseline_lib.Baseline]
) -> pathlib.Path:
  """Training and held-out loss over the run, as a PNG; returns its path."""
  # Slow to import, and only needed here.
  from matplotlib import figure
  from matplotlib.backends import backend_agg

  records = metrics.read(workdir)
  chart = figure.Figure(figsize=(8, 5), layout="constrained")
  backend_agg.FigureCanvasAgg(chart)
  axes = chart.subplots()
  _plot(axes, records, "train", "loss", "training batch", marker="")
  for name in _eval_sources(records):
    _plot(axes, records, f"eval/{name}", "nats_per_token", name, marker="o")
  if baseline_lib.BLEND in baselines:
    base = baselines[baseline_lib.BLEND]
    for label, loss in (
      ("uniform", base.uniform),
      ("unigram (own)", base.own_unigram),
    ):
      axes.axhline(loss.nats_per_token, color="gray", linestyle=":")
      axes.annotate(
        label,
        (0.99, loss.nats_per_token),
        ha="right",
        va="bottom",
        xycoords=("axes fraction", "data"),
        color="gray",
      )
  axes.set(xlabel="step", ylabel="loss, nats per token", title=workdir.name)
  axes.grid(alpha=0.3)
  axes.legend()
  path = workdir / CURVE_FILE
  chart.savefig(path, dpi=120)
  return path


def _eval_sources(records: list[dict[str, Any]]) -> list[str]:
  kinds = {r["kind"] for r in records if r["kind"].startswith("eval/")}
  return sorted(kind.removeprefix("eval/") for kind in kinds)


def _plot(axes, records, kind, field, label, *, marker) -> None:
  points = [(r["step"], r[field]) for r in records if r["kind"] == kind]
  if points:
    axes.plot(*zip(*points, strict=True), label=label, marker=marker)
