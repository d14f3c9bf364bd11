"""A forecast as a picture: shares over the run, and epochs of each source."""

import collections.abc
import colorsys
import pathlib
from typing import Any

import numpy as np

from data import forecast as forecast_lib
from data import forecast_shares
from data import forecast_table
from data import forecast_warnings

# Sources that get a colour of their own; the others repeat them, hatched.
_NUM_COLORS = 20
_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "ooo")
# A share from here on is named in the picture itself, in parts of the run from
# this width on whose shares change less.
_NAMED_SHARE = 0.035
_WIDE_AREA = 0.14
_STEADY = 0.01
_MOST_PARTS = 4
# Characters that there is room for beside each other over the picture.
_CHARACTERS = 110
_LONG_NAME = 28
# Where the most and the fewest epochs differ by more, the axis is logarithmic.
_WIDE = 30
_GRAY = "0.35"
# For names that the default font has no letters for, if there is one.
_FONTS = ("Noto Sans CJK KR", "NanumGothic", "Malgun Gothic", "AppleGothic")


def draw(forecast: forecast_lib.Forecast, path: str | pathlib.Path) -> None:
  """Writes the picture.

  Args:
    forecast: of a run.
    path: of a PNG file.
  """
  # Slow to import, and only needed here.
  import matplotlib
  from matplotlib import figure
  from matplotlib import font_manager
  from matplotlib import layout_engine
  from matplotlib.backends import backend_agg

  found = set(font_manager.get_font_names())
  fonts = ["DejaVu Sans", *(name for name in _FONTS if name in found)]
  num_sources = len(forecast.sources)
  # Names may hold a dollar sign, which is no formula.
  settings: dict[str, Any] = {
    "font.family": fonts,
    "text.parse_math": False,
    "hatch.linewidth": 0.5,
  }
  with matplotlib.rc_context(settings):
    height = 4.6 + 0.24 * max(0, num_sources - 8)
    layout = layout_engine.ConstrainedLayoutEngine(
      w_pad=0.08, h_pad=0.08, wspace=0.02
    )
    chart = figure.Figure(figsize=(13, height), layout=layout)
    backend_agg.FigureCanvasAgg(chart)
    left, right = chart.subplots(1, 2, width_ratios=[1.7, 1])
    _draw_shares(left, forecast)
    _draw_epochs(right, forecast)
    chart.savefig(path, format="png", dpi=120)


def colors(count: int) -> list[tuple[float, float, float]]:
  """RGB colours of sources; from the 21st on they come again.

  Hues go round, nine to twenty steps, with four kinds of brightness: of all
  such rounds the one whose nearest two colours are furthest apart (CIELAB
  distance 27; 59 between neighbours).
  """
  made = []
  for index in range(count):
    place = index % _NUM_COLORS
    hue = (0.65 + 0.55 * place) % 1
    lightness = (0.48, 0.30, 0.66, 0.80)[place % 4]
    saturation = (0.80, 0.55, 0.75, 0.75)[place % 4]
    made.append(colorsys.hls_to_rgb(hue, lightness, saturation))
  return made


def _draw_shares(axes, forecast: forecast_lib.Forecast) -> None:
  """What share of the tokens each source gives, along the run."""
  windows = forecast.windows
  edges = np.array(
    [window.first_token for window in windows] + [forecast.num_tokens], float
  )
  shares = np.array([window.delivered for window in windows])
  tops = np.cumsum(shares, axis=1)
  bottoms = tops - shares
  palette = colors(len(forecast.sources))
  for index, color in enumerate(palette):
    axes.fill_between(
      edges,
      np.append(1 - tops[:, index], 1 - tops[-1, index]),
      np.append(1 - bottoms[:, index], 1 - bottoms[-1, index]),
      step="post",
      color=color,
      edgecolor="white",
      linewidth=0.4,
      hatch=_hatch(index),
    )
  for begin, end, delivered in _steady(forecast):
    if end - begin >= _WIDE_AREA * forecast.num_tokens:
      _name_areas(axes, forecast, (begin + end) / 2, delivered)
  _mark_stages(axes, forecast)
  axes.set(xlim=(edges[0], edges[-1]), ylim=(0, 1))
  axes.set_xlabel("tokens of the run", color=_GRAY)
  axes.set_ylabel("share of the tokens", color=_GRAY)
  axes.xaxis.set_major_formatter(
    lambda value, _: forecast_table.number(int(value))
  )
  axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
  axes.tick_params(colors=_GRAY)
  for spine in axes.spines.values():
    spine.set_visible(False)


def _spans(
  forecast: forecast_lib.Forecast,
) -> collections.abc.Iterator[tuple[forecast_shares.Stage, int, int]]:
  """Each stage, with the tokens before and after it."""
  begin = 0
  for stage in forecast.stages:
    yield stage, begin, begin + stage.num_tokens
    begin += stage.num_tokens


