// One entry per view: what it loads, and how it looks.
import { logs } from "./api.js";
import { usageChart } from "./chart.js";
import { card, colour, duration, empty, gpus, h, jobLink, learnTeams, moment, money, state, table, teamLabel } from "./dom.js";
import { poolMap } from "./map.js";

const chosen = { hours: 1, node: "", text: "", state: "", team: "" }; // what the reader picked; stays over refreshes

function field(key, label, redraw) {
  return h("input", { type: "search", placeholder: label, "aria-label": label, value: chosen[key], "data-keep": key,
    oninput: (event) => { chosen[key] = event.target.value; redraw(); } });
}

function pick(key, label, options, redraw) {
  const all = [["", label], ...options.map((one) => [one, one])];
  return h("select", { "aria-label": label, "data-keep": key, onchange: (event) => { chosen[key] = event.target.value; redraw(); } },
    all.map(([value, text]) => h("option", { value, selected: chosen[key] === value }, text)));
}

const tile = (figure, text, ...more) => h("div", { class: "tile" }, h("b", {}, figure), h("span", {}, text), more);
const legend = (teams) => h("div", { class: "legend" }, teams.map((team) => h("span", {}, h("i", { style: { background: colour(team) } }), team)));

function queueTable(status, rows) {
  return table([
    ["Job", (one) => jobLink(one.job), "id"],
    ["Team", (one) => teamLabel(one.team)],
    ["GPUs", (one) => gpus(one.milli_gpu), "num"],
    ["Priority", (one) => String(one.priority), "num"],
    ["Waits", (one) => duration(status.at_ns - one.created_ns), "num"],
    ["Why", (one) => one.message, "text"],
  ], rows);
}

// What holds GPUs without a lease; nothing where the guard sees nothing and can see.
function found(status, guard) {
  const open = guard.findings.filter((one) => one.state === "WARNED" || one.state === "STOPPING");
  if (!open.length && !guard.message && guard.complete) return null;
  const notes = [guard.message, guard.complete ? "" : "There was more than one look may read: not all of it was judged."].filter(Boolean);
  return card(["Guard", h("small", {}, "GPUs held without a lease, or beyond it")], notes.map((text) => h("p", {}, text)),
    open.length ? table([
      ["What", (one) => `${one.target.replaceAll("-", " ")} ${one.target_id.slice(0, 16)}`, "id"],
      ["Job", (one) => (one.job ? jobLink(one.job) : "")],
      ["Team", (one) => (one.team ? teamLabel(one.team) : "")],
      ["GPUs", (one) => gpus(one.milli_gpu), "num"],
      ["Stopped in", (one) => (one.stops_in_ns === null ? "not stopped" : duration(one.stops_in_ns)), "num"],
      ["Why", (one) => one.message, "text"],
    ], open) : null);
}

