/** The search page: searches a catalogue and explains scores by the service, or ranks pasted titles in the browser. */

import { element, explanationOf, productLine } from "./elements.js";
import { ServiceError, authorization, post } from "./service.js";
import { loadStudent } from "./student.js";

const byId = (id) => document.getElementById(id);
const key = byId("key");
const form = byId("search");
const query = byId("query");
const local = byId("local");
const titles = byId("titles");
const results = byId("results");
const status = byId("status");
const problem = byId("error");

let running = new AbortController(); // of the search, and of explanations of its results
let student; // a promise, once it was asked for

local.addEventListener("change", () => {
  byId("titles-field").hidden = !local.checked;
  byId("count-field").hidden = local.checked;
  byId("submit").textContent = local.checked ? "Rank" : "Search";
  begin();
  finish(local.checked ? "Enter a query and titles to rank." : "Enter a query to search the catalogue.");
});

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const signal = begin();
  try {
    await (local.checked ? rankHere(signal) : searchCatalogue(signal));
  } catch (error) {
    if (!signal.aborted) fail(error);
  }
});

/** Stop what is running, and clear the results; return the signal by which the next is stopped. */
function begin() {
  running.abort();
  running = new AbortController();
  results.replaceChildren();
  results.ariaBusy = "true";
  problem.hidden = true;
  return running.signal;
}

function finish(message) {
  results.ariaBusy = "false";
  status.textContent = message;
}

function fail(error) {
  finish("");
  problem.textContent = described(error);
  problem.hidden = false;
}

function described(error) {
  return error instanceof ServiceError ? `${error.message} (${error.code})` : error.message;
}

async function searchCatalogue(signal) {
  status.textContent = "Searching …";
  const text = query.value;
  const { hits } = await post("search", { query: text, k: Number(byId("count").value) }, key.value, signal);
  const largest = Math.max(...hits.map((hit) => hit.score));
  results.append(
    ...hits.map((hit, place) => {
      const line = productLine("button", place + 1, hit.title, hit.score, largest);
      line.type = "button";
      return explained(line, text, hit.title, `why-${place}`, signal);
    }),
  );
  finish(hits.length ? `${counted(hits.length)}, best first. Choose one to see why.` : "No products were found.");
}

/** Return a result whose line shows and hides its explanation, which is requested once. */
function explained(line, text, title, id, signal) {
  const why = element("div", "why");
  why.id = id;
  why.hidden = true;
  why.setAttribute("role", "group");
  why.setAttribute("aria-label", "Why this score?");
  why.ariaLive = "polite";
  line.ariaExpanded = "false";
  line.setAttribute("aria-controls", id);
  let requested = false;
  line.addEventListener("click", async () => {
    why.hidden = !why.hidden;
    line.ariaExpanded = String(!why.hidden);
    if (requested) return;
    requested = true;
    why.replaceChildren(element("p", "note", "Loading the explanation …"));
    try {
      why.replaceChildren(...explanationOf(await post("explain", { query: text, title }, key.value, signal)));
    } catch (error) {
      requested = false; // choosing it again tries again
      why.replaceChildren(element("p", "", `No explanation: ${described(error)}`));
    }
  });
  return element("li", "", line, why);
}

async function rankHere(signal) {
  status.textContent = "Loading the student …";
  student ??= loadStudent(new URL("page/student/", document.baseURI), {
    headers: authorization(key.value),
    credentials: "omit",
  });
  let loaded;
  try {
    loaded = await student;
  } catch (error) {
    student = undefined;
    if (error.status === undefined) throw error;
    const detail = "The service has no student for browsers, or refuses the access key";
    throw new ServiceError(`HTTP ${error.status}`, detail);
  }
  if (signal.aborted) return;
  const lines = titles.value.split("\n").filter((line) => line.trim());
  const { order, scores } = loaded.rank(query.value, lines);
  results.append(
    ...order.map((place, position) =>
      element("li", "", productLine("div", position + 1, lines[place], scores[place], scores[order[0]])),
    ),
  );
  finish(lines.length ? `${counted(lines.length)}, ranked in the browser, best first.` : "Enter titles to rank.");
}

function counted(number) {
  return number === 1 ? "1 product" : `${number} products`;
}
