"""The picture of the far-domains benchmark: one panel for each number of nodes, drawn as SVG by hand."""

from typing import Final

from benchmarks.far_report import GATHERED, SCATTERED, Case, Design, Report, p50, p95

PANEL_WIDTH: Final = 250
PANEL_HEIGHT: Final = 260
GAP: Final = 24
LEFT: Final = 64
TOP: Final = 84
BOTTOM: Final = 64
RIGHT: Final = 16
NARROWEST: Final = 830
"""The legend needs so much."""
COLOURS: Final[dict[Design, str]] = {GATHERED: "#0b6e4f", SCATTERED: "#b5422c"}
LABELS: Final[dict[Design, str]] = {
    GATHERED: "gathered: all devices with management, nodes far away",
    SCATTERED: "scattered: each device far away, with its node",
}
OFFSETS: Final[dict[Design, int]] = {GATHERED: -3, SCATTERED: 3}
"""Two whiskers at one place would hide each other."""
INK: Final = "#222222"
PALE: Final = "#dddddd"
STEPS: Final = (10, 20, 25, 50, 100, 200, 250, 500, 1000, 2000, 5000)
MOST_STEPS: Final = 6

Point = tuple[float, float]


def draw(report: Report) -> str:
    """An SVG document: median endorsement time over one-way delay; whiskers reach to p95."""
    drawn = [case for case in report.cases if case.design in COLOURS]
    highest = max(p95(case.endorsement) for case in drawn)
    step = next((step for step in STEPS if step * MOST_STEPS >= highest), STEPS[-1])
    top = step * -int(-highest // step)
    panels = len(report.nodes)
    width = max(LEFT + panels * PANEL_WIDTH + (panels - 1) * GAP + RIGHT, NARROWEST)
    height = TOP + PANEL_HEIGHT + BOTTOM
    parts = [
        _opening(width, height),
        "<title>Endorsement time by the distance between the nodes' domains</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _text(LEFT, 22, "Endorsement time by the distance between the nodes' domains", size=15, weight="bold"),
        *_legend(),
    ]
    for index, nodes in enumerate(report.nodes):
        panel = _Panel(LEFT + index * (PANEL_WIDTH + GAP), report.delays[-1], top)
        parts += panel.frame(f"{nodes} nodes", step, report.delays, numbered=index == 0)
        for design in (SCATTERED, GATHERED):
            parts += panel.line([report.case(nodes, design, delay) for delay in report.delays], COLOURS[design])
    middle = LEFT + (panels * (PANEL_WIDTH + GAP) - GAP) / 2
    parts += [
        _text(middle, height - 14, "one-way delay between domains, ms", anchor="middle"),
        _sideways(18, TOP + PANEL_HEIGHT / 2, "endorsement, ms (p50, whisker to p95)"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


class _Panel:
    """Where a value stands in one panel."""

    def __init__(self, left: float, longest_delay: float, highest: float) -> None:
        self._left = left
        self._delay = longest_delay or 1
        self._highest = highest

    def x(self, delay: float) -> float:
        """The place of a delay; a margin keeps points off the frame."""
        return self._left + 14 + delay / self._delay * (PANEL_WIDTH - 28)

    def y(self, value: float) -> float:
        """The place of a duration."""
        return TOP + PANEL_HEIGHT * (1 - value / self._highest)

    def frame(self, title: str, step: int, delays: list[int], *, numbered: bool) -> list[str]:
        """Title, grid and axes."""
        right = self._left + PANEL_WIDTH
        parts = [_text(self._left + PANEL_WIDTH / 2, TOP - 8, title, anchor="middle", weight="bold")]
        for value in range(0, int(self._highest) + 1, step):
            at = self.y(value)
            parts.append(_stroke((self._left, at), (right, at), INK if value == 0 else PALE))
            if numbered:
                parts.append(_text(self._left - 8, at + 4, str(value), anchor="end"))
        for delay in delays:
            parts.append(_stroke((self.x(delay), self.y(0)), (self.x(delay), self.y(0) + 5), INK))
            parts.append(_text(self.x(delay), self.y(0) + 20, str(delay), anchor="middle"))
        return parts

    def line(self, cases: list[Case], colour: str) -> list[str]:
        """The medians joined, and a whisker from each to its p95."""
        points = [
            (self.x(case.delay_ms) + OFFSETS[case.design], p50(case.endorsement), p95(case.endorsement))
            for case in cases
        ]
        joined = " ".join(f"{x:.1f},{self.y(middle):.1f}" for x, middle, _ in points)
        parts = [f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"/>']
        for x, middle, high in points:
            parts.append(_stroke((x, self.y(middle)), (x, self.y(high)), colour))
            parts.append(_stroke((x - 4, self.y(high)), (x + 4, self.y(high)), colour))
            parts.append(f'<circle cx="{x:.1f}" cy="{self.y(middle):.1f}" r="3.5" fill="{colour}"/>')
        x, middle, _ = points[-1]
        parts.append(_text(x - 8, self.y(middle) - 8, f"{middle:.0f}", anchor="end", fill=colour, weight="bold"))
        return parts


def _legend() -> list[str]:
    parts = []
    for index, (design, colour) in enumerate(COLOURS.items()):
        x = LEFT + index * 380
        parts.append(_stroke((x, 42), (x + 22, 42), colour, 2))
        parts.append(f'<circle cx="{x + 11}" cy="42" r="3.5" fill="{colour}"/>')
        parts.append(_text(x + 30, 46, LABELS[design]))
    return parts


def _opening(width: float, height: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="DejaVu Sans, Verdana, sans-serif" font-size="12" role="img">'
    )


def _stroke(begin: Point, end: Point, colour: str, width: float = 1) -> str:
    return (
        f'<line x1="{begin[0]:.1f}" y1="{begin[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" '
        f'stroke="{colour}" stroke-width="{width:g}"/>'
    )


def _sideways(x: float, y: float, text: str) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="middle" fill="{INK}" transform="rotate(-90 {x:g} {y:g})">{text}</text>'
    )


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, weight: str = "normal", fill: str = INK
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
        f'fill="{fill}">{text}</text>'
    )
