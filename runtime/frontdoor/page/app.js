// What is asked, how often, and which view shows it. Data flows one way: answers -> render(view) -> elements.
import { Refused, dropToken, get, keepToken, openRay, takeToken } from "./api.js";
import { h, learnTeams } from "./dom.js";
import { VIEWS, jobView } from "./views.js";

const EVERY_MS = 2000;
const main = document.getElementById("view");
const tabs = document.getElementById("tabs");
const banner = document.getElementById("banner");
const who = document.getElementById("who");
let me = null;
let round = 0; // a newer round makes the answers of older ones void
let timer = null;
let failing = 0;

function route() {
  const path = location.hash.replace(/^#\/?/, "");
  const [first, ...rest] = path.split("/");
  if (first === "job" && rest.length) return { key: path, load: jobView.load, draw: jobView.draw, id: decodeURIComponent(rest.join("/")) };
  const view = VIEWS.find((one) => one.path === first) ?? VIEWS[0];
  return { key: view.path, load: view.load, draw: view.draw };
}

function say(text) {
  banner.hidden = !text;
  banner.textContent = text;
}

function showTabs(current) {
  tabs.hidden = false;
  tabs.replaceChildren(...VIEWS.map((one) => h("a", { href: `#/${one.path}`, "aria-current": one.path === current ? "page" : null }, one.title)));
}

function login(wrong) {
  clearTimeout(timer);
  tabs.hidden = true;
  who.replaceChildren();
  say("");
  const field = h("input", { type: "password", name: "token", autocomplete: "off", placeholder: "token", "aria-label": "Token", required: true });
  const form = h("form", { onsubmit: (event) => { event.preventDefault(); keepToken(field.value.trim()); start(); } },
    field, h("button", { class: "go" }, "Open"));
  main.replaceChildren(h("section", { class: "card login" }, h("h1", {}, "Moorage"),
    h("p", {}, "Your team's token, as for ", h("code", {}, "ray job submit"), ". ", h("code", {}, "moorage page"), " prints an address that has it."),
    wrong ? h("p", { class: "wrong", role: "alert" }, wrong) : null, form));
  field.focus();
}

function leave() {
  dropToken();
  me = null;
  login();
}

async function refresh() {
  clearTimeout(timer);
  const mine = ++round;
  const view = route();
  try {
    if (!document.hidden) {
      const data = await view.load({ get, id: view.id, me });
      if (mine !== round) return;
      if (data.status) learnTeams(data.status.teams.map((one) => one.team).sort());
      draw(view, data);
      failing = 0;
      say(data.status && !data.status.ray.reachable ? `Ray cannot be reached: nothing is lost, nothing starts until it answers. ${data.status.ray.message}` : "");
    }
  } catch (error) {
    if (mine !== round) return;
    if (error instanceof Refused && error.status === 401) return login("This token is not known to the pool, or no longer.");
    if (error instanceof Refused) main.replaceChildren(h("section", { class: "card" }, h("h1", {}, error.message), error.todo ? h("p", {}, error.todo) : null));
    else if (++failing > 1) say("The front door does not answer. Trying again; what is shown may be old.");
  }
  timer = setTimeout(refresh, EVERY_MS * Math.min(1 + failing, 5));
}

// Drawing again must not take the keyboard's place or what was scrolled: who reads is not disturbed by who refreshes.
function draw(view, data) {
  const held = document.activeElement?.dataset?.keep;
  const scrolled = [...main.querySelectorAll("[data-scroll]")].map((one) => [one.dataset.scroll, one.scrollTop, one.scrollTop + one.clientHeight >= one.scrollHeight - 4]);
  showTabs(view.key);
  main.replaceChildren(...[view.draw({ ...data, me, id: view.id, redraw: () => draw(view, data), again: refresh })].flat().filter(Boolean));
  for (const [name, top, atEnd] of scrolled) {
    const one = main.querySelector(`[data-scroll="${name}"]`);
    if (one) one.scrollTop = atEnd ? one.scrollHeight : top;
  }
  if (held) {
    const field = main.querySelector(`[data-keep="${held}"]`);
    field?.focus();
    if (field?.setSelectionRange) field.setSelectionRange(field.value.length, field.value.length);
  }
  main.dataset.ready = view.key || "pool";
}

async function start() {
  try {
    me = await get("whoami");
    learnTeams((await get("status")).teams.map((one) => one.team).sort());
  } catch (error) {
    return login(error instanceof Refused && error.status === 401 ? "This token is not known to the pool." : `The front door does not answer: ${error.message}`);
  }
  const name = me.kind === "admin" ? "admin" : `team ${me.team}`;
  who.replaceChildren(h("span", {}, name),
    me.ray_dashboard ? h("button", { class: "link", type: "button", onclick: () => openRay().catch((error) => say(error.message)) }, "Ray") : "",
    me.grafana ? h("a", { href: me.grafana, target: "_blank", rel: "noopener noreferrer" }, "Grafana") : "",
    h("button", { class: "link", type: "button", onclick: leave }, "sign out"));
  refresh();
}

window.addEventListener("hashchange", () => { if (new URLSearchParams(location.hash.slice(1)).get("token")) { takeToken(); start(); } else if (me) refresh(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden && me) refresh(); });
if (takeToken()) start(); else login();
