// Questions to the server. Every failure is a Problem that says what to tell the person.

/** An answer that is no success; status 0 where there was none at all. */
export class Problem extends Error {
  constructor(status, message, body = {}) {
    super(message);
    this.status = status;
    this.body = body;
  }
}

/** The path of something of a slide; `rest` begins after the id. */
export function slidePath(id, rest = "") {
  return `/api/slides/${encodeURIComponent(id)}${rest}`;
}

/** The answer to a GET, as JSON. */
export async function fetched(path, options = {}) {
  return (await answer(path, options)).json();
}

/** The answer to a GET, with its ETag: {content, tag}. */
export async function fetchedTagged(path) {
  const response = await answer(path, { cache: "no-cache" });
  return { content: await response.json(), tag: response.headers.get("etag") ?? "" };
}

/** The answer to a request that changes or computes something: {content, tag}. */
export async function sent(method, path, body, headers = {}) {
  const response = await answer(path, {
    method,
    body: body === undefined ? undefined : JSON.stringify(body),
    headers: { "content-type": "application/json", "x-coverslip": "1", ...headers },
  });
  return { content: await response.json(), tag: response.headers.get("etag") ?? "" };
}

async function answer(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (failure) {
    if (failure.name === "AbortError") throw failure;
    throw new Problem(0, "The viewer's server does not answer. Is `coverslip view` still running?");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new Problem(response.status, body.error ?? `The server answered ${response.status}.`, body);
}
