/** Requests to the service, whose addresses are relative to the page's. */

/** An answer that is no success: `code` and `detail` for a person. */
export class ServiceError extends Error {
  constructor(code, detail) {
    super(detail);
    this.code = code;
  }
}

/**
 * Return the headers of a request with an access key, which may be empty.
 * @throws {ServiceError} the key cannot be one
 */
export function authorization(key) {
  const pasted = key.trim();
  if (/[^!-~]/.test(pasted)) throw new ServiceError("invalid key", "An access key has ASCII characters and no blanks.");
  return pasted ? { Authorization: `Bearer ${pasted}` } : {};
}

/**
 * Post a request and return the answer's content.
 * @param {string} route for example "search"
 * @param {object} content
 * @param {string} key access key, or ""
 * @param {AbortSignal} signal
 * @throws {ServiceError} the service refuses the request or cannot be reached, or the key cannot be one
 */
export async function post(route, content, key, signal) {
  const headers = { "Content-Type": "application/json", ...authorization(key) };
  let response;
  try {
    response = await fetch(new URL(route, document.baseURI), {
      method: "POST",
      headers,
      body: JSON.stringify(content),
      credentials: "omit",
      cache: "no-store",
      signal,
    });
  } catch (error) {
    if (signal.aborted) throw error;
    throw new ServiceError("unreachable", `The request could not be sent: ${error.message}`);
  }
  if (!response.ok) throw await refusal(response);
  return response.json().catch((error) => {
    if (signal.aborted) throw error;
    throw new ServiceError("unreadable", `The answer is not the service's: ${error.message}`);
  });
}

/** Return the error of an answer, { error, detail }, or of one that has another form, as those of proxies do. */
async function refusal(response) {
  const { error, detail } = await response.json().catch(() => ({}));
  const known = typeof error === "string" && typeof detail === "string";
  return new ServiceError(known ? error : `HTTP ${response.status}`, known ? detail : "The service gave no reason.");
}
