"""A dataset as one self-contained HTML page: nothing is loaded, nothing in the data can run."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from mypt import files
from mypt.config import UNWEIGHED
from mypt.data.dataset import Dataset, open_dataset
from mypt.data.manifest import SPLITS, Density, Split
from mypt.data.policies import policy_words
from mypt.data.spans import KINDS, ROLES
from mypt.inspection.checks.findings import LEVELS, ValidationReport
from mypt.inspection.histograms import density_histogram, length_histogram
from mypt.inspection.rowview import RowView, count_rows, read_row, reasons, token_texts
from mypt.inspection.validation import keep_report, kept_report, validate
from mypt.pages.render import render
from mypt.text import counted, visible

MAX_ROWS = 300
MAX_TOKENS = 4000
"""Tokens of one row that are shown; how many follow is said."""
_NO_SPAN = len(ROLES), len(KINDS)
"""Role and kind of tokens whose spans nobody recorded."""


def write_preview(
    dataset: Path | Dataset,
    path: Path,
    *,
    max_rows: int = MAX_ROWS,
    report: ValidationReport | None = None,
) -> None:
    """Write the page.

    Args:
        dataset: The dataset or its folder.
        path: The HTML file; one that exists is replaced.
        max_rows: Rows on the page: those with findings first, the others evenly spread.
        report: The dataset's validation where it is known; None takes the one that is kept
            beside it, else validates and keeps that.

    Raises:
        ManifestError: If the dataset is damaged.
    """
    opened = dataset if isinstance(dataset, Dataset) else open_dataset(dataset, verify=False)
    found = report or kept_report(opened.path)
    if found is None:
        found = validate(opened.path)
        keep_report(opened.path, found)
    files.write_bytes(path, render_preview(opened, found, max_rows).encode())


def render_preview(dataset: Dataset, report: ValidationReport, max_rows: int = MAX_ROWS) -> str:
    """Return the page's HTML."""
    data = _data(dataset, report, max_rows)
    shown = len(data["rows"])
    in_all = sum(count_rows(dataset, split) for split in SPLITS)
    return render(
        "preview.html",
        styles=["page.css"],
        scripts=["preview.js"],
        **_summary(dataset, report),
        data=data,
        filters=_filters(data),
        masked=dataset.manifest.mask is not None,
        shown_codes={code for row in data["rows"] for code in row["findings"]},
        sample=f"{shown:,} of {in_all:,} rows, those with findings first" if shown < in_all else "",
        histograms=[density_histogram(dataset), length_histogram(dataset)],
    )


def _summary(dataset: Dataset, report: ValidationReport) -> dict[str, Any]:
    manifest, stats = dataset.manifest, report.stats
    facts = {
        "digest": manifest.digest[:12],
        "kind": manifest.kind,
        "tokenizer": manifest.tokenizer_name,
        "template": dataset.tokenizer.template.name,
        "policy": policy_words(manifest.mask.policy) if manifest.mask else "no mask",
    }
    tiles = {
        "rows": f"{sum(stats.rows.values()):,}",
        "tokens": f"{stats.total.tokens:,}",
        "supervised tokens": f"{stats.total.supervised:,}",
        "density": f"{stats.total.density:.1%}",
        "longest row": f"{stats.longest:,}",
    }
    counts = [(level, report.count(level)) for level in LEVELS]
    found = [f"{count} {level}{'' if count == 1 else 's'}" for level, count in counts if count]
    return {
        "name": visible(dataset.path.resolve().name),
        "facts": [{"name": name, "value": visible(value)} for name, value in facts.items()],
        "tiles": [{"name": name, "value": value} for name, value in tiles.items()],
        "worst": next((level for level, count in counts if count), "good"),
        "verdict": ", ".join(found) or "no findings",
        "findings": [
            finding.model_dump() | {"examples": [visible(str(p)) for p in finding.examples]}
            for finding in report.findings
        ],
        "roles": _shares(stats.by_role),
        "sources": _shares(stats.by_source),
    }


def _shares(groups: dict[str, Density]) -> list[dict[str, str]]:
    most = max((group.tokens for group in groups.values()), default=0)
    return [
        {
            "name": visible(name),
            "share": f"{100 * group.tokens / max(1, most):.2f}",
            "density": f"{100 * group.density:.2f}",
            "tokens": f"{group.tokens:,}",
            "percent": f"{group.density:.1%}",
        }
        for name, group in groups.items()
    ]


