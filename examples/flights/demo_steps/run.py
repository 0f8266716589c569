"""What every step works with, and the limits on how long a step may take."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo_steps.checks import Checks
from demo_steps.jobs import Submitted, submit
from demo_steps.pool import Pool
from demo_steps.screen import Screen

OPS, RESEARCH, BATCH = "ops", "research", "batch"
PATIENCE_S = 300.0
"""The longest any one wait may last: far above what a step takes, so that a hang ends with a reason."""


@dataclass
class Run:
    """One run of the demo. `facts` are the figures of the report by step; `jobs` everything submitted, by job id."""

    pool: Pool
    screen: Screen
    checks: Checks
    out: Path
    full: bool = False
    keep: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    jobs: dict[str, Submitted] = field(default_factory=dict)
    began: float = field(default_factory=time.time)

    @property
    def logs(self) -> Path:
        return self.out / "logs"

    def submit(self, step: str, job_id: str, team: str, *command: str, **more: Any) -> Submitted:
        """Start a job whose progress shows in the row of `step`."""
        job = submit(
            self.pool,
            step,
            job_id,
            team,
            command,
            logs=self.logs,
            listen=lambda text: self.screen.say(step, text),
            **more,
        )
        self.jobs[job_id] = job
        return job

    def finish(self, job: Submitted, text: str = "") -> None:
        """Wait for a job's success and say so on its row."""
        job.wait(PATIENCE_S)
        self.screen.done(job.step, text or "succeeded")
