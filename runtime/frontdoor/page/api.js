// The front door's own routes. The token lives in this tab only and goes nowhere but into the Authorization header.

const KEY = "moorage-token";

export class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `HTTP ${status}`);
    this.status = status;
    this.code = problem.code;
    this.todo = problem.todo;
  }
}

// `moorage page` prints an address with the token behind '#', which browsers never send; it leaves the address bar at once.
export function takeToken() {
  const given = new URLSearchParams(location.hash.replace(/^#/, ""));
  if (given.get("token")) {
    sessionStorage.setItem(KEY, given.get("token"));
    history.replaceState(null, "", `${location.pathname}#${given.get("to") ?? "/"}`);
  }
  return sessionStorage.getItem(KEY);
}
export const keepToken = (token) => sessionStorage.setItem(KEY, token);
export const dropToken = () => sessionStorage.removeItem(KEY);

async function ask(path, method = "GET") {
  const answer = await fetch(path, { method, headers: { Authorization: `Bearer ${sessionStorage.getItem(KEY)}` }, cache: "no-store" });
  if (!answer.ok) throw new Refused(answer.status, await answer.json().catch(() => ({})));
  return answer;
}

export const get = async (path) => (await ask(`/moorage/v1/${path}`)).json();
export const logs = async (job) => (await (await ask(`/api/jobs/${encodeURIComponent(job)}/logs`)).json()).logs ?? "";
// The answer brings a cookie that is good for that path only: the dashboard's own scripts know no token.
export const openRay = async () => location.assign((await (await ask("/moorage/v1/ray-dashboard", "POST")).json()).path);
