"""Write the measured parts of docs/benchmarks.md and README.md, and the charts, from bench/results.

    python bench/page.py

Each of these files holds the results of bench/all.py on one machine. The text outside the page's
two markers is written by hand and stays unchanged. In README the tables between
`<!-- speeds: NAME SIZE -->` and `<!-- end of speeds -->` are of results/NAME.json; the others are
written by hand. Needs matplotlib.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from chart import STYLE
from machine import ROOT
from models import DEPTH, PASSES, PROMPT, SEQUENCES, has, rate

mpl.use("svg")
import matplotlib.pyplot as plt

RESULTS = ROOT / "bench" / "results"
DOCS = ROOT / "docs"
README = ROOT / "README.md"
BEGIN, END = "<!-- measured -->", "<!-- end of measured -->"
SPEEDS = re.compile(r"(<!-- speeds: (\S+) (\S+) -->\n).*?(<!-- end of speeds -->)", re.DOTALL)
HEADS = {
    "prefill": f"prefill {PROMPT}",
    "decode": "decode",
    "decode_deep": f"decode after {DEPTH}",
}
BLUE, GREY, INK = "#2563a8", "#a9b1bb", "#333333"
DRAFTS = {"pass_1": "1 token", "pass_8": "8 tokens", "pass_16": "16 tokens"}
CHARTED = {
    "prefill": f"prefill of {PROMPT} tokens",
    "decode": "decode, one sequence",
    "decode_deep": f"decode after {DEPTH}",
    "batch": f"decode, {SEQUENCES} sequences",
}
COLUMNS = 2  # of the chart

Report = dict[str, Any]  # a file of bench/results
Result = dict[str, Any]  # one model size in a report


# ---- tables ---------------------------------------------------------------------------------


def table(head: list[str], rows: list[list[str]], left: int = 1) -> str:
    """Format Markdown; the first `left` columns hold text, the others numbers."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows]) + "\n"