def _data(dataset: Dataset, report: ValidationReport, max_rows: int) -> dict[str, Any]:
    """Return what the script draws from, as plain JSON values."""
    codes: dict[tuple[str, int], list[str]] = defaultdict(list)
    for finding in report.findings:
        for place in finding.examples:
            if place.split is not None and place.row is not None:
                codes[place.split, place.row].append(finding.code)
    rules: dict[str, int] = {}
    chosen = choose_rows(dataset, codes, max_rows)
    views = [read_row(dataset, split, index) for split, index in chosen]
    ids = np.unique(np.concatenate([np.empty(0, np.uint32), *(v.tokens for v in views)]))
    return {
        "roles": [*ROLES, ""],
        "kinds": [*KINDS, ""],
        "levels": {finding.code: finding.level for finding in report.findings},
        "bytes": {int(one): dataset.tokenizer.decode_bytes([one]).hex(" ") for one in ids},
        "rows": [
            _row(dataset, view, list(dict.fromkeys(codes[view.split, view.index])), rules)
            for view in views
        ],
        "reasons": list(rules),
    }


def choose_rows(
    dataset: Dataset, flagged: dict[tuple[str, int], list[str]], max_rows: int
) -> list[tuple[Split, int]]:
    """Return the rows to show: those with findings, then others evenly spread, in order."""
    n_train = count_rows(dataset, "train")
    n_rows = n_train + count_rows(dataset, "val")

    def number(one: tuple[str, int]) -> int:
        return one[1] if one[0] == "train" else n_train + one[1]

    first = np.array(sorted(map(number, flagged))[:max_rows], dtype=np.int64)
    spread = np.linspace(0, max(0, n_rows - 1), min(max_rows, n_rows)).round().astype(np.int64)
    others = np.setdiff1d(spread, first)
    free = min(max_rows - len(first), len(others))
    kept = others[np.linspace(0, len(others) - 1, free).round().astype(np.int64)]
    chosen = np.concatenate([first, kept])
    return [
        ("train", row) if row < n_train else ("val", row - n_train)
        for row in np.sort(chosen).tolist()
    ]


def _row(
    dataset: Dataset, view: RowView, codes: list[str], rules: dict[str, int]
) -> dict[str, Any]:
    weights, record = view.weights, dataset.manifest.mask
    mask = None if weights is None else weights > 0
    policy = None if record is None else record.policy
    tokens = view.tokens[:MAX_TOKENS]
    spans = []
    for span, rule in zip(
        [] if view.spans is None else view.spans, reasons(view, policy), strict=True
    ):
        reason = "no mask yet" if mask is None else str(rule or "made by hand")
        number = rules.setdefault(reason, len(rules))
        stop = min(int(span["stop"]), len(tokens))
        spans.append([stop, *(int(span[name]) for name in ("role", "kind", "message")), number])
        if stop == len(tokens):
            break
    if not spans:
        spans = [[len(tokens), *_NO_SPAN, 0, rules.setdefault("made by hand", len(rules))]]
    count = counted(len(view.tokens), "token")
    if mask is not None:
        count += f" \u00b7 {int(mask.sum()):,} supervised"
    return {
        "split": view.split,
        "index": view.index,
        "source": visible(view.source),
        "where": visible(", ".join(filter(None, (view.where, view.pair)))),
        "findings": codes,
        "count": count,
        "density": None if mask is None else round(float(mask.mean()), 4),
        "ids": tokens.tolist(),
        "texts": token_texts(dataset.tokenizer, tokens),
        "mask": "" if mask is None else "".join(map(str, mask[:MAX_TOKENS].astype(int).tolist())),
        "weights": []
        if weights is None or record is None or record.weights == UNWEIGHED
        else weights[:MAX_TOKENS].tolist(),
        "spans": spans,
        "rest": f"{len(view.tokens) - len(tokens):,} more tokens are not shown"
        if len(view.tokens) > len(tokens)
        else "",
    }


def _filters(data: dict[str, Any]) -> list[dict[str, Any]]:
    rows = data["rows"]
    roles = {data["roles"][span[1]] for row in rows for span in row["spans"]} - {""}
    options = {
        "split": [split for split in SPLITS if any(row["split"] == split for row in rows)],
        "role": [role for role in ROLES if role in roles],
        "source": list(dict.fromkeys(row["source"] for row in rows)),
        "finding": list(dict.fromkeys(code for row in rows for code in row["findings"])),
    }
    return [{"name": name, "options": values} for name, values in options.items()]
