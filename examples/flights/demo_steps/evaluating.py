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
