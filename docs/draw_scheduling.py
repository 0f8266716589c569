"""Draw docs/img/scheduling/*.svg, the small pictures of the scheduling rules: `python docs/draw_scheduling.py`.

Two kinds: devices and what holds them (a box is a GPU, filled from below), and GPUs over time. A test asserts that the
files are current.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).with_name("img") / "scheduling"
COLOURS = {
    "A": "#2563eb",
    "B": "#d97706",
    "C": "#059669",
    "D": "#a21caf",
    "E": "#64748b",
    "new": "#dc2626",
}
INK, SOFT, PAPER = "#334155", "#94a3b8", "#f8fafc"
STYLE = ".t{font-size:14px;font-weight:600;fill:#0f172a}.l{font-size:12px;fill:#334155}.w{font-size:12px;fill:#fff}"


class Sheet:
    """One picture under construction."""

    def __init__(self, title: str, width: int, height: int) -> None:
        self.title, self.width, self.height = title, width, height
        self.parts: list[str] = []

    def text(self, x: float, y: float, words: str, kind: str = "l", anchor: str = "start") -> None:
        self.parts.append(f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{words}</text>')

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str = PAPER,
        line: str = INK,
        dash: bool = False,
        words: str = "",
    ) -> None:
        dashes = ' stroke-dasharray="5 3"' if dash else ""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}" stroke="{line}"{dashes}/>'
        )
        if words:
            kind = "w" if fill in COLOURS.values() else "l"
            self.text(x + width / 2, y + height / 2 + 4, words, kind, "middle")

    def line(
        self, x1: float, y1: float, x2: float, y2: float, *, dash: bool = False, arrow: bool = False
    ) -> None:
        more = (' stroke-dasharray="5 3"' if dash else "") + (' marker-end="url(#a)"' if arrow else "")
        self.parts.append(
            f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{INK}" stroke-width="1.3"{more}/>'
        )

    def device(self, x: float, y: float, held: Sequence[tuple[str, float]], size: float = 46) -> None:
        """A GPU: (who, share) from the bottom up; what is left stays paper."""
        self.box(x, y, size, size)
        top = y + size
        for who, share in held:
            top -= share * size
            label = f"{share:g}" if share < 1 else who
            self.box(x, top, size, share * size, fill=COLOURS[who], words=label if share >= 0.3 else "")

    def node(self, x: float, y: float, name: str, devices: Sequence[Sequence[tuple[str, float]]]) -> float:
        """Devices in a row under a name; returns the x after it."""
        width = len(devices) * 52 + 10
        self.box(x, y, width, 78, fill="#ffffff", line=SOFT)
        self.text(x + 8, y + 16, name)
        for at, held in enumerate(devices):
            self.device(x + 8 + at * 52, y + 24, held)
        return x + width + 14

    def axes(self, x: float, y: float, width: float, height: float, up: str, along: str = "time") -> None:
        self.line(x, y + height, x + width, y + height, arrow=True)
        self.line(x, y + height, x, y, arrow=True)
        self.text(x - 6, y + 10, up, anchor="end")
        self.text(x + width, y + height + 16, along, anchor="end")

    def curve(self, points: Sequence[tuple[float, float]], who: str) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[who]}" stroke-width="2"/>')

    def svg(self) -> str:
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            'font-family="system-ui, -apple-system, Segoe UI, sans-serif">\n'
            f"<title>{self.title}</title>\n<style>{STYLE}</style>\n"
            '<defs><marker id="a" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0L10 5L0 10z" fill="{INK}"/></marker></defs>\n'
            f'<rect width="{self.width}" height="{self.height}" fill="#ffffff"/>\n{body}\n</svg>\n'
        )


def quota() -> Sheet:
    """Quota, lending and reclaim: use against each team's guarantee."""
    sheet = Sheet("Idle quota is lent, and taken back", 640, 190)
    rows = (
        ("ops uses 2 of its 4; 2 are lent", 20, (("ops", 4, 2, 0), ("research", 4, 4, 2))),
        ("ops asks for its 4: taken back", 340, (("ops", 4, 4, 0), ("research", 4, 4, 0))),
    )
    for words, x, teams in rows:
        sheet.text(x, 20, words, "t")
        for at, (team, own, used, borrowed) in enumerate(teams):
            y = 40 + at * 66
            sheet.text(x, y + 12, team)
            for gpu in range(own):
                held = gpu < used
                sheet.box(
                    x + gpu * 34, y + 18, 30, 30, fill=COLOURS["AB"[at]] if held else PAPER, dash=not held
                )
            for gpu in range(borrowed):
                sheet.box(x + (own + gpu) * 34, y + 18, 30, 30, fill=COLOURS["AB"[at]], words="lent")
            sheet.line(x + own * 34 - 2, y + 12, x + own * 34 - 2, y + 54, dash=True)
            sheet.text(x + own * 34 + 2, y + 12, "quota")
    return sheet


