"""The frame of every page: one file that opens anywhere, prints well, and asks nothing of the network.

Text goes through ``escape`` before it meets markup; a file name may hold anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from blemish.inspection.overlay import RAMP, Scale, data_uri
from blemish.run import written_atomically

STYLE = """
:root { --ink: #1c2430; --soft: #5b6675; --line: #d9dee5; --ground: #f6f7f9; --paper: #fff;
        --good: #2f6690; --bad: #c2410c; --accent: #16425b; }
* { box-sizing: border-box; }
body { margin: 0; font: 16px/1.55 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: var(--ink);
       background: var(--ground); }
main { max-width: 1200px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 34px; line-height: 1.2; margin: 0 0 8px; letter-spacing: -.01em; }
h2 { font-size: 23px; margin: 52px 0 10px; padding-top: 20px; border-top: 1px solid var(--line); }
h3 { font-size: 17px; margin: 26px 0 6px; }
p { max-width: 46em; margin: 8px 0; } .soft { color: var(--soft); }
.promise { background: var(--paper); border-left: 4px solid var(--accent); padding: 12px 18px; margin: 14px 0;
           border-radius: 0 6px 6px 0; max-width: 46em; }
table { border-collapse: collapse; background: var(--paper); margin: 12px 0; font-size: 14.5px; }
th, td { padding: 7px 13px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { color: var(--soft); font-weight: 600; }
td.words { text-align: left; white-space: normal; min-width: 16em; }
.scroll { overflow-x: auto; }
.warning { border-left: 4px solid var(--bad); background: var(--paper); padding: 8px 18px; margin: 10px 0;
           max-width: 46em; }
.beside { display: flex; flex-wrap: wrap; gap: 0 22px; align-items: flex-start; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(158px, 1fr)); gap: 14px; margin: 12px 0; }
.pictures.whole { grid-template-columns: 1fr; }
.pictures.wide { grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); }
figure { margin: 0; background: var(--paper); border: 1px solid var(--line); border-radius: 6px; overflow: hidden; }
figure img { display: block; width: 100%; image-rendering: auto; }
figcaption { padding: 7px 10px; font-size: 13px; line-height: 1.35; color: var(--soft); }
figcaption b { color: var(--ink); } .reject b { color: var(--bad); } .ok b { color: var(--good); }
pre { background: #182230; color: #e6ebf1; padding: 14px 18px; border-radius: 6px; overflow-x: auto; font-size: 14px; }
.charts { display: flex; flex-wrap: wrap; gap: 18px; margin: 12px 0; }
.charts > div { background: var(--paper); border: 1px solid var(--line); border-radius: 6px; padding: 10px; }
.legend { max-width: 480px; background: var(--paper); border: 1px solid var(--line); border-radius: 6px;
          padding: 8px 14px; font-size: 13px; }
.legend .bar { height: 26px; } .legend .ticks { position: relative; height: 1.6em; }
.legend .ticks span { position: absolute; padding-left: 4px; border-left: 1px solid var(--ink); white-space: nowrap; }
.legend i { display: inline-block; width: 26px; height: 12px; margin-right: 8px; background: #808080; }
.legend i.found { border: 2px solid #fff; outline: 2px solid #000; } .legend i.marked { border: 2px dashed #5adcff; }
nav a { margin-right: 14px; color: var(--accent); }
@media print { body { background: #fff; } figure, tr { break-inside: avoid; } }
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole HTML document around ``body``, markup that is already escaped."""
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; img-src data:; "
        "style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def write_page(path: Path, title: str, body: Iterable[str]) -> Path:
    """Write the document, whole or not at all; its path."""
    with written_atomically(path) as temporary:
        temporary.write_text(page(title, body), encoding="utf-8")
    return path


def heading(text: str, level: int = 2, anchor: str = "") -> str:
    """A heading; ``anchor`` lets others link to it."""
    name = f" id='{escape(anchor, quote=True)}'" if anchor else ""
    return f"<h{level}{name}>{escape(text)}</h{level}>"


def paragraph(text: str, css: str = "") -> str:
    """A paragraph of plain text."""
    return f"<p class='{css}'>{escape(text)}</p>" if css else f"<p>{escape(text)}</p>"


def promise(text: str) -> str:
    """What the calibration says, set apart."""
    return f"<div class='promise'>{escape(text)}</div>"


def commands(text: str) -> str:
    """Lines to type."""
    return f"<pre>{escape(text)}</pre>"


def table(header: Sequence[str], rows: Iterable[Sequence[object]], words: Sequence[int] = ()) -> str:
    """A table of plain values; ``words`` are the columns that hold sentences."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = []
    for row in rows:
        cells = (
            f"<td class='words'>{escape(str(cell))}</td>" if i in words else f"<td>{escape(str(cell))}</td>"
            for i, cell in enumerate(row)
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def figure(picture: Image.Image, title: str, caption: str, css: str = "", lossy: bool = False) -> str:
    """A picture with two lines under it; ``lossy`` makes a page of many photographs five times smaller."""
    source = data_uri(picture)
    if lossy:
        source = data_uri(picture.convert("RGB"), "JPEG", quality=88, subsampling=0)
    return (
        f"<figure class='{css}'><img alt='{escape(title, quote=True)}' src='{source}'>"
        f"<figcaption><b>{escape(title)}</b><br>{escape(caption)}</figcaption></figure>"
    )


def legend(scale: Scale, sentence: str, ticks: Iterable[tuple[float, str]] = (), truth: bool = False) -> str:
    """What the colours and lines on pictures mean.

    Args:
        scale: the model's.
        sentence: the promise in words.
        ticks: map values and what each means; those outside the scale are left out. Without any, its ends are named.
        truth: whether to explain the dashed line as well.
    """
    shown = [tick for tick in ticks if scale.threshold <= tick[0] <= scale.top]
    shown = shown or [(scale.threshold, f"{scale.threshold:.4g}"), (scale.top, f"{scale.top:.4g} and above")]
    colours = ", ".join(f"rgba({red},{green},{blue},{a / 255:.2f})" for red, green, blue, a in RAMP[::51].tolist())
    places = ((100 * (value - scale.threshold) / (scale.top - scale.threshold), text) for value, text in shown)
    marks = "".join(
        f"<span style='{f'left:{place:.0f}%' if place < 60 else f'right:{100 - place:.0f}%'}'>{escape(text)}</span>"
        for place, text in places
    )
    lines = [("", "no colour: the map is not above the threshold"), ("found", "found by the model")]
    lines += [("marked", "marked by a person")] * truth
    meanings = "".join(f"<div><i class='{css}'></i>{text}</div>" for css, text in lines)
    return (
        f"<div class='legend'><p>{escape(sentence)}</p>"
        f"<div class='bar' style='background: linear-gradient(90deg, {colours}), linear-gradient(#464646, #bebebe)'>"
        f"</div><div class='ticks'>{marks}</div>{meanings}</div>"
    )


def pictures(figures: Iterable[str], css: str = "") -> str:
    """Figures in a grid; of broad pictures with ``css="wide"``, of strips with ``css="whole"``."""
    return f"<div class='pictures {css}'>{''.join(figures)}</div>"


def beside(parts: Iterable[str]) -> str:
    """Tables side by side where they fit."""
    return f"<div class='beside'>{''.join(parts)}</div>"


def warning(text: str) -> str:
    """What a reader must not miss."""
    return f"<div class='warning'>{escape(text)}</div>"


def contents(links: Iterable[tuple[str, str]]) -> str:
    """Links to anchors of the page: (anchor, text) each."""
    return "<nav>" + "".join(f"<a href='#{escape(a, quote=True)}'>{escape(text)}</a>" for a, text in links) + "</nav>"


def bullets(lines: Iterable[str]) -> str:
    """A list of sentences."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def charts(drawings: Iterable[str]) -> str:
    """Charts side by side."""
    return f"<div class='charts'>{''.join(f'<div>{drawing}</div>' for drawing in drawings)}</div>"
