"""The report of what a model would be trained on, as one HTML page.

It loads nothing from elsewhere, and no text of a row can become markup.
"""

from __future__ import annotations

from html import escape

from posttrain.data.anatomy import LEGEND, Anatomy, Passage, visible
from posttrain.data.inspect import Lengths, Packing, Report, table

_STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf8; --card: #fff; --ink: #1d1f23; --soft: #6a6f78; --line: #e2e0dc;
  --bar: #5b8def; --over: #d98a8a; --trained: #9ddca5; --trained2: #c3ecc7; --end: #1a7f37; --given: #e2e2e2; --given2: #f2f2f2;
  --template: #d5e1f5; --template2: #e5edf9; --template-ink: #3b4f72; --special: #e0cdf0; --special-ink: #5b2a86;
  --first: #f7e3a1; --cut: #f7dede; --cut-ink: #9a5b5b; --token: #111; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181c; --card: #1e2126; --ink: #e6e6e6; --soft: #9aa0aa; --line: #343840; --bar: #6d9bf5; --over: #b86a6a;
    --trained: #1f5c33; --trained2: #2a7342; --end: #4fd07a; --given: #33373f; --given2: #2a2d34; --template: #27344d;
    --template2: #2f3f5e; --template-ink: #b4c7ea; --special: #47305e; --special-ink: #dcc2f5; --first: #5f5223; --cut: #4a2b2b;
    --cut-ink: #d8a0a0; --token: #f0f0f0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 6rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
