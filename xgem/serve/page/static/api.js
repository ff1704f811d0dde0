/* The HTTP API: answers, errors in its own words, and a lost connection, which is said and repeated. */

import { $, shown } from "./dom.js";

/** An answer that is not a success; the message is the API's line. */
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

export function connected(yes) {
  const text = yes ? "" : "No connection to the server. Trying again.";
  if ($("#connection").textContent !== text) $("#connection").textContent = text;
}

/** The answer to a request. Reading is repeated until there is a connection; what changes something is sent once. */
async function answer(path, method, body) {
  for (let wait = 500; ; wait = Math.min(2 * wait, 8000)) {
    try {
      const response = await fetch(path, { method, body });
      connected(true);
      return response;
    } catch {
      if (method !== "GET") {
        throw new ApiError(
          "No connection to the server. If you sent a request, look into the history before you send it again.",
          0,
        );
      }
      connected(false);
      await pause(wait);
    }
  }
}

/** JSON of the API (null if it is empty), or, for `as: "blob"`, a file. Throws ApiError. */
export async function api(path, { method = "GET", body, as = "json" } = {}) {
  const response = await answer(path, method, body);
  if (response.ok) return response.status === 204 ? null : response[as]();
  const text = await response.text();
  let line = text.slice(0, 300) || response.statusText;
  try {
    line = JSON.parse(text).error ?? line;
  } catch {
    // Not JSON: an answer of a proxy, shown as it is.
  }
  if (response.status === 401) $("#login").hidden = false;
  throw new ApiError(line, response.status);
}

/** Follow a generation: `on` has a function for each event (state, progress, preview). Ends by itself. */
export function follow(id, on) {
  const source = new EventSource(`/api/generations/${id}/events`);
  source.onopen = () => connected(true);
  source.onerror = async () => {
    connected(false);
    if (source.readyState !== EventSource.CLOSED) return; // the browser tries again
    await pause(2000);
    const generation = await shown(() => api(`/api/generations/${id}`));
    if (!generation) return; // it is gone: deleted, or no longer this user's
    on.state(generation);
    if (!finished(generation)) follow(id, on);
  };
  for (const [name, act] of Object.entries(on)) {
    source.addEventListener(name, (event) => {
      const data = JSON.parse(event.data);
      if (name === "state" && finished(data)) source.close();
      act(data);
    });
  }
}

export const finished = (generation) => ["done", "failed", "cancelled"].includes(generation.state);

export const sampleUrl = (id, output, index, format) =>
  `/api/generations/${id}/samples/${encodeURIComponent(output)}/${index}?format=${format}`;