def _steady(
  forecast: forecast_lib.Forecast,
) -> collections.abc.Iterator[tuple[int, int, list[float]]]:
  """Parts of each stage with about the same shares: its tokens, and these."""
  for stage, begin, end in _spans(forecast):
    windows = [w for w in forecast.windows if begin <= w.first_token < end]
    parts = [windows[:1]]
    for window in windows[1:]:
      change = np.subtract(window.delivered, parts[-1][0].delivered)
      if np.abs(change).max() > _STEADY:
        parts.append([])
      parts[-1].append(window)
    if len(parts) > _MOST_PARTS:  # They differ by chance, having few samples.
      yield begin, end, [share.delivered for share in stage.shares]
      continue
    for part in parts:
      tokens = [window.num_tokens for window in part]
      shares = [window.delivered for window in part]
      mean = np.average(shares, axis=0, weights=tokens).tolist()
      yield part[0].first_token, part[0].first_token + sum(tokens), mean


def _name_areas(
  axes,
  forecast: forecast_lib.Forecast,
  middle: float,
  delivered: list[float],
) -> None:
  """Writes the names of sources in their areas, where there is room."""
  top = 1.0
  palette = colors(len(delivered))
  for source, share, color in zip(
    forecast.sources, delivered, palette, strict=True
  ):
    if share >= _NAMED_SHARE:
      brightness = float(np.dot(color, (0.3, 0.59, 0.11)))
      axes.text(
        middle,
        top - share / 2,
        f"{_short(source.name)}  {share:.1%}",
        ha="center",
        va="center",
        fontsize=9,
        color="white" if brightness < 0.5 else "black",
        clip_on=True,
      )
    top -= share


def _mark_stages(axes, forecast: forecast_lib.Forecast) -> None:
  """Lines between stages, and above each what it is."""
  for number, (stage, begin, end) in enumerate(_spans(forecast)):
    if number:
      axes.axvline(begin, color="black", linewidth=1.4, linestyle="--")
    text = f"{stage.batch_size:,} rows x {stage.seq_len:,} tokens"
    if len(forecast.stages) > 1:
      first = f"stage {number}, from step {stage.first_step:,}"
      room = _CHARACTERS * (end - begin) / forecast.num_tokens
      is_wide = max(len(first), len(text)) < room
      text = f"{first}\n{text}" if is_wide else f"stage {number}"
    axes.text(
      (begin + end) / 2,
      1.015,
      text,
      ha="center",
      va="bottom",
      fontsize=9,
      color=_GRAY,
      transform=axes.get_xaxis_transform(),
    )


def _draw_epochs(axes, forecast: forecast_lib.Forecast) -> None:
  """How often each source is read."""
  shares = forecast.total
  places = np.arange(len(shares))
  epochs = np.array([share.epochs for share in shares])
  axes.barh(
    places,
    epochs,
    height=0.78,
    color=colors(len(shares)),
    edgecolor="white",
    linewidth=0,
    hatch=[_hatch(index) for index in range(len(shares))],
  )
  # What is read so little that no bar is seen has a colour, too.
  axes.scatter(
    np.full(len(shares), -0.022),
    places,
    marker="s",
    s=36,
    color=colors(len(shares)),
    transform=axes.get_yaxis_transform(),
    clip_on=False,
  )
  axes.set_yticks(places, [_short(share.name) for share in shares])
  axes.tick_params(axis="y", length=0, pad=12)
  axes.tick_params(axis="x", colors=_GRAY)
  axes.invert_yaxis()
  some = epochs[epochs > 0]
  most = float(some.max(initial=0)) or 1.0
  if len(some) and most > _WIDE * some.min():
    axes.set_xscale("log")
    axes.set_xlim(float(some.min()) / 2, most * 6)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: "")
  else:
    axes.set_xlim(0, most * 1.35)
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
  high = axes.get_xlim()[1]
  for value, style in ((1, ":"), (forecast_warnings.MANY_EPOCHS, "--")):
    if value < high:
      axes.axvline(value, color="black", linewidth=0.9, linestyle=style)
  for place, share in zip(places, shares, strict=True):
    many = share.epochs > forecast_warnings.MANY_EPOCHS
    axes.annotate(
      _epochs(share.epochs) + (f" > {forecast_warnings.MANY_EPOCHS}" * many),
      (max(share.epochs, axes.get_xlim()[0]), place),
      xytext=(4, 0),
      textcoords="offset points",
      va="center",
      fontsize=9,
      color="firebrick" if many else "black",
      fontweight="bold" if many else "normal",
      bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
    )
  axes.set_xlabel("epochs of each source", color=_GRAY)
  for side in ("top", "right", "left"):
    axes.spines[side].set_visible(False)


def _epochs(value: float) -> str:
  return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _hatch(index: int) -> str:
  return _HATCHES[index // _NUM_COLORS % len(_HATCHES)]


def _short(name: str) -> str:
  if len(name) <= _LONG_NAME:
    return name
  return name[: _LONG_NAME - 3] + "..."
