"""Step 6, figures: the champion beside the baselines on August to December, and how far those months moved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from demo_steps.jobs import Submitted
from demo_steps.run import OPS, PATIENCE_S, Run

STEP = "evaluate"
CHAMPION, BOOSTING, MAJORITY = "champion", "histogram gradient boosting", "majority"
SAME = 1e-9
DAYS = 31 + 30 + 31 + 30 + 31
"""August to December."""


def start(demo: Run) -> Submitted:
    demo.screen.start(STEP, "submitting")
    metadata = {"workers": "1", "cpus_per_worker": "2"}
    return demo.submit(STEP, "flights-evaluate", OPS, "python", "evaluate.py", metadata=metadata)


def finish(demo: Run, job: Submitted) -> None:
    job.wait(PATIENCE_S)
    said = job.event("evaluated", 1.0)
    result: dict[str, Any] = json.loads(Path(said["path"]).read_text(encoding="utf-8"))
    figures = {name: result["metrics"][name]["all"] for name in (CHAMPION, BOOSTING, MAJORITY)}
    expect = demo.checks.expect
    auc, loss = ({name: round(f[key], 4) for name, f in figures.items()} for key in ("auc", "log_loss"))
    expect(
        STEP,
        "ranks better than the majority baseline",
        auc[CHAMPION] > auc[MAJORITY],
        auc,
        "champion above majority",
    )
    expect(
        STEP,
        "log-loss below the majority baseline",
        loss[CHAMPION] < loss[MAJORITY],
        loss,
        "champion below majority",
    )
    differs = result["metrics"]["differs_from_sklearn"]
    expect(
        STEP,
        "our metrics are scikit-learn's",
        differs < SAME,
        f"{differs:.1e}",
        f"differ by less than {SAME:g}",
    )
    check_pair(demo, result)
    tested, counted = result["test_rows"], demo.facts["features"]["rows"]["test"]
    expect(STEP, "every test row was scored", tested == counted, f"{tested:,}", f"{counted:,}")
    champion = demo.facts["registry"]["champion"]
    same = result["model"].get("sha256") == champion["sha256"]
    expect(
        STEP,
        "it scored the registered champion",
        same,
        f"version {result['model'].get('version')}",
        f"version {champion['version']}",
    )
    demo.facts["evaluation"] = result
    demo.screen.done(
        STEP, f"AUC {auc[CHAMPION]:.4f} (boosting {auc[BOOSTING]:.4f}), log-loss {loss[CHAMPION]:.4f}"
    )


def check_pair(demo: Run, result: dict[str, Any]) -> None:
    """The paired difference is that of the table, over every day, with an interval around it."""
    pair, metrics = result["against_boosting"], result["metrics"]
    off = max(
        abs(pair[key]["difference"] - (metrics[CHAMPION]["all"][key] - metrics[BOOSTING]["all"][key]))
        for key in ("auc", "log_loss")
    )
    spans = all(pair[key]["low"] < pair[key]["high"] for key in ("auc", "log_loss"))
    demo.checks.expect(
        STEP,
        "compared with boosting day by day",
        off < SAME and spans and pair["groups"] == DAYS,
        f"{pair['groups']} days, {off:.1e} from the table",
        f"{DAYS} days, the table's differences, with 95% intervals",
    )