def fragmentation() -> Sheet:
    """Free, and of no use."""
    sheet = Sheet("Free, but of no use", 640, 150)
    sheet.text(20, 22, "1.2 GPUs are free, and a task of 0.5 fits nowhere", "t")
    at = sheet.node(20, 40, "node 1", [[("A", 0.6)], [("B", 0.6)], [("C", 0.6)]])
    sheet.text(at + 10, 76, "new task")
    sheet.box(at + 10, 84, 46, 23, fill=COLOURS["new"], words="0.5")
    return sheet


def packing() -> Sheet:
    """Where a half goes: best fit looks at the remainder, the potential at what the remainder can still hold."""
    sheet = Sheet("A hole is worth what it can still hold", 640, 290)
    sheet.text(20, 22, "jobs of this pool ask for 0.5 or 0.7; a task of 0.3 comes", "t")
    before = ([("A", 0.3)], [("B", 0.2)])
    for y, words, rows in (
        (
            36,
            "best fit: the smallest remainder, 0.4, which no job can use",
            ([("A", 0.3), ("new", 0.3)], before[1]),
        ),
        (
            162,
            "potential: 0.5 stays, and 0.7 stays: both still hold a job",
            (before[0], [("B", 0.2), ("new", 0.3)]),
        ),
    ):
        sheet.node(20, y + 20, "node 1", rows)
        sheet.text(20, y + 12, words)
        sheet.text(170, y + 62, "left over:")
        for at, held in enumerate(rows):
            rest = 1 - sum(share for _, share in held)
            useful = max((s for s in (0.5, 0.7) if s <= rest + 1e-9), default=0)
            sheet.text(170, y + 80 + at * 16, f"GPU {at}: {rest:.1f}, worth {useful:g}")
    return sheet


def devices() -> Sheet:
    """Who picks the device."""
    sheet = Sheet("Who picks the device", 640, 150)
    start = [[("A", 0.2)], [("B", 0.5)], []]
    sheet.text(20, 22, "a task of 0.3: the raylet takes the least room that suffices, the planner any", "t")
    at = sheet.node(20, 40, "before", start)
    at = sheet.node(at, 40, "raylet's choice", [[("A", 0.2)], [("B", 0.5), ("new", 0.3)], []])
    sheet.node(at, 40, "free choice", [[("A", 0.2), ("new", 0.3)], [("B", 0.5)], []])
    return sheet


def gang() -> Sheet:
    """All of the minimum, or nothing."""
    sheet = Sheet("A gang holds its minimum, or nothing", 640, 150)
    whole = [("A", 1.0)]
    sheet.text(20, 22, "a gang of 3 to 5 workers, one GPU each", "t")
    at = sheet.node(20, 40, "2 free: waits", [whole, whole, [], []])
    at = sheet.node(at, 40, "4 free: starts with 4", [[("new", 1.0)]] * 4)
    sheet.text(at, 84, "later it may grow to 5, or")
    sheet.text(at, 100, "shrink to 3 before anyone")
    sheet.text(at, 116, "is preempted")
    return sheet


def backfill() -> Sheet:
    """A reservation, and what may pass it."""
    sheet = Sheet("Backfill passes a reservation without moving it", 640, 210)
    sheet.text(20, 22, "the big job has a reservation; a small one that ends before it may pass", "t")
    sheet.axes(60, 40, 540, 130, "GPUs")
    sheet.box(60, 110, 200, 60, fill=COLOURS["A"], words="runs")
    sheet.box(60, 50, 120, 60, fill=COLOURS["B"], words="runs")
    sheet.box(260, 50, 200, 120, fill="#ffffff", dash=True, words="reserved: big job")
    sheet.box(184, 62, 70, 44, fill=COLOURS["C"], words="small")
    sheet.line(260, 40, 260, 176, dash=True)
    sheet.text(264, 190, "earliest start of the big job")
    return sheet


