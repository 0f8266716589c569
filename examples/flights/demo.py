"""The demo: two teams, one pool, real flights, from raw files to an endpoint and a report.

    python examples/flights/demo.py [--keep] [--full] [--out DIR] [--json]

Brings a pool of its own up, submits everything with the unmodified `ray job submit`, checks each step and takes the
pool down again. Exit code 0 only if every check held. Leaves report.html, report.json and all logs in the folder
it names.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
import traceback
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from demo_steps import (
    decisions,
    evaluating,
    features,
    fractions,
    guarding,
    ledger,
    reclaiming,
    registering,
    reporting,
    serving,
    sweeping,
    training,
)
from demo_steps.checks import Checks, StepFailed
from demo_steps.pool import NODES, Pool, choose_home
from demo_steps.run import BATCH, OPS, RESEARCH, Run
from demo_steps.screen import Screen

from moorage.errors import MoorageError

POOL = "pool"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave the pool and the endpoint up, and say where"
    )
    parser.add_argument("--full", action="store_true", help="also train with DeepSpeed ZeRO-2")
    parser.add_argument(
        "--out", type=Path, default=Path("demo-report"), help="folder of the report (default: demo-report)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print report.json at the end, progress to standard error"
    )
    return parser.parse_args()


def rows(full: bool) -> list[tuple[str, str]]:
    """The steps as the screen lists them, with their teams."""
    found = [
        (POOL, ""),
        (guarding.STEP, ""),
        (fractions.STEP, BATCH),
        (features.STEP, OPS),
        (training.STEP, OPS),
        (sweeping.WIDE, RESEARCH),
        (sweeping.DEEP, RESEARCH),
        (registering.STEP, OPS),
        (reclaiming.STEP, BATCH),
        (serving.STEP, OPS),
        (evaluating.STEP, OPS),
        (serving.LOAD, OPS),
        (ledger.STEP, ""),
    ]
    return [*found[:7], (training.DEEPSPEED_STEP, OPS), *found[7:]] if full else found


def bring_up(demo: Run) -> None:
    demo.screen.start(POOL, "starting raylets, control plane and front door")
    demo.pool.up()
    booked, total = demo.pool.ray_gpus()
    demo.checks.expect(
        POOL,
        "Ray has the pool's GPUs, all free",
        total > 0 and booked == 0,
        f"{total:g}, {booked:g} booked",
        "none booked",
    )
    nodes = demo.pool.record.get("nodes", ())
    demo.checks.expect(POOL, "separate nodes are up", len(nodes) == NODES, len(nodes), str(NODES))
    demo.facts["pool"] = {
        "front_door": demo.pool.url,
        "ray_version": demo.pool.record.get("ray_version"),
        "nodes": len(nodes),
        "gpus": total,
    }
    demo.screen.done(POOL, f"{len(nodes)} nodes, {total:g} logical GPUs, front door {demo.pool.url}")


def beside_the_features(demo: Run) -> None:
    """What looks at Ray's own figures, so one after the other."""
    guarding.run(demo)
    fractions.run(demo)


def train_and_sweep(demo: Run, threads: ThreadPoolExecutor) -> None:
    """Both teams at once: the kill, the wait in the queue and its reason all happen while the others run."""
    train = training.start(demo)
    wide = sweeping.start_wide(demo)
    killing = threads.submit(training.kill_midway, demo, train)
    deep = sweeping.start_deep(demo)
    sweeping.watch_the_wait(demo, train.job_id)
    work: list[Future[Any]] = [
        killing,
        threads.submit(sweeping.finish, demo, wide),
        threads.submit(sweeping.finish_deep, demo, deep),
        threads.submit(finish_training, demo, train, killing),
    ]
    together(work)
    sweeping.check(demo)
    if demo.full:
        job = training.start_deepspeed(demo)
        demo.finish(job)
        training.check_deepspeed(demo, job)


