// GPUs held over time, one band per team.
import { colour, gpus, h, s } from "./dom.js";

const WIDE = 900, HIGH = 170, LEFT = 34, BOTTOM = 18;

function niceStep(most) {
  const rough = most / 3;
  const unit = 10 ** Math.floor(Math.log10(Math.max(rough, 1)));
  return [1, 2, 5, 10].map((k) => k * unit).find((step) => step >= rough) ?? unit;
}

// `usage`: {from_ns, to_ns, capacity_milli_gpu, teams: {name: [milli-GPU, mean of each step]}}
export function usageChart(usage, width = WIDE) {
  const names = Object.keys(usage.teams).sort();
  const points = names.length ? usage.teams[names[0]].length : 0;
  const sums = Array.from({ length: points }, (_, i) => names.reduce((sum, name) => sum + usage.teams[name][i], 0));
  const top = Math.max(usage.capacity_milli_gpu, ...sums, 1000) / 1000;
  const x = (i) => LEFT + (i / Math.max(points, 1)) * (width - LEFT);
  const y = (milli) => 6 + (1 - milli / 1000 / top) * (HIGH - BOTTOM - 6);
  const parts = [];
  for (let level = 0, step = niceStep(top); level <= top; level += step) {
    parts.push(s("line", { class: "grid", x1: LEFT, x2: width, y1: y(level * 1000), y2: y(level * 1000) }));
    parts.push(s("text", { x: LEFT - 6, y: y(level * 1000) + 4, "text-anchor": "end" }, String(level)));
  }
  let below = new Array(points).fill(0);
  for (const name of names) {
    const above = below.map((value, i) => value + usage.teams[name][i]);
    let path = "";
    for (let i = 0; i < points; i++) path += `${i ? "L" : "M"}${x(i)} ${y(above[i])}L${x(i + 1)} ${y(above[i])}`;
    for (let i = points - 1; i >= 0; i--) path += `L${x(i + 1)} ${y(below[i])}L${x(i)} ${y(below[i])}`;
    if (points) parts.push(s("path", { d: `${path}Z`, fill: colour(name), "fill-opacity": ".85" }, s("title", {}, name)));
    below = above;
  }
  const cap = y(usage.capacity_milli_gpu);
  parts.push(s("line", { class: "cap", x1: LEFT, x2: width, y1: cap, y2: cap }));
  const span = usage.to_ns - usage.from_ns;
  for (let k = 0; k <= 4; k++) {
    const at = new Date((usage.from_ns + (span * k) / 4) / 1e6);
    const label = span > 36 * 3600e9 ? at.toISOString().slice(5, 10) : at.toLocaleTimeString("en-GB").slice(0, 5);
    parts.push(s("text", { x: LEFT + (k / 4) * (width - LEFT), y: HIGH - 4, "text-anchor": ["start", "middle", "middle", "middle", "end"][k] }, label));
  }
  const told = names.map((name) => `${name} ${gpus(usage.teams[name][points - 1] ?? 0)}`).join(", ");
  return h("div", {}, s("svg", { class: "chart", viewBox: `0 0 ${width} ${HIGH}`, preserveAspectRatio: "none", role: "img",
    "aria-label": `GPUs held over time; last: ${told || "none"}` }, parts));
}
