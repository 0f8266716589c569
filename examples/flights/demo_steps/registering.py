"""Step 4: the candidates are measured on July; the gate promotes what is better and refuses what is worse."""

from __future__ import annotations

from demo_steps.run import OPS, PATIENCE_S, Run
from demo_steps.sweeping import DEEP_JOB, WIDE_JOB
from demo_steps.training import JOB as TRAIN_JOB

STEP = "register"
WORST = "worst"


def run(demo: Run) -> None:
    demo.screen.start(STEP, "submitting")
    runs = demo.pool.data / "runs"
    # the worst trial comes when there is a champion, which it must not replace
    candidates = [
        runs / TRAIN_JOB / "model",
        runs / WIDE_JOB / WORST,
        runs / WIDE_JOB / "best",
        runs / DEEP_JOB / "best",
    ]
    command = ("python", "register.py", "--candidates", *map(str, candidates))
    job = demo.submit(
        STEP, "flights-register", OPS, *command, metadata={"workers": "1", "cpus_per_worker": "1"}
    )
    job.wait(PATIENCE_S)
    decisions = [event for event in job.events if event["event"] == "gate"]
    said = job.latest("registered") or {}
    expect = demo.checks.expect
    expect(
        STEP,
        "every candidate was decided",
        len(decisions) == len(candidates),
        len(decisions),
        str(len(candidates)),
    )
    worst = [d for d in decisions if d["source"].endswith(f"/{WORST}")]
    refused = bool(worst) and not worst[0]["passed"]
    expect(
        STEP,
        "the gate refused the worse model",
        refused,
        worst[0]["reasons"] if worst else "not decided",
        "refused, with the reason",
    )
    champion = next((d for d in decisions if d["version"] == said.get("champion")), {})
    best = min(decisions, key=lambda d: d["log_loss"])
    expect(
        STEP,
        "the champion is the best on July",
        champion.get("version") == best["version"],
        f"version {champion.get('version')}, log-loss {champion.get('log_loss')}",
        f"version {best['version']}, log-loss {best['log_loss']}",
    )
    demo.facts["registry"] = {"decisions": decisions, "champion": {"version": int(said["champion"])}}
    demo.screen.done(STEP, f"champion: version {said['champion']}, {len(decisions) - said['passed']} refused")


def check_record(demo: Run) -> None:
    """What the registry itself says of the champion. Importing MLflow takes seconds: done while replicas start."""
    from moorage.runtime.registry import Registry

    found = Registry.open(demo.pool.data).version("flights", demo.facts["registry"]["champion"]["version"])
    expect = demo.checks.expect
    whole = {
        "metrics": dict(found.metrics),
        "data version": found.data_version,
        "code version": found.code_version,
        "environment": found.environment,
        "sha256": found.sha256,
    }
    missing = [name for name, value in whole.items() if not value]
    expect(
        STEP,
        "the record is whole",
        not missing,
        f"missing: {missing}" if missing else ", ".join(whole),
        "none missing",
    )
    expect(STEP, "alias champion", "champion" in found.aliases, list(found.aliases), "champion")
    same = found.data_version == demo.facts["features"]["version"]
    expect(
        STEP, "its data version is this run's", same, found.data_version, demo.facts["features"]["version"]
    )
    demo.facts["registry"]["champion"] = found.as_dict()