const pool = {
  path: "", title: "Pool",
  async load({ get }) {
    const [status, guard, usage] = await Promise.all([get("status"), get("guard"), get(`usage?minutes=${chosen.hours * 60}&points=${chosen.hours === 1 ? 120 : 144}`)]);
    return { status, guard, usage };
  },
  draw({ status, guard, usage, redraw, again }) {
    learnTeams(Object.keys(usage.teams).sort());
    const there = status.devices.length * 1000;
    const held = there - status.devices.reduce((sum, one) => sum + one.free_milli_gpu, 0);
    const alive = status.nodes.filter((one) => one.alive).length;
    const by = {};
    for (const device of status.devices) for (const one of device.holders) by[one.team] = (by[one.team] ?? 0) + one.milli_gpu;
    const teams = Object.keys(by).sort();
    const wait = status.queue.reduce((most, one) => Math.max(most, status.at_ns - one.created_ns), 0);
    const hours = h("span", { class: "choice" }, [[1, "1 h"], [24, "24 h"], [168, "7 d"]].map(([value, text]) =>
      h("button", { type: "button", "aria-pressed": String(chosen.hours === value), onclick: () => { chosen.hours = value; again(); } }, text)));
    const width = Math.max(320, Math.min(document.getElementById("view").clientWidth - 60, 1220));
    const map = () => poolMap(status, chosen.node, redraw);
    return [
      h("div", { class: "tiles" },
        tile(`${gpus(held)} / ${gpus(there)}`, "GPUs held", h("div", { class: "bar", role: "img", "aria-label": teams.map((one) => `${one} ${gpus(by[one])}`).join(", ") || "none held" },
          teams.map((team) => h("i", { style: { width: `${there ? (100 * by[team]) / there : 0}%`, background: colour(team) } })))),
        tile(String(status.running.length), "jobs hold a lease"),
        tile(String(status.queue.length), wait ? `jobs wait, the longest ${duration(wait)}` : "jobs wait"),
        tile(`${alive} / ${status.nodes.length}`, "nodes alive")),
      h("section", { class: "card" }, h("h2", {}, "GPUs held", hours, legend(Object.keys(usage.teams).sort())), usageChart(usage, width)),
      h("section", { class: "card" }, h("h2", {}, "Nodes and devices", legend(teams)),
        status.nodes.length > 8 ? h("div", { class: "filters" }, field("node", "filter: node, label, model, job, team", redraw)) : null, map()),
      found(status, guard),
      card(["Queue", h("small", {}, "in order of submission, with what each waits for")],
        status.queue.length ? queueTable(status, status.queue.slice(0, 50)) : empty("Nothing waits."),
        status.queue.length > 50 ? empty(`${status.queue.length - 50} more under Jobs.`) : null),
      card("Running", status.running.length ? table([
        ["Job", (one) => jobLink(one.job), "id"],
        ["Team", (one) => teamLabel(one.team)],
        ["State", (one) => state(one.state)],
        ["GPUs", (one) => gpus(one.milli_gpu), "num"],
        ["For", (one) => (one.started_ns ? duration(status.at_ns - one.started_ns) : "–"), "num"],
        ["Where", (one) => one.places, "text"],
      ], status.running) : empty("Nothing runs.")),
    ];
  },
};

const jobs = {
  path: "jobs", title: "Jobs",
  load: async ({ get }) => ({ jobs: await get("jobs?limit=1000"), status: await get("status") }),
  draw({ jobs: all, redraw }) {
    const wanted = chosen.text.trim().toLowerCase();
    const rows = all.filter((one) => (!chosen.state || one.state === chosen.state) && (!chosen.team || one.team === chosen.team) &&
      (!wanted || `${one.job_id} ${one.entrypoint} ${JSON.stringify(one.metadata)}`.toLowerCase().includes(wanted)));
    const distinct = (key) => [...new Set(all.map((one) => one[key]))].sort();
    return card(["Jobs", h("small", {}, `${rows.length} of ${all.length}, newest first`)],
      h("div", { class: "filters" }, field("text", "filter: id, entrypoint, metadata", redraw),
        pick("state", "any state", distinct("state"), redraw), pick("team", "any team", distinct("team"), redraw)),
      rows.length ? table([
        ["Job", (one) => jobLink(one.job_id), "id"],
        ["Team", (one) => teamLabel(one.team)],
        ["State", (one) => state(one.state)],
        ["Submitted", (one) => moment(one.created_ns)],
        ["Ran", (one) => (one.started_ns ? duration((one.ended_ns ?? Date.now() * 1e6) - one.started_ns) : "–"), "num"],
        ["Attempts", (one) => String(one.attempt), "num"],
        ["", (one) => one.message, "text"],
      ], rows.slice(0, 300)) : empty("No job matches."),
      rows.length > 300 ? empty(`${rows.length - 300} more: narrow the filter.`) : null);
  },
};

function quotaBar(one, most) {
  const part = (milli) => `${most ? Math.min(100, (100 * milli) / most) : 0}%`;
  return h("div", { class: "quota", role: "img", "aria-label": `holds ${gpus(one.used_milli_gpu)} of a quota of ${gpus(one.quota_milli_gpu)}` },
    h("i", { style: { width: part(one.used_milli_gpu), background: colour(one.team) } }), h("u", { style: { left: part(one.quota_milli_gpu) } }));
}