def machine_table(report: Report) -> str:
    """Format the description of the machine."""
    machine = report["machine"]
    memory = machine["memory_bytes"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    rows = [
        ["processor", f"{machine['cpu']}, {machine['cores']} cores"],
        ["instructions", ", ".join(machine["features"])],
        ["memory", f"{memory / 2**30:.0f} GiB" if memory else "not known"],
        ["system", f"{machine['system']}, Python {machine['python']}"],
        ["packages", packages],
        ["minigpt", f"commit {machine['commit']}, {machine['date']}"],
        ["threads", str(report["threads"])],
    ]
    return table(["", ""], rows, left=2)


def speed_table(result: Result) -> str:
    """Format tokens per second, and the ratio of minigpt's to each other engine's."""
    head = ["tokens per second", *HEADS.values()]
    rows = [
        [label(name), *(speed_cell(figures, task) for task in HEADS)]
        for name, figures in result["engines"].items()
    ]
    return table(head, rows)


def together_table(result: Result) -> str:
    """Format the speed of many sequences together, and the time of passes of several tokens."""
    head = ["", f"{SEQUENCES} sequences, tokens/s", *(f"{what}, ms" for what in DRAFTS.values())]
    rows = [
        [label(name), speed_cell(figures, "batch"), *(pass_cell(figures, task) for task in DRAFTS)]
        for name, figures in result["engines"].items()
        if "batch" in figures["seconds"]
    ]
    return table(head, rows)


def pass_cell(figures: dict[str, Any], task: str) -> str:
    """Format `9.21 (1.35)`: milliseconds of a pass, and how many passes of one token that is."""
    one, this = (np.median(figures["seconds"][t]) / PASSES for t in ("pass_1", task))
    return number(1e3 * this) + (f" ({this / one:.2f})" if task != "pass_1" else "")


def label(name: str) -> str:
    """Format an engine's name: minigpt's in bold."""
    return f"**{name}**" if name.startswith("minigpt") else name


def speed_cell(figures: dict[str, Any], task: str) -> str:
    """Format `46.3 (1.76)`; minigpt's own cell has no ratio."""
    if task not in figures["seconds"]:
        return ""
    ratio = figures["ratios"].get(task)
    return number(rate(figures, task)) + (f" ({ratio:.2f})" if ratio else "")


def number(value: float) -> str:
    """Format three significant digits, or all digits before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def accuracy_table(results: list[Result]) -> str:
    """Format the logits' difference to transformers', and the memory above the weights."""
    rows = []
    for result in results:
        for name, figures in result["engines"].items():
            error, peak = figures.get("logits_error"), figures["peak_rss_bytes"]
            above = peak - figures["weights_bytes"] if peak else None
            rows.append(
                [
                    result["size"],
                    label(name),
                    "" if error is None else f"{error:.1e}",
                    f"{figures['weights_bytes'] / 1e6:,.0f}",
                    "" if above is None else f"{above / 1e6:,.0f}",
                ]
            )
    return table(["", "", "logits differ by", "weights, MB", "peak above, MB"], rows, left=2)


def limits_table(results: list[Result]) -> str:
    """Format the speed of decoding against a plain read of memory."""
    head = ["", "", "depth", "tokens/s", "MB per token", "plain read, GB/s", "fraction of it"]
    rows = [
        [
            result["size"],
            limit["dtype"],
            str(limit["depth"]),
            number(limit["decode_tokens_per_s"]),
            number(limit["bytes_per_token"] / 1e6),
            number(limit["stream_bytes_per_s"] / 1e9),
            f"{limit['bandwidth_fraction']:.2f}",
        ]
        for result in results
        for limit in result["limits"]
    ]
    return table(head, rows, left=2)


def training_table(training: Report) -> str:
    """Format training speed and memory against PyTorch's, as it is and compiled."""
    head = ["", "", "tokens/s", "minigpt is faster by", "peak GB"]
    rows = []
    for result in training["results"]:
        for engine, speed in result["tokens_per_s"].items():
            ratio = f"{result['ratio'][engine]:.2f}" if engine in result["ratio"] else ""
            peak = f"{result['peak_bytes'][engine] / 1e9:.2f}"
            rows.append([result["dtype"], engine, number(speed), ratio, peak])
    shape = f"{training['size']}, {training['batch']} × {training['context']} tokens a step:"
    return f"{shape}\n\n{table(head, rows, left=2)}"


def encoding_table(encoding: Report) -> str:
    """Format the speed of encoding, and the ratio of minigpt's to each other encoder's."""
    names = list(dict.fromkeys(name for r in encoding["results"] for name in r["mb_per_s"]))
    rows = [
        [result["what"], *(encoding_cell(result, name) for name in names)]
        for result in encoding["results"]
    ]
    return table(["", *(f"{name}, MB/s" for name in names)], rows)


def encoding_cell(result: Result, name: str) -> str:
    """Format `15.4 (5.04)`; minigpt's own cell has no ratio."""
    if name not in result["mb_per_s"]:
        return ""
    ratios = result["ratio"]
    ratio = ratios.get(name) if isinstance(ratios, dict) else {"tiktoken": ratios}.get(name)
    return number(result["mb_per_s"][name]) + (f" ({ratio:.2f})" if ratio else "")


def missing_line(results: list[Result]) -> str:
    """Format the list of engines that were not measured, with the reasons."""
    reasons = {(name, why) for result in results for name, why in result["missing"].items()}
    if not reasons:
        return ""
    return "Not measured: " + "; ".join(f"{name} ({why})" for name, why in sorted(reasons)) + ".\n"


# ---- the chart ------------------------------------------------------------------------------


def chart(report: Report, path: Path) -> None:
    """Draw bars: two panels a row, first those of each size, then training and encoding."""
    rows = []
    for result in report["results"]:
        panels = [
            (f"{result['size']}: {title}, tokens/s", speeds_of(result, task))
            for task, title in CHARTED.items()
            if has(result, task)
        ]
        rows += [panels[i : i + COLUMNS] for i in range(0, len(panels), COLUMNS)]
    if last := list(panels_of_training(report)):
        rows.append(last)
    heights = [0.22 * max(len(speeds) for _, speeds in row) + 0.7 for row in rows]
    with mpl.rc_context({**STYLE, "text.color": INK, "ytick.color": INK}):
        figure, grid = plt.subplots(
            len(rows),
            COLUMNS,
            figsize=(9, sum(heights)),
            height_ratios=heights,
            squeeze=False,
            layout="constrained",
        )
        figure.get_layout_engine().set(h_pad=0.12)
        for axes, row in zip(grid, rows, strict=True):
            for axis in axes[len(row) :]:
                axis.set_visible(False)
            for axis, (title, speeds) in zip(axes, row, strict=False):
                draw(axis, speeds)
                axis.set_title(title, loc="left", fontsize=9)
        figure.savefig(path, metadata={"Date": None}, facecolor="white")
        plt.close(figure)


def speeds_of(result: Result, task: str) -> dict[str, float]:
    """Return tokens per second by engine."""
    return {
        name: rate(figures, task)
        for name, figures in result["engines"].items()
        if task in figures["seconds"]
    }


def panels_of_training(report: Report) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield title and speeds of the panels for training and encoding, if measured."""
    if training := report.get("training"):
        speeds = {
            f"{engine} {result['dtype']}": speed
            for result in training["results"]
            for engine, speed in result["tokens_per_s"].items()
        }
        yield f"{training['size']}: training, tokens/s", speeds
    if encoding := report.get("encoding"):
        speeds = {
            f"{engine}, {result['what']}": speed
            for result in encoding["results"]
            for engine, speed in result["mb_per_s"].items()
        }
        yield "encoding text, MB/s", speeds


def draw(axis: plt.Axes, speeds: dict[str, float]) -> None:
    """Draw a panel: a bar per engine, a gap before each of minigpt's, which starts a new dtype."""
    ours = [name.startswith("minigpt") for name in speeds]
    offsets = [i + 0.6 * gap for i, gap in enumerate(np.cumsum(ours))]
    colours = [BLUE if our else GREY for our in ours]
    bars = axis.barh(offsets, list(speeds.values()), color=colours, height=0.75)
    axis.bar_label(bars, [number(speed) for speed in speeds.values()], padding=3, fontsize=8)
    axis.set_yticks(offsets, list(speeds))
    axis.invert_yaxis()
    axis.set_xlim(0, 1.15 * max(speeds.values()))
    axis.set_xticks([])
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)


