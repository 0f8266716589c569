// The pool as a map: node x device x who.
import { colour, empty, gpus, h, jobLink, teamLabel } from "./dom.js";

const MOST_NODES = 400; // more would make the page slow; the filter finds the others
const drawn = new Map(); // node name -> [signature, element]
let open = null; // id of the device that is looked into

function deviceCell(device, redraw) {
  const idle = device.holders.length === 0;
  const label = idle ? "idle" : device.holders.length === 1 ? device.holders[0].job : `${device.holders.length} tasks`;
  const parts = device.holders.map((one) =>
    h("i", { style: { width: `${Math.max(3, one.milli_gpu / 10)}%`, background: colour(one.team) } }));
  const told = `${device.id}, ${device.gpu_model}: ` +
    (idle ? "idle" : device.holders.map((one) => `${one.job} of ${one.team} holds ${gpus(one.milli_gpu)}`).join("; "));
  return h("button", {
    class: `device${idle ? " idle" : ""}`, type: "button", "aria-label": told, title: told, "aria-expanded": String(open === device.id),
    onclick: () => { open = open === device.id ? null : device.id; redraw(); },
  }, parts, h("em", {}, label));
}

function inspector(device) {
  const held = device.holders.map((one) =>
    h("li", {}, jobLink(one.job), " of ", teamLabel(one.team), ` holds ${gpus(one.milli_gpu)} GPU`,
      one.gpu_mib ? `, ${one.gpu_mib.toLocaleString("en")} MiB` : "", `, task ${one.task}, epoch ${one.epoch}`));
  return h("div", { class: "inspect" }, h("b", {}, device.id), ` ${device.gpu_model}, ${gpus(device.free_milli_gpu)} GPU and ` +
    `${device.free_mib.toLocaleString("en")} MiB free`, held.length ? h("ul", { class: "plain" }, held) : null);
}

function nodeRow(node, devices, redraw) {
  const tags = [...Object.entries(node.labels).map(([key, value]) => `${key}=${value}`), ...node.taints.map((one) => `taint ${one}`)];
  if (node.spot) tags.push("spot");
  if (node.drained) tags.push("drained");
  const about = [`${gpus(node.free_milli_cpu)} of ${gpus(node.milli_cpu)} CPU free`];
  if (node.gpu_model) about.unshift(node.gpu_model);
  if (!node.alive) about.unshift("not alive");
  const looked = devices.find((one) => one.id === open);
  return h("div", { class: `node${node.alive ? "" : " down"}` },
    h("div", {}, h("div", { class: "name" }, node.name), h("div", { class: "about" }, about.join(" · ")),
      tags.length ? h("div", { class: "tags" }, tags.map((text) => h("span", { class: "tag" }, text))) : null),
    h("div", { class: "devices" }, devices.length ? devices.map((one) => deviceCell(one, redraw)) : h("span", { class: "about" }, "no GPU")),
    looked ? inspector(looked) : null);
}

// Only nodes that changed are drawn again: what a reader looks at stays where it is.
export function poolMap(status, filter, redraw) {
  const by = new Map();
  for (const device of status.devices) by.set(device.node, [...(by.get(device.node) ?? []), device]);
  const wanted = filter.trim().toLowerCase();
  const chosen = status.nodes.filter((node) => !wanted || JSON.stringify([node.name, node.labels, node.gpu_model,
    (by.get(node.name) ?? []).map((one) => one.holders.map((held) => [held.job, held.team]))]).toLowerCase().includes(wanted));
  const rows = chosen.slice(0, MOST_NODES).map((node) => {
    const devices = by.get(node.name) ?? [];
    const mark = JSON.stringify([node, devices, devices.some((one) => one.id === open) && open]);
    const known = drawn.get(node.name);
    if (known && known[0] === mark) return known[1];
    const element = nodeRow(node, devices, redraw);
    drawn.set(node.name, [mark, element]);
    return element;
  });
  if (!rows.length) return empty(status.nodes.length ? "No node matches." : "No node has joined yet.");
  const more = chosen.length - rows.length;
  return h("div", { class: "nodes" }, rows, more > 0 ? empty(`${more} more nodes: narrow the filter.`) : null);
}