const teams = {
  path: "teams", title: "Teams",
  load: async ({ get }) => ({ status: await get("status") }),
  draw({ status }) {
    const parents = new Map(status.teams.map((one) => [one.team, one.parent]));
    const depth = (team) => { let deep = 0; for (let up = parents.get(team); up && deep < 20; up = parents.get(up)) deep++; return deep; };
    const chain = (team) => { const path = [team]; for (let up = parents.get(team); up && path.length < 20; up = parents.get(up)) path.unshift(up); return path.join("\u0000"); };
    const rows = [...status.teams].sort((a, b) => (chain(a.team) < chain(b.team) ? -1 : 1));
    const most = Math.max(status.devices.length * 1000, ...rows.map((one) => one.quota_milli_gpu));
    return [
      card(["Teams", h("small", {}, "the bar is what a team holds, the mark its quota, the length the pool")], table([
        ["Team", (one) => h("span", { style: { "padding-left": `${depth(one.team) * 16}px` } }, teamLabel(one.team)), "id"],
        ["Held", (one) => quotaBar(one, most)],
        ["GPUs", (one) => gpus(one.used_milli_gpu), "num"],
        ["Quota", (one) => gpus(one.quota_milli_gpu), "num"],
        ["Limit", (one) => (one.limit_milli_gpu === null ? "none" : gpus(one.limit_milli_gpu)), "num"],
        ["Borrowed", (one) => gpus(one.borrowed_milli_gpu), "num"],
        ["May hold now", (one) => (one.allowance_milli_gpu === null ? "all" : gpus(one.allowance_milli_gpu)), "num"],
      ], rows)),
      status.budgets.length ? card("Budgets", table([
        ["Team", (one) => teamLabel(one.team), "id"],
        ["Spent", (one) => h("span", {}, h("div", { class: "bar" }, h("i", { style: { width: `${Math.min(100, (100 * one.spent) / Math.max(one.budget, 1e-9))}%`, background: colour(one.team) } })))],
        ["", (one) => `${one.spent.toLocaleString("en", { maximumFractionDigits: 2 })} of ${one.budget.toLocaleString("en")} ${one.unit} per ${one.period}`],
        ["Anew", (one) => moment(one.until_ns)],
      ], status.budgets)) : null,
    ];
  },
};

function what(payload) {
  if (payload?.text) return payload.text;
  return Object.entries(payload ?? {}).filter(([, value]) => value !== null && value !== "" && typeof value !== "object").map(([key, value]) => {
    if (key === "digest") return `digest ${String(value).slice(0, 12)}`;
    if (key.endsWith("milli_gpu")) return `${key.slice(0, -9).replaceAll("_", " ")}${gpus(value)} GPU`;
    return `${key.replaceAll("_", " ")} ${value}`;
  }).join(" · ");
}
const EVENT = [["When", (one) => moment(one.wall_ns)], ["Event", (one) => one.kind, "kind"], ["Detail", (one) => what(one.payload), "text"]];
const RECORD = [EVENT[0], EVENT[1], ["Job", (one) => (one.job_id ? jobLink(one.job_id) : "")],
  ["Team", (one) => (one.team ? teamLabel(one.team) : "")], ["By", (one) => one.principal], EVENT[2]];

const events = {
  path: "events", title: "Events",
  load: async ({ get }) => ({ events: await get("events?last=300") }),
  draw: ({ events: all }) => card(["Audit record", h("small", {}, "the last 300, newest first")],
    all.length ? table(RECORD, [...all].reverse()) : empty("Nothing yet.")),
};

const cost = {
  path: "cost", title: "Cost",
  load: async ({ get }) => ({ cost: await get("cost") }),
  draw({ cost: bill }) {
    const most = Math.max(1, ...bill.teams.map((one) => one.micro_dollars || one.gpu_seconds));
    const amount = [["GPU hours", (one) => (one.gpu_seconds / 3600).toLocaleString("en", { maximumFractionDigits: 3 }), "num"], ["Money", (one) => money(one.micro_dollars), "num"]];
    const rows = [...bill.jobs].sort((a, b) => b.micro_dollars - a.micro_dollars || b.gpu_seconds - a.gpu_seconds);
    return [
      h("div", { class: "tiles" }, tile(money(bill.total.micro_dollars), "in all"), tile((bill.total.gpu_seconds / 3600).toLocaleString("en", { maximumFractionDigits: 2 }), "GPU hours")),
      card("By team", bill.teams.length ? table([["Team", (one) => teamLabel(one.team), "id"],
        ["", (one) => h("div", { class: "bar" }, h("i", { style: { width: `${(100 * (one.micro_dollars || one.gpu_seconds)) / most}%`, background: colour(one.team) } }))], ...amount], bill.teams) : empty("Nothing was leased yet.")),
      card(["By job", h("small", {}, "the dearest first")], rows.length ? table([["Job", (one) => jobLink(one.job), "id"], ["Team", (one) => teamLabel(one.team)], ...amount], rows.slice(0, 200)) : empty("Nothing was leased yet.")),
    ];
  },
};

