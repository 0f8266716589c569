// Elements and texts. Nothing here or elsewhere sets HTML from text: what people named their jobs is only ever text.

const SVG = "http://www.w3.org/2000/svg";

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const h = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);
export const s = (tag, attributes, ...children) => build(document.createElementNS(SVG, tag), attributes, children);

// Okabe and Ito's colours, which people with any common colour vision tell apart, and darker ones of the same kind.
const PALETTE = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7a5fa8", "#8c8c00", "#00607a", "#99445f"];
const colours = new Map();

export function learnTeams(teams) {
  for (const team of teams) if (!colours.has(team)) colours.set(team, PALETTE[colours.size % PALETTE.length]);
}
export const colour = (team) => colours.get(team) ?? "#8a97a0";
export const teamLabel = (team) => h("span", { class: "team" }, h("i", { class: "dot", style: { background: colour(team) } }), team);

export const gpus = (milli) => (milli / 1000).toLocaleString("en", { maximumFractionDigits: 3 });

export function duration(ns) {
  const seconds = Math.max(0, Math.round(ns / 1e9));
  if (seconds < 90) return `${seconds} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${(seconds / 3600).toFixed(1)} h`;
  return `${(seconds / 86400).toFixed(1)} d`;
}

export function moment(ns) {
  if (!ns) return "–";
  const at = new Date(ns / 1e6);
  const today = new Date().toDateString() === at.toDateString();
  const time = at.toLocaleTimeString("en-GB");
  return h("time", { datetime: at.toISOString(), title: at.toISOString() }, today ? time : `${at.toISOString().slice(0, 10)} ${time}`);
}

export const money = (micro) => `$${(micro / 1e6).toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 4 })}`;
export const state = (name) => h("span", { class: `state ${name}` }, name.toLowerCase());
export const jobLink = (id) => h("a", { href: `#/job/${encodeURIComponent(id)}` }, id);
export const empty = (text) => h("p", { class: "empty" }, text);

export function card(title, ...children) {
  return h("section", { class: "card" }, title && h("h2", {}, title), children);
}

// `columns`: [label, cell of a row, class]. On a narrow screen each row becomes a card of labelled lines.
export function table(columns, rows) {
  const head = h("tr", {}, columns.map(([label, , kind]) => h("th", { class: kind, scope: "col" }, label)));
  const body = rows.map((row) =>
    h("tr", {}, columns.map(([label, cell, kind]) => h("td", { class: kind, "data-label": kind === "id" || !label ? null : label }, cell(row)))));
  return h("div", { class: "scroll" }, h("table", { class: "cards" }, h("thead", {}, head), h("tbody", {}, body)));
}