def oldest() -> Sheet:
    """A slice of the pool for whoever waits longest."""
    sheet = Sheet("A slice of the pool is kept for the oldest", 640, 200)
    sheet.text(20, 22, "short jobs go first, but 30% of the GPUs serve whoever has waited longest", "t")
    sheet.axes(60, 40, 540, 130, "GPUs")
    for at, who in enumerate("BCDEBCDE"):
        sheet.box(62 + at * 62, 48, 58, 80, fill=COLOURS[who])
    sheet.text(566, 82, "short")
    sheet.text(566, 98, "jobs")
    sheet.box(62, 132, 300, 36, fill=COLOURS["A"], words="the oldest, to its end")
    sheet.box(364, 132, 192, 36, fill=COLOURS["new"], words="then the next oldest")
    return sheet


def attained() -> Sheet:
    """Least attained service: long jobs show themselves by running."""
    sheet = Sheet("Least attained service", 640, 190)
    sheet.text(20, 22, "nobody knows how long a job takes; one that has run long is put behind", "t")
    for at, (words, share, who) in enumerate(
        (("just came", 0.04, "new"), ("ran 10 min", 0.15, "B"), ("ran 2 h", 0.4, "C"), ("ran 3 d", 0.95, "A"))
    ):
        y = 44 + at * 34
        sheet.text(120, y + 17, words, anchor="end")
        sheet.box(130, y, 440, 24, line=SOFT)
        sheet.box(130, y, 440 * share, 24, fill=COLOURS[who])
        sheet.text(580, y + 17, f"{at + 1}.")
    return sheet


def sharing() -> Sheet:
    """Turns by share, from the root of the tree down."""
    sheet = Sheet("Whose turn it is", 640, 200)
    sheet.text(20, 22, "org has least for its weight, and of org's teams search has", "t")
    sheet.text(290, 50, "all teams", anchor="middle")
    for team, x, y, up, held, weight, who in (
        ("ops, weight 1", 130, 70, (290, 56), 4, 1, "B"),
        ("org, weight 2", 450, 70, (290, 56), 4, 2, ""),
        ("research, weight 1", 350, 130, (450, 110), 3, 1, "A"),
        ("search, weight 1", 550, 130, (450, 110), 1, 1, "A"),
    ):
        sheet.line(up[0], up[1], x, y, dash=True)
        sheet.text(x, y + 14, team, anchor="middle")
        if who:
            for gpu in range(held):
                sheet.box(x + (gpu - held / 2) * 22, y + 22, 18, 18, fill=COLOURS[who])
        turn = ": next" if team.startswith(("org", "search")) else ""
        below = 38 if not who else 56
        sheet.text(x, y + below, f"{held} / {weight} = {held // weight}{turn}", anchor="middle")
    return sheet


def decay() -> Sheet:
    """Use that is forgotten by half in each half-life."""
    sheet = Sheet("What a team has used counts less with time", 640, 190)
    sheet.text(20, 22, "use grows while a team holds GPUs, and halves with every half-life", "t")
    sheet.axes(60, 40, 540, 120, "use")
    rise = [(60 + t, 160 - 90 * (1 - math.exp(-t / 80))) for t in range(0, 161, 8)]
    top = 160 - rise[-1][1]
    fall = [(220 + t, 160 - top * 0.5 ** (t / 100)) for t in range(0, 361, 8)]
    sheet.curve([*rise, *fall], "A")
    for half in range(1, 4):
        x, y = 220 + 100 * half, 160 - top * 0.5**half
        sheet.line(x, y, x, 160, dash=True)
        sheet.text(x, 176, f"{half} half-li{'fe' if half == 1 else 'ves'}", anchor="middle")
    return sheet


def moves() -> Sheet:
    """Defragmentation."""
    sheet = Sheet("A few moves make room for a whole node", 640, 290)
    sheet.text(20, 22, "one move, within the budget, and a job of 4 GPUs starts", "t")
    one = [("A", 1.0)]
    for y, words, left, right in (
        (
            36,
            "before: 4 GPUs free, but not together",
            [one, [], [], []],
            [[("B", 1.0)], [("C", 1.0)], [("D", 1.0)], []],
        ),
        (162, "after: node 1 is whole", [[]] * 4, [[("B", 1.0)], [("C", 1.0)], [("D", 1.0)], one]),
    ):
        sheet.text(20, y + 12, words)
        at = sheet.node(20, y + 20, "node 1", left)
        sheet.node(at, y + 20, "node 2", right)
    sheet.line(70, 142, 400, 198, dash=True, arrow=True)
    return sheet


