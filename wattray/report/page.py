"""An HTML page: a scoreboard, plots and tables; `page_file` writes it, and plotly's script beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import plotly.graph_objects as go

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:1180px;padding:24px;color:#22303c;background:#fafbfc}
h1{font-size:26px;margin:0 0 4px}h2{font-size:19px;margin:32px 0 8px}p.note{color:#5c6b7a;max-width:900px}
.score{display:flex;flex-wrap:wrap;gap:12px;margin:20px 0}
.card{background:#fff;border:1px solid #e2e8ee;border-radius:10px;padding:12px 18px;min-width:150px}
.card b{display:block;font-size:24px}.card span{color:#5c6b7a;font-size:13px}
.plots{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:14px}
@media(max-width:900px){.plots{grid-template-columns:minmax(0,1fr)}}
.plots>div{overflow:hidden;background:#fff;border:1px solid #e2e8ee;border-radius:10px;padding:6px}
table{border-collapse:collapse;width:100%;background:#fff;font-size:13px}
td,th{border:1px solid #e2e8ee;padding:4px 8px;text-align:left}
"""


@dataclass(frozen=True, slots=True)
class Card:
    """One figure of the scoreboard."""

    value: str
    label: str


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, a note, plots and ready HTML below them."""

    title: str
    note: str
    figures: Sequence[go.Figure] = ()
    html: str = ""


def page_of(title: str, note: str, cards: Sequence[Card], sections: Sequence[Section]) -> str:
    """The page's HTML."""
    board = "".join(f"<div class=card><b>{escape(c.value)}</b><span>{escape(c.label)}</span></div>" for c in cards)
    body = [f"<h1>{escape(title)}</h1><p class=note>{escape(note)}</p><div class=score>{board}</div>"]
    script: str | bool = "directory"
    for section in sections:
        body.append(f"<h2>{escape(section.title)}</h2><p class=note>{escape(section.note)}</p><div class=plots>")
        for figure in section.figures:
            plot = figure.to_html(
                full_html=False, include_plotlyjs=script, config={"displayModeBar": False, "responsive": True}
            )
            body.append(f"<div>{plot}</div>")
            script = False
        body.append(f"</div>{section.html}")
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{escape(title)}</title>"
    return f"<!doctype html><html lang=en><head>{head}<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>"
