"""The picture of a run: CPU time per transaction by service, and what its verifications alone would take."""

import statistics
from typing import Final
from xml.sax.saxutils import escape

from cli.bench.report import Report

WIDTH: Final = 820
BAR: Final = 20
GAP: Final = 10
LEFT: Final = 150
RIGHT: Final = 90
TOP: Final = 64
COLOURS: Final = ("#0b6e4f", "#3a7ca5", "#b5422c", "#8a6100", "#5b4b8a", "#5b6575", "#1c2330", "#a3b18a")


def draw(report: Report) -> str:
    """An SVG document: a bar for each loop, parted by service."""
    loops = list(dict.fromkeys(each.loop for each in report.loops))
    services = list(dict.fromkeys(name for each in report.loops for name in each.cpu))
    parts = {
        loop: {
            name: statistics.median(each.cpu.get(name, 0.0) for each in report.loops if each.loop == loop)
            for name in services
        }
        for loop in loops
    }
    limits = {
        loop: statistics.median(
            2000 * each.verifications / each.verification_rate for each in report.loops if each.loop == loop
        )
        for loop in loops
    }
    widest = max([sum(each.values()) for each in parts.values()] + list(limits.values())) or 1.0
    scale = (WIDTH - LEFT - RIGHT) / widest
    height = TOP + len(loops) * (2 * BAR + 2 * GAP) + 30 + 26 * ((len(services) + 3) // 4)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif">',
        "<title>CPU time per transaction</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(LEFT, 24, "CPU time per transaction by service, in milliseconds", size=15),
        _text(LEFT, 44, "pale: what the required verifications alone take on this machine", size=12),
    ]
    y = TOP
    for loop in loops:
        lines.append(_text(LEFT - 10, y + BAR * 0.7, loop, anchor="end"))
        x = float(LEFT)
        for index, name in enumerate(services):
            width = parts[loop][name] * scale
            lines.append(_bar(x, y, width, COLOURS[index % len(COLOURS)], f"{name}: {parts[loop][name]:.3f} ms"))
            x += width
        lines.append(_text(x + 6, y + BAR * 0.7, f"{sum(parts[loop].values()):.2f}"))
        y += BAR + 2
        lines.append(_bar(LEFT, y, limits[loop] * scale, "#c9d3df", f"verifications: {limits[loop]:.3f} ms"))
        lines.append(_text(LEFT + limits[loop] * scale + 6, y + BAR * 0.7, f"{limits[loop]:.2f}"))
        y += BAR + 2 * GAP - 2
    for index, name in enumerate(services):
        x, line = LEFT + (index % 4) * 160, y + 14 + 26 * (index // 4)
        lines += [_bar(x, line - 14, 14, COLOURS[index % len(COLOURS)], name), _text(x + 20, line, name, size=12)]
    return "\n".join([*lines, "</svg>"]) + "\n"


def _bar(x: float, y: float, width: float, colour: str, title: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.0):.1f}" height="{BAR}" fill="{colour}">'
        f"<title>{escape(title)}</title></rect>"
    )


def _text(x: float, y: float, text: str, *, size: int = 13, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="#1c2330">{escape(text)}</text>'
    )