def elastic() -> Sheet:
    """Workers are given up before anybody leaves, and taken again."""
    sheet = Sheet(
        "A gang gives up workers before anybody leaves, and takes them again when nobody waits", 720, 150
    )
    sheet.text(20, 22, "a gang of 1 to 4 workers; a job of higher priority comes, and ends", "t")
    at, gang = 20.0, [("A", 1.0)]
    for words, held in (
        ("alone: 4 workers", [gang] * 4),
        ("the last two are given up", [gang, gang, [("new", 1.0)], [("new", 1.0)]]),
        ("nobody waits: it takes two again", [gang] * 4),
    ):
        at = sheet.node(at, 40, words, held)
    sheet.text(20, 138, "nobody was pushed out; between two steps a gang is left alone for ten minutes")
    return sheet


def serving() -> Sheet:
    """Models share devices (AlpaServe's example)."""
    sheet = Sheet("Bursts of one model find the device of another idle", 640, 250)
    sheet.text(20, 22, "two models, two devices, a burst of four requests for A", "t")
    for y, words, lanes in (
        (
            48,
            "apart: a burst waits on its own device while the other is idle",
            (("A", ((0, "A"), (90, "A"), (180, "A"), (270, "A"))), ("B", ((135, "B"),))),
        ),
        (
            154,
            "shared: half of the burst goes to each; B waits a little, the last of A half as long",
            (("A, B", ((0, "A"), (90, "A"))), ("A, B", ((0, "A"), (90, "A"), (180, "B")))),
        ),
    ):
        sheet.text(20, y, words)
        for number, (models, requests) in enumerate(lanes, 1):
            top = y + 10 + 34 * (number - 1)
            sheet.text(20, top + 18, f"device {number}: {models}")
            sheet.box(120, top, 480, 26, line=SOFT)
            for x, who in requests:
                sheet.box(120 + x, top, 86, 26, fill=COLOURS[who], words=who)
    sheet.line(480, 50, 480, 240, dash=True)
    return sheet


def preemption() -> Sheet:
    """Two devices over time: lent, told, given back, resumed."""
    sheet = Sheet("Preemption is a conversation", 720, 250)
    sheet.text(20, 22, "research trains on quota of serving; serving wants it back", "t")
    x, top = 110, 60
    for row, words in enumerate(("research", "serving")):
        sheet.text(20, top + 26 + row * 56, f"{words}: job")
    sheet.box(x, top, 200, 40, fill=COLOURS["A"], words="trains: steps 1 to 480")
    sheet.box(x + 200, top, 70, 40, fill=COLOURS["D"], words="saves")
    sheet.box(x + 270, top, 190, 40, dash=True, words="queued, progress kept")
    sheet.box(x + 460, top, 130, 40, fill=COLOURS["A"], words="step 481, ...")
    sheet.box(x + 200, top + 56, 80, 40, dash=True, words="promised")
    sheet.box(x + 280, top + 56, 170, 40, fill=COLOURS["B"], words="runs")
    sheet.line(x, top + 120, x + 590, top + 120, arrow=True)
    sheet.text(x + 590, top + 136, "time", anchor="end")
    for at, words, low in (
        (200, "notice", 0),
        (270, "it leaves: exit 75", 1),
        (400, "end of the grace: then stopped", 2),
    ):
        sheet.line(x + at, 46, x + at, top + 124 + low * 18, dash=True)
        sheet.text(x + at + 4, top + 136 + low * 18, words)
    return sheet


PICTURES = (
    quota,
    preemption,
    sharing,
    fragmentation,
    packing,
    devices,
    gang,
    backfill,
    oldest,
    attained,
    decay,
    elastic,
    moves,
    serving,
)


def render() -> dict[str, str]:
    """File name -> content."""
    return {f"{picture.__name__}.svg": picture().svg() for picture in PICTURES}


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, content in render().items():
        (FOLDER / name).write_text(content)
    print(f"{len(PICTURES)} pictures in {FOLDER.name}/")