// How many serve of how many wanted, and why the pool has not given more.
const replicas = (scaling) => {
  const serving = scaling.replicas.filter((one) => one.state === "SERVING").length;
  const bounds = `${serving} of ${scaling.wanted} wanted (${scaling.min_replicas} to ${scaling.max_replicas})`;
  const waits = [...new Set(scaling.waits.map((ask) => ask.reason?.text ?? "waits for the next scheduling round"))];
  return h("span", {}, bounds, ...[...waits, ...(scaling.note ? [scaling.note] : [])].map((text) => h("small", {}, ` ${text}`)));
};

const endpoints = {
  path: "endpoints", title: "Endpoints",
  load: async ({ get }) => ({ endpoints: await get("endpoints") }),
  draw: ({ endpoints: all }) => card(["Endpoints", h("small", {}, "the browser asks for a token: any user name, the token as password")], all.length ? table([
    ["Endpoint", (one) => (one.live ? h("a", { href: `${one.path}docs` }, one.name) : one.name), "id"],
    ["Team", (one) => teamLabel(one.team)],
    ["State", (one) => h("span", { class: `state ${one.live ? "live" : "gone"}` }, one.live ? "live" : "its job ended")],
    ["Replicas", (one) => one.scaling ? replicas(one.scaling) : "1"],
    ["Job", (one) => jobLink(one.job_id)],
    ["Since", (one) => moment(one.created_ns)],
  ], all) : empty("No endpoint is published.")),
};

export const VIEWS = [pool, jobs, teams, endpoints, events, cost];

function waiting(explanation) {
  return h("div", { class: "reason" }, h("div", {}, h("b", {}, "Waits: "), explanation.reason.text ?? explanation.reason.code),
    explanation.suggestions.length ? [h("div", {}, "Any of these would start it now:"),
      h("ul", { class: "plain" }, explanation.suggestions.map((one) => h("li", {}, one.text ?? JSON.stringify(one))))] : null,
    h("div", {}, explanation.earliest_text));
}

export const jobView = {
  async load({ get, id }) {
    const path = encodeURIComponent(id);
    const job = await get(`jobs/${path}`);
    const [why, record, log] = await Promise.all([
      job.state === "PENDING" ? get(`jobs/${path}/why`).catch(() => null) : null,
      get(`jobs/${path}/events?limit=1000`),
      job.attempts.length ? logs(id).catch((error) => `(no log: ${error.message})`) : "",
    ]);
    return { job, why, record, log };
  },
  draw({ job, why, record, log }) {
    const held = job.lease?.tasks ?? [];
    const lines = [["Team", teamLabel(job.team)], ["Entrypoint", h("code", {}, job.entrypoint)], ["Submitted", moment(job.created_ns)],
      ["Started", moment(job.started_ns)], ["Ended", moment(job.ended_ns)],
      ["Metadata", h("div", { class: "tags" }, Object.entries(job.metadata).map(([key, value]) => h("span", { class: "tag" }, `${key}=${value}`)))]];
    if (held.length) lines.push(["Holds", h("div", { class: "tags" }, held.map((one) => h("span", { class: "tag" }, `${one.node}${(one.devices ?? []).length ? `/${one.devices.join(",")}` : ""}`)))]);
    if (job.driver_exit_code !== null) lines.push(["Exit code", String(job.driver_exit_code)]);
    return [
      h("h1", {}, job.job_id, " ", state(job.state)),
      why?.explanation ? waiting(why.explanation) : job.message ? h("p", {}, job.message) : null,
      card(null, h("dl", {}, lines.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]))),
      job.attempts.length ? card("Attempts", table([
        ["Attempt", (one) => String(one.attempt), "id"],
        ["State", (one) => state(one.state)],
        ["Started", (one) => moment(one.started_ns)],
        ["Ended", (one) => moment(one.ended_ns)],
        ["Exit code", (one) => (one.driver_exit_code === null ? "–" : String(one.driver_exit_code)), "num"],
        ["", (one) => one.message, "text"],
      ], job.attempts)) : null,
      job.attempts.length ? card(["Log", h("small", {}, "of all attempts, the end of it")], h("pre", { "data-scroll": "log", tabindex: "0" }, log.slice(-60000) || "(empty)")) : null,
      card("Events", table(EVENT, record)),
    ];
  },
};
