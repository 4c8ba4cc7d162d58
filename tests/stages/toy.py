"""A stage of a user's own: count rows, split off the long ones, and decide about their number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from posttrain.core.settings import Destination, ExecutionOnly, Settings
from posttrain.data.rows import Rejects
from posttrain.data.settings import Rows
from posttrain.data.sources import read
from posttrain.stages.stage import Context, Made, Verdict, stage


class CountSettings(Settings):
    """Settings of counting."""

    data: Rows = Field(min_length=1, description="rows to count")
    out: Annotated[Path, Destination()] = Field(description="folder for the result")
    longer: int = Field(10, ge=1, description="characters from which a prompt is long")
    most: int | None = Field(None, description="rows at most; more is a failure")
    threads: Annotated[int, ExecutionOnly(rounding=True)] = Field(1, description="at a time")


@stage(
    "count", CountSettings, help="count rows", makes={"rows": "rows.jsonl", "long": "long.jsonl"}
)
def count(settings: CountSettings, context: Context) -> Made:
    """Count rows, and write the long ones apart."""
    rows: dict[str, list[dict[str, Any]]] = {"rows": [], "long": []}
    for source in settings.data:
        for row in read(source, Rejects()):
            is_long = len(str(row.fields["prompt"])) >= settings.longer
            rows["long" if is_long else "rows"].append(row.fields)
    context.claim()
    for name, group in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in group)
        (context.folder / f"{name}.jsonl").write_text(text)
    n = len(rows["rows"]) + len(rows["long"])
    verdict = None
    if settings.most is not None:
        good = n <= settings.most
        verdict = Verdict("PASS", 0) if good else Verdict("FAIL", 3, f"{n} rows are too many")
    return Made({"n": n}, verdict)