# ---- the page -------------------------------------------------------------------------------


def section(report: Report, name: str) -> str:
    """Format the results of one machine, and write its chart."""
    results = report["results"]
    sizes = ", ".join(result["size"] for result in results)
    image = f"benchmarks-{name}.svg"
    chart(report, DOCS / image)
    parts = [
        f"## {report['machine']['cpu']}, {report['machine']['features'][-1]}\n",
        machine_table(report),
        f"![Tokens per second of each engine on {sizes}]({image})\n",
        *(f"### {result['size']}\n\n{speed_table(result)}" for result in results),
        *(
            f"### {result['size']}: {SEQUENCES} sequences, and passes of several tokens\n\n"
            f"{together_table(result)}"
            for result in results
            if has(result, "batch")
        ),
        f"### Accuracy and memory\n\n{accuracy_table(results)}",
        f"### Against the limit of memory\n\n{limits_table(results)}",
        missing_line(results),
    ]
    if report.get("training"):
        parts.append(f"### Training\n\n{training_table(report['training'])}")
    if report.get("encoding"):
        parts.append(f"### Encoding text\n\n{encoding_table(report['encoding'])}")
    if report.get("kernels"):
        parts.append(f"### Kernels\n\n```\n{report['kernels'].rstrip()}\n```\n")
    return "\n".join(part for part in parts if part)


def with_speeds(text: str, reports: dict[str, Report]) -> str:
    """Return a text with the tables between its markers made anew.

    reports  the files of bench/results, by name
    """

    def block(match: re.Match[str]) -> str:
        begin, name, size, end = match.groups()
        result = next(found for found in reports[name]["results"] if found["size"] == size)
        return f"{begin}{speed_table(result)}{end}"

    return SPEEDS.sub(block, text)


def main() -> None:
    files = sorted(RESULTS.glob("*.json"))
    if not files:
        raise SystemExit(f"{RESULTS}: no results; bench/all.py measures them")
    reports = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
    sections = [section(report, name) for name, report in reports.items()]
    page = DOCS / "benchmarks.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    text = f"{before}{BEGIN}\n\n" + "\n".join(sections) + f"\n{END}{after}"
    page.write_text(text, encoding="utf-8", newline="\n")
    readme = with_speeds(README.read_text(encoding="utf-8"), reports)
    README.write_text(readme, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