h3 { font: 600 .95rem ui-monospace, monospace; margin: 0 0 .5rem; overflow-wrap: anywhere; }
p, ul { margin: .25rem 0; } .soft, small { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; margin-top: 1.25rem; }
.card, article { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1rem; }
.card b { display: block; font-size: 1.35rem; } article { margin-bottom: 1.25rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
td, th { padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td { overflow-wrap: anywhere; } ul { padding-left: 1.2rem; } .yes { color: var(--end); font-weight: 600; }
pre { margin: .5rem 0 1rem; font: .9rem/1.75 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.t { position: relative; color: var(--token); border-radius: 2px; } .t:hover { outline: 2px solid var(--bar); z-index: 1; }
.t:hover::after { content: attr(data-w); position: absolute; left: 0; top: 1.7em; z-index: 2; padding: .2rem .5rem;
  width: max-content; max-width: 22rem; background: var(--ink); color: var(--paper); border-radius: .3rem; white-space: normal;
  font: .8rem/1.4 system-ui, sans-serif; pointer-events: none; text-decoration: none; }
.trained { background: var(--trained); } .trained.o { background: var(--trained2); }
.end { background: var(--end); color: var(--paper); font-weight: 600; }
.given { background: var(--given); } .given.o { background: var(--given2); }
.template { background: var(--template); color: var(--template-ink); } .template.o { background: var(--template2); }
.special { background: var(--special); color: var(--special-ink); } .first { background: var(--first); }
.cut { background: var(--cut); color: var(--cut-ink); text-decoration: line-through; }
.gap { color: var(--soft); font-style: italic; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin-bottom: 1rem; font-size: .9rem; }
.legend .t { padding: 0 .35rem; } svg { width: 100%; height: auto; }
svg text { fill: var(--ink); font: 13px system-ui, sans-serif; }
svg .bar { fill: var(--bar); } svg .over { fill: var(--over); } svg .mark { stroke: var(--soft); stroke-dasharray: 5 4; }
svg .soft { fill: var(--soft); }
"""
_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
"""


def page(report: Report) -> str:
    """The report as an HTML document."""
    title = "What would be trained: " + ", ".join(part.name for part in report.parts)
    paths = ", ".join(part.source.path for part in report.parts)
    return "".join(
        [
            _HEAD.format(title=escape(title), style=_STYLE),
            f"<h1>What would be trained</h1>\n<p class=soft>{escape(paths)}</p>\n",
            _cards(report),
            _examples(report),
            _training_rows(report),
            _sources(report),
            _histogram(report.lengths, report.max_length),
            _packing(report.packing),
            "</body>\n</html>\n",
        ]
    )


def _cards(report: Report) -> str:
    total = report.total
    counts = {
        "rows": total("read"),
        "left out": total("read") - total("used"),
        "sequences": total("sequences"),
        "tokens": total("tokens"),
    }
    shown = {name: f"{count:,}" for name, count in counts.items()}
    shown["of them trained"] = f"{total('targets') / max(1, total('tokens')):.1%}"
    cards = [
        f"<div class=card><b>{value}</b><small>{name}</small></div>"
        for name, value in shown.items()
    ]
    return f"<div class=cards>{''.join(cards)}</div>\n"


def _training_rows(report: Report) -> str:
    rows = [
        f"<tr><td>{escape(name)}</td><td class=n>{escape(value)}</td></tr>\n"
        for name, value in table(report)
    ]
    return f"<h2>Training rows</h2>\n<div class=wide><table>\n{''.join(rows)}</table></div>\n"


# ------------------------------------------------------------------------------------------- tokens


def _examples(report: Report) -> str:
    if not report.examples:
        return ""
    kinds = set()
    for anatomy in report.examples:
        for passage in anatomy.passages:
            kinds.update(piece.kind for piece in passage.pieces)
    legend = []
    for kind, meaning in LEGEND.items():
        if kind in kinds and kind != "gap":
            text = escape(meaning.partition(": ")[2] or meaning)
            legend.append(f'<span><span class="t {kind}">{kind}</span> {text}</span>\n')
    return (
        f"<h2>Token by token</h2>\n<div class=legend>{''.join(legend)}<span>⏎ a line "
        "break</span></div>\n<p class=soft>Hold the pointer over a token to see its id, and why it "
        "is trained or not.</p>\n" + "".join(map(_example, report.examples))
    )


def _example(anatomy: Anatomy) -> str:
    heading = escape(anatomy.where)
    if anatomy.dropped:
        heading += f" · dropped: {escape(anatomy.dropped)}"
    messages = []
    for message in anatomy.messages:
        trained = " class=yes" if message.what.startswith("trained") else ""
        messages.append(f"<li{trained}>{escape(message.name)}: {escape(message.what)}</li>\n")
    passages = "".join(_passage(anatomy, passage) for passage in anatomy.passages)
    return f"<article>\n<h3>{heading}</h3>\n<ul>\n{''.join(messages)}</ul>\n{passages}</article>\n"


def _passage(anatomy: Anatomy, passage: Passage) -> str:
    tokens = []
    for i, piece in enumerate(passage.pieces):
        why = anatomy.why(piece)
        if piece.ids:
            label = "ids" if len(piece.ids) > 1 else "id"
            why = f"{label} {' '.join(map(str, piece.ids))} · {why}"
        odd = " o" * (i % 2)  # neighbours differ in shade
        tokens.append(
            f'<span class="t {piece.kind}{odd}"'
            f' data-w="{escape(why)}">{escape(visible(piece.text))}</span>'
        )
    return f"<p class=soft>{escape(passage.heading)}</p>\n<pre>{''.join(tokens)}</pre>\n"


# ------------------------------------------------------------------------------------------ numbers


def _sources(report: Report) -> str:
    if len(report.parts) < 2:
        return ""
    head = "".join(f"<th class=n>{name}</th>" for name in report.parts[0].counts())
    rows = []
    for part in report.parts:
        cells = "".join(f"<td class=n>{count:,}</td>" for count in part.counts().values())
        name, form = escape(part.name), escape(part.account.format)
        rows.append(f"<tr><td>{name}</td><td>{form}</td>{cells}</tr>\n")
    return (
        "<h2>By source</h2>\n<div class=wide><table>\n"
        f"<tr><th>source</th><th>format</th>{head}</tr>\n{''.join(rows)}</table></div>\n"
    )


BAR_HEIGHT, BAR_WIDTH = 24, 600  # pixels of a bar and the space below it; of the longest bar


def _histogram(lengths: Lengths, limit: int) -> str:
    """Bars of lengths, with the limit drawn between those within it and those over it."""
    if not lengths.n:
        return ""
    bins, over = lengths.bins(limit), lengths.over(limit)
    most = max(count for _, _, count in bins)
    limit_text = f"--max-length {limit:,}: {over:,} longer ({over / lengths.n:.1%})"
    within = [bin for bin in bins if bin[0] <= limit]
    drawn, y = [], 18
    for low, high, count in within:
        drawn.append(_bar("bar", y, low, high, count, most))
        y += BAR_HEIGHT
    drawn.append(
        f'<line class=mark x1="10" x2="890" y1="{y - 5}" y2="{y - 5}"/>'
        f'<text class=soft x="890" y="{y + 11}" text-anchor="end">{limit_text}</text>\n'
    )
    y += 16
    for low, high, count in bins[len(within) :]:
        drawn.append(_bar("over", y, low, high, count, most))
        y += BAR_HEIGHT
    return (
        "<h2>Tokens a sequence, before the length limit</h2>\n"
        f"<p class=soft>n = {lengths.n:,} · {' · '.join(lengths.quantiles())}</p>\n"
        f'<svg viewBox="0 0 900 {y}" role="img"><title>Lengths of sequences in tokens</title>\n'
        f"{''.join(drawn)}</svg>\n"
    )


def _bar(kind: str, y: int, low: int, high: int, count: int, most: int) -> str:
    name = f"{low:,}" if low == high else f"{low:,}–{high:,}"
    width = max(count / most * BAR_WIDTH, 1.5 if count else 0)
    return (
        f'<text x="140" y="{y + 14}" text-anchor="end">{name}</text>'
        f'<rect class={kind} x="150" y="{y}" rx="2" width="{width:.1f}" height="18"/>'
        f'<text class=soft x="{158 + width:.1f}" y="{y + 14}">{count:,}</text>\n'
    )


def _packing(packing: Packing | None) -> str:
    if packing is None:
        return ""
    step, packed, padded = packing.sentences()
    return (
        "<h2>How batches fill</h2>\n"
        f"<p>{step} (means over {packing.rows:,} rows)</p>\n"
        f"<ul><li>{packed}</li>\n<li>{padded}</li></ul>\n"
    )
