"""What `posttrain data inspect` shows: rows token by token, and numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.text import Text

from posttrain.cli.summaries import WIDTH, where
from posttrain.core.console import Console, Table, console
from posttrain.stages.stage import Outcome

if TYPE_CHECKING:
    from posttrain.data.anatomy import Anatomy, Piece
    from posttrain.data.inspect import Report
    from posttrain.stages.inspect import Inspection

STRETCH = 400  # tokens of one kind in a row that are shown; the page shows all
# two shades each, by turns, so that the borders of tokens show
STYLES: dict[str, tuple[str, str]] = {
    "trained": ("black on #9ddca5", "black on #c3ecc7"),
    "end": ("bold white on #1a7f37", "bold white on #1a7f37"),
    "given": ("black on #dcdcdc", "black on #f0f0f0"),
    "template": ("#3b4f72 on #cfdcf2", "#3b4f72 on #e3ebf8"),
    "special": ("#5b2a86 on #dcc6ee", "#5b2a86 on #dcc6ee"),
    "first": ("black on #f7e3a1", "black on #f7e3a1"),
    "cut": ("strike #9a5b5b on #f5dada", "strike #9a5b5b on #fae9e9"),
    "gap": ("italic", "italic"),
}
MARKS = {"trained": ("⟦", "⟧"), "cut": ("✂⟨", "⟩")}  # where there are no colours
SEPARATOR = "│"


def show(outcome: Outcome) -> None:
    """The report as text, and where the page is.

    Raises:
        DataError: what training would refuse.
    """
    out = console()
    if not out.is_terminal:
        out.width = WIDTH
    inspection: Inspection | None = outcome.detail  # None where it was made before
    if inspection is not None:
        show_report(inspection.report, out)
    html = inspection.html if inspection is not None else None
    for path in (html, outcome.outputs.get("page")):
        if path is not None:
            out.print_line(f"page      {path}")
    where(outcome)
    if inspection is not None:
        inspection.report.check()


def show_report(report: Report, out: Console) -> None:
    """Everything, as text."""
    coloured = out.color_system is not None and not out.no_color
    for example in report.examples:
        show_example(example, out, coloured)
    if report.missing:
        out.print(
            f"not shown: rows {', '.join(map(str, report.missing))}: there is no such row, or it "
            "was rejected\n"
        )
    if report.examples:
        passages = [passage for example in report.examples for passage in example.passages]
        kinds = {piece.kind for passage in passages for piece in passage.pieces}
        out.print(legend(kinds, coloured), soft_wrap=True)
    out.print(counts(report))
    if len(report.parts) > 1:
        out.print(by_source(report))
    for line in histogram(report):
        out.print_line(line)
    if report.packing is not None:
        for sentence in report.packing.sentences():
            out.print_text(sentence)
        out.print()
    if report.rejects:
        out.print_line(f"rejected  {report.rejects}")


# ------------------------------------------------------------------------------------------- tokens


def show_example(example: Anatomy, out: Console, coloured: bool) -> None:
    """A row: what becomes of each of its messages, and its tokens."""
    from posttrain.data.anatomy import elided

    title = example.where + (f", dropped: {example.dropped}" if example.dropped else "")
    out.print_line(f"── {title} ──", style="bold")
    for message in example.messages:
        out.print_line(f"{message.name}: {message.what}")
    for passage in example.passages:
        out.print_line(passage.heading, style="italic")
        pieces = elided(passage.pieces, STRETCH)
        out.print(in_colour(pieces) if coloured else Text(in_marks(pieces)), soft_wrap=True)
    out.print()


def in_colour(pieces: tuple[Piece, ...]) -> Text:
    from posttrain.data.anatomy import visible

    text = Text()
    for i, piece in enumerate(pieces):
        text.append(visible(piece.text), STYLES[piece.kind][i % 2])
    return text


def in_marks(pieces: tuple[Piece, ...]) -> str:
    """Text in which trained tokens stand between ⟦ ⟧, cut ones between ✂⟨ ⟩, and │ stands between
    tokens.
    """
    from posttrain.data.anatomy import visible

    family = {"trained": "trained", "end": "trained", "cut": "cut"}
    parts: list[str] = []
    before = ""
    for piece in pieces:
        now = family.get(piece.kind, "")
        if now != before:
            parts += [MARKS.get(before, ("", ""))[1], MARKS.get(now, ("", ""))[0]]
        elif parts and not parts[-1].endswith("\n"):
            parts.append(SEPARATOR)
        parts.append(visible(piece.text))
        before = now
    return "".join([*parts, MARKS.get(before, ("", ""))[1]])


def legend(kinds: set[str], coloured: bool) -> Text:
    """What the colours or marks mean, of those that occur."""
    from posttrain.data.anatomy import LEGEND

    text = Text()
    if not coloured:
        cut = ", ✂⟨cut off⟩" if "cut" in kinds else ""
        return Text(
            f"⟦trained⟧, given{cut}; {SEPARATOR} stands between tokens, ⏎ is a line break\n"
        )
    for kind, what in LEGEND.items():
        if kind in kinds and kind != "gap":
            text.append(f" {kind} ", STYLES[kind][0]).append(
                f" {what.partition(': ')[2] or what}\n"
            )
    return text.append("⏎ is a line break\n")


# ------------------------------------------------------------------------------------------ numbers


def counts(report: Report) -> Table:
    """What became of the rows of all training sources."""
    from posttrain.data.inspect import table

    out = Table(title="training rows", show_header=False, box=SIMPLE)
    out.add_column()
    out.add_column(justify="right")
    for name, value in table(report):
        out.add_row(name, value)
    return out


def by_source(report: Report) -> Table:
    """The main counts of each source."""
    out = Table(title="by source", box=SIMPLE)
    out.add_column("source", overflow="fold")
    out.add_column("format")
    for name in report.parts[0].counts():
        out.add_column(name, justify="right", no_wrap=True)
    for part in report.parts:
        numbers = [f"{count:,}" for count in part.counts().values()]
        out.add_row(part.name, part.account.format, *numbers)
    return out


def histogram(report: Report, width: int = 40) -> list[str]:
    """Lengths as bars of text, the limit between those within it and those over it."""
    lengths = report.lengths
    if not lengths.n:
        return []
    bins, over = lengths.bins(report.max_length), lengths.over(report.max_length)
    names = [f"{low:,}" if low == high else f"{low:,}–{high:,}" for low, high, _ in bins]
    margin, most = max(map(len, names)), max(count for _, _, count in bins)
    limit = (
        f"{'':>{margin}} ┄┄ --max-length {report.max_length:,}: {over:,} longer "
        f"({over / lengths.n:.1%})"
    )
    lines = ["", f"tokens a sequence, before the length limit (n = {lengths.n:,})"]
    marked = False
    for name, (low, _, count) in zip(names, bins, strict=True):
        if low > report.max_length and not marked:
            lines.append(limit)
            marked = True
        lines.append(f"{name:>{margin}} {_bar(count / most * width):<{width}} {count:,}")
    if not marked:
        lines.append(limit)
    return [*lines, ", ".join(lengths.quantiles()), ""]


def _bar(length: float) -> str:
    """A bar in eighths of a character; something that is more than nothing is to be seen."""
    eighths = max(round(length * 8), 1 if length else 0)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
