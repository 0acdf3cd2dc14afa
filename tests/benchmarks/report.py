"""What is printed: a Markdown table per model and task, the targets, and a plot of it all."""

from contestants import COPY, FUSED, MODULES, OURS, REMARKS

# Model, task, contestant, the other, and the ratio to stay below: on 2 CPU cores, where torch's default is the for-loop.
TARGETS = [
    ("gpt2", "adamw", FUSED, "torch fused", 1.05),
    ("gpt2", "clip", FUSED, "torch fused", 0.75),
    ("tiny", "adamw", FUSED, "torch fused", 1.2),
    ("tiny", "clip", FUSED, "torch fused", 1.0),
    ("gpt2", "chain", FUSED, COPY, 1.3),
    *((model, task, OURS, "torch for-loop", 1.05) for model in ("tiny", "resnet50", "gpt2") for task in ("adamw", "sgd")),
]


def table(result):
    """One task on one model, fastest first."""
    reference = result.task.reference if result.task.reference in result.seconds else COPY
    lines = [
        f"| contestant | step | GB/s | of copy speed | time / {_full_name(reference)} | quartiles | deviation |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name in sorted(result.seconds, key=result.median):
        low, ratio, high = result.ratio(name, reference)
        deviation = f"{result.deviation[name]:.0e}" if name in result.deviation else ""
        lines.append(
            f"| {_full_name(name)} | {_time(result.median(name))} | {result.rate(name):.1f} "
            f"| {result.rate(name) / result.rate(COPY):.0%} | {ratio:.2f} | {low:.2f} … {high:.2f} | {deviation} |"
        )
    return "\n".join(lines)


def targets(results):
    """Those targets whose two sides were measured; an empty text if there are none."""
    lines = []
    for model, task, ours, other, limit in TARGETS:
        result = results.get((model, task))
        if result and {ours, other} <= result.seconds.keys():
            low, ratio, high = result.ratio(ours, other)
            verdict = "" if ratio <= limit else "missed"
            name = f"{model}, {result.task.title}: {ours} / {_full_name(other)}"
            lines.append(f"| {name} | {ratio:.2f} | {low:.2f} … {high:.2f} | {limit} | {verdict} |")
    if not lines:
        return ""
    return "\n".join(["| time of a step | ratio | quartiles | at most | |", "|---|--:|--:|--:|---|", *lines])


def remarks(names, missing):
    """What to know about the other libraries, and a line on those that are not there."""
    lines = [f"- {name} {REMARKS[name]}" for name in names if name in MODULES and name not in missing]
    if missing:
        lines.append(f"- Not installed, and so left out: {', '.join(missing)}.")
    return "\n".join(lines)


def plot(results, path):
    """Every step in units of a copy of as many bytes: a panel per model, a row per task, whiskers over the quartiles."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    models = list(dict.fromkeys(model for model, _ in results))
    tasks = list(dict.fromkeys(task for _, task in results))
    names = list(dict.fromkeys(name for result in results.values() for name in result.seconds if name != COPY))
    height = 1.2 + 0.16 * len(names) * len(tasks)
    figure, axes = plt.subplots(1, len(models), figsize=(2 + 3.6 * len(models), height), sharey=True, squeeze=False)
    for axis, model in zip(axes[0], models, strict=True):
        for colour, name in enumerate(names):
            _whiskers(axis, f"C{colour}", name, [results.get((model, task)) for task in tasks], colour / len(names))
        axis.axvline(1, color="grey", linewidth=0.8)
        axis.set(title=model, xscale="log", xlabel="time / a copy of as many bytes")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.grid(axis="x", which="both", alpha=0.3)
    titles = [next(result.task.title for (_, key), result in results.items() if key == task) for task in tasks]
    axes[0][0].set_yticks([row + 0.35 for row in range(len(tasks))], [title.replace(" + ", "\n+ ") for title in titles])
    axes[0][0].set_ylim(len(tasks) - 0.1, -0.2)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _whiskers(axis, colour, name, results, offset):
    shown = [(row + 0.8 * offset, result) for row, result in enumerate(results) if result and name in result.seconds]
    drawn = [(row, result.ratio(name, COPY)) for row, result in shown]
    rows = [row for row, _ in drawn]
    medians = [ratio for _, (_, ratio, _) in drawn]
    spread = [[ratio - low for _, (low, ratio, _) in drawn], [high - ratio for _, (_, ratio, high) in drawn]]
    marker = "D" if name in (FUSED, OURS) else "o"
    axis.errorbar(medians, rows, xerr=spread, color=colour, fmt=marker, markersize=4, linewidth=1, label=name)


def _full_name(name):
    return "a copy of as many bytes" if name == COPY else name


def _time(seconds):
    return f"{seconds * 1e3:.3g} ms"
