"""`sweep.svg`: the metric over the trials, and against each searched setting. Nothing is loaded."""

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bigft.search.plan import Plan
from bigft.search.record import Record
from bigft.search.space import Parameter

_WIDTH, _HEIGHT = 420, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 34, 46
_COLUMNS = 2
_TICKS = 4
_WHOLE_TICKS = 12
_CLIPPED = 3.0
"""Values further above the median than this many times its distance from the best are drawn at the
edge: one run that went wrong would press all others into one line."""
_COLORS = {"complete": "#2166ac", "pruned": "#b0b0b0"}
_LONGEST_LABEL = 18


@dataclass(frozen=True)
class _Axis:
    """Numbers to places on a line; `names` label categories in place of numbers."""

    low: float
    high: float
    is_log: bool = False
    is_whole: bool = False
    names: tuple[str, ...] = ()

    def share(self, value: float) -> float:
        low, high, value = (self._scale(number) for number in (self.low, self.high, value))
        return 0.5 if high <= low else min(1.0, max(0.0, (value - low) / (high - low)))

    def ticks(self) -> list[tuple[float, str]]:
        if self.names:
            return [(number, _cut(name)) for number, name in enumerate(self.names)]
        if self.is_whole:
            first, last = math.ceil(self.low), math.floor(self.high)
            step = max(1, -(-(last - first) // _WHOLE_TICKS))
            return [(number, str(number)) for number in range(first, last + 1, step)]
        if self.is_log:
            powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            step = max(1, len(powers) // _WHOLE_TICKS)
            if len(powers) >= 2:
                return [(10.0**power, f"1e{power}") for power in powers[::step]]
        low, high = self._scale(self.low), self._scale(self.high)
        places = [low + (high - low) * tick / _TICKS for tick in range(_TICKS + 1)]
        return [(v := math.exp(p) if self.is_log else p, f"{v:.3g}") for p in places]

    def _scale(self, value: float) -> float:
        return math.log(value) if self.is_log else value


def render_plot(plan: Plan, records: Sequence[Record]) -> str:
    """Return a self-contained picture; with no value yet it holds empty axes."""
    shown = [r for r in records if r.value is not None and r.state in _COLORS]
    values = _build_value_axis(shown, maximize=plan.maximize)
    panels = [_draw_trials(plan, shown, values)]
    panels += [_draw_setting(plan, parameter, shown, values) for parameter in plan.space]
    rows = -(-len(panels) // _COLUMNS)
    width, height = _COLUMNS * _WIDTH, rows * _HEIGHT
    placed = [
        f'<g transform="translate({place % _COLUMNS * _WIDTH} {place // _COLUMNS * _HEIGHT})">'
        f"{panel}</g>"
        for place, panel in enumerate(panels)
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
            f' width="{width}" height="{height}" font-family="sans-serif" font-size="11">',
            '<rect width="100%" height="100%" fill="white"/>',
            *placed,
            "</svg>",
            "",
        ]
    )


def _build_value_axis(records: Sequence[Record], *, maximize: bool) -> _Axis:
    values = sorted((r.value for r in records if r.value is not None), reverse=maximize)
    if not values:
        return _Axis(0.0, 1.0)
    best, middle = values[0], values[len(values) // 2]
    edge = middle + _CLIPPED * (middle - best)
    last = max(values[-1], edge) if maximize else min(values[-1], edge)
    last = last if last != best else best + (abs(best) or 1.0) * (-0.01 if maximize else 0.01)
    margin = 0.05 * (last - best)
    return _Axis(min(best - margin, last + margin), max(best - margin, last + margin))


def _draw_trials(plan: Plan, records: Sequence[Record], values: _Axis) -> str:
    last = max([record.number for record in records], default=1)
    axis = _Axis(0.5, last + 0.5, is_whole=True)
    points = [(float(record.number), record) for record in records]
    parts = [*_frame("over the trials", "trial", plan.options.metric, axis, values)]
    parts += _draw_best(plan, records, axis, values)
    return "".join([*parts, *_draw_points(points, axis, values)])


def _draw_setting(
    plan: Plan, parameter: Parameter, records: Sequence[Record], values: _Axis
) -> str:
    path = parameter.path
    texts = [(record.settings.get(path, ""), record) for record in records]
    axis = _build_axis(parameter, [text for text, _ in texts])
    if axis.names:
        points = [(float(axis.names.index(text)), record) for text, record in texts if text]
    else:
        points = [(number, r) for text, r in texts if (number := _read(text)) is not None]
        points = [(x, r) for x, r in points if x > 0 or not axis.is_log]
    parts = _frame(f"against {path}", path, plan.options.metric, axis, values)
    return "".join([*parts, *_draw_points(points, axis, values)])


def _build_axis(parameter: Parameter, texts: Sequence[str]) -> _Axis:
    if parameter.kind == "choice":
        names = tuple(dict.fromkeys([*parameter.choices, *(text for text in texts if text)]))
        return _Axis(-0.5, len(names) - 0.5, names=names)
    is_log = parameter.kind == "log"
    # The settings as they stand may lie outside the range.
    numbers = [n for text in texts if (n := _read(text)) is not None and (n > 0 or not is_log)]
    low, high = min([parameter.low, *numbers]), max([parameter.high, *numbers])
    return _Axis(low, high, is_log)


def _read(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _frame(title: str, x_name: str, y_name: str, x: _Axis, y: _Axis) -> Iterator[str]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    yield _text((_LEFT + right) / 2, 18, f"{y_name} {title}", "middle", "font-weight='bold'")
    for value, label in y.ticks():
        place = _y(y, value)
        yield f'<path d="M{_LEFT} {place:.1f}H{right}" stroke="#e6e6e6"/>'
        yield _text(_LEFT - 6, place + 4, label, "end")
    for value, label in x.ticks():
        yield _text(_x(x, value), bottom + 16, label, "middle")
    yield _text((_LEFT + right) / 2, bottom + 34, x_name, "middle")
    yield (
        f'<rect x="{_LEFT}" y="{_TOP}" width="{right - _LEFT}" height="{bottom - _TOP}"'
        ' fill="none" stroke="#808080"/>'
    )


def _draw_points(points: Sequence[tuple[float, Record]], x: _Axis, y: _Axis) -> Iterator[str]:
    for place, record in points:
        assert record.value is not None, "only trials with a value are drawn"
        name = f"trial {record.number}, {record.state}: {record.value:.6g}"
        name += ", as the settings stand" if record.is_baseline else ""
        style = (
            'fill="white" stroke-width="2"' if record.is_baseline else f'fill="{_color(record)}"'
        )
        yield (
            f'<circle cx="{_x(x, place):.1f}" cy="{_y(y, record.value):.1f}" r="4" {style}'
            f' stroke="{_color(record)}"><title>{html.escape(name)}</title></circle>'
        )


def _draw_best(plan: Plan, records: Sequence[Record], x: _Axis, y: _Axis) -> Iterator[str]:
    """Yield the line of the best value so far, as stairs."""
    path, best = "", None
    for record in records:
        if record.state != "complete" or record.value is None:
            continue
        is_better = best is None or (record.value > best if plan.maximize else record.value < best)
        if is_better:
            here = f"{_x(x, record.number):.1f}"
            path += (
                f"H{here}V{_y(y, record.value):.1f}"
                if path
                else (f"M{here} {_y(y, record.value):.1f}")
            )
            best = record.value
    if path:
        yield f'<path d="{path}H{_WIDTH - _RIGHT}" fill="none" stroke="#b2182b"/>'


def _color(record: Record) -> str:
    return _COLORS[record.state]


def _x(axis: _Axis, value: float) -> float:
    return _LEFT + axis.share(value) * (_WIDTH - _LEFT - _RIGHT)


def _y(axis: _Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - axis.share(value) * (_HEIGHT - _TOP - _BOTTOM)


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    shown = html.escape("".join(c if c.isprintable() else "?" for c in text))
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{shown}</text>'


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}…"