def finish_training(demo: Run, train: Any, killing: Future[dict[str, Any]]) -> None:
    killed = killing.result()
    train.wait(300.0)
    training.check(demo, train, killed)
    done = demo.facts["train"]
    demo.screen.done(
        training.STEP,
        f"{done['steps']} steps; killed at {done['killed']['step']}, resumed from {done['resumed_from']}",
    )


def serve_and_evaluate(demo: Run, threads: ThreadPoolExecutor) -> None:
    """The replicas start while the test months are scored; the requests come when the machine is theirs."""
    server = serving.start(demo)
    scoring = evaluating.start(demo)
    registering.check_record(demo)
    together(
        [threads.submit(serving.await_ready, demo, server), threads.submit(evaluating.finish, demo, scoring)]
    )
    serving.send_requests(demo)
    serving.stop(demo, server)


def together(work: list[Future[Any]]) -> None:
    """Until all are done, or one has failed: then its error is raised."""
    done, _ = wait(work, return_when=FIRST_EXCEPTION)
    for one in done:
        one.result()


def steps(demo: Run) -> None:
    with ThreadPoolExecutor(8, thread_name_prefix="demo") as threads:
        try:
            bring_up(demo)
            demo.began = time.time()
            with decisions.Watch(demo) as watch:
                together([threads.submit(beside_the_features, demo), threads.submit(features.run, demo)])
                train_and_sweep(demo, threads)
                together([threads.submit(step.run, demo) for step in (registering, reclaiming)])
                serve_and_evaluate(demo, threads)
            demo.screen.start(ledger.STEP, "collecting")
            ledger.collect(demo, time.time_ns(), watch.said)
            guarding.check_others(demo)
        except BaseException:
            # threads that wait for jobs must not outlive the reason they wait
            for job in demo.jobs.values():
                job.abandon()
            raise


def interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def prepare(options: argparse.Namespace) -> tuple[Pool, Path]:
    out = options.out.absolute()
    shutil.rmtree(out / "logs", ignore_errors=True)
    for name in (*reporting.NAMES, "requests.json"):
        (out / name).unlink(missing_ok=True)
    (out / "logs").mkdir(parents=True)
    home = choose_home(Path(os.environ.get("MOORAGE_DEMO_HOME", ".moorage-demo")))
    pool = Pool(home, out / "logs")
    pool.clear()
    return pool, out


def guarded(demo: Run) -> StepFailed | None:
    """All steps; whatever ends them early becomes one reason."""
    try:
        steps(demo)
        return None
    except StepFailed as failure:
        return failure
    except KeyboardInterrupt:
        return StepFailed("demo", "interrupted")
    except Exception as error:
        log = demo.logs / "demo-error.log"
        log.write_text(traceback.format_exc(), encoding="utf-8")
        return StepFailed("demo", f"{type(error).__name__}: {error}", str(log))


def main() -> int:
    options = arguments()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    began = time.monotonic()
    try:
        pool, out = prepare(options)
    except (StepFailed, OSError, MoorageError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    stream = sys.stderr if options.json else sys.stdout
    screen = Screen(rows(options.full), stream)
    demo = Run(pool=pool, screen=screen, checks=Checks(), out=out, full=options.full, keep=options.keep)
    with screen:
        failure = guarded(demo)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(
                number, signal.SIG_IGN
            )  # what is left is the taking down: seconds, and it must happen
        kept = options.keep and failure is None
        if failure is not None and failure.step in screen.rows:
            screen.fail(failure.step, failure.what)
        if not kept:
            left = pool.down()
            demo.checks.expect(
                POOL,
                "the pool is down again",
                not left,
                f"still there: {', '.join(left)}" if left else "all its processes ended",
                "no process of it or of its jobs is left",
            )
        report = reporting.write(demo, failure, time.monotonic() - began)
        if failure is None:
            screen.done(ledger.STEP, str(report["html"]))
    reporting.summary(demo, failure, report, kept)
    if options.json:
        print(json.dumps(json.loads(Path(report["json"]).read_text(encoding="utf-8")), indent=1))
    return 0 if demo.checks.all_held and failure is None else 1


if __name__ == "__main__":
    sys.exit(main())
