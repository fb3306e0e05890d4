// The page: the search, its results, the address that holds both, the keyboard.
import { call, videoAddress } from "./api.js";
import { close, play, timecode, toggle } from "./player.js";
import { takeUploads } from "./uploads.js";

const PAGE = 12, MAX_RESULTS = 100; // of one answer
const $ = id => document.getElementById(id);
let shown = null; // what is shown: { query, scope, request, token of the next page }
let moments = [], curves = {}, chosen = null;
let probable = 0; // how many of the moments are probable enough; the rest are shown pale
let searches = 0; // how many were started: only the results of the last one are shown

// -- the search ------------------------------------------------------------------------------------

// With `more`, the next page of what is shown; with `all`, the moments too that are not probable enough.
async function search(query, scope, { more = false, all = false } = {}) {
  const number = ++searches;
  const request = more ? shown.request : {
    query, top_k: all ? moments.length + PAGE : PAGE, include: ["saliency", "thumbnail"],
    ...(scope && { video_ids: [scope] }), ...(all && { min_probability: 0 }),
  };
  const before = more || all ? moments.length : 0;
  $("start").hidden = true;
  $("more").hidden = true;
  $("status").className = "";
  $("status").textContent = "Searching…";
  $("results").ariaBusy = true;
  try {
    const answer = await call("v1/search", {
      body: more ? { ...request, page_token: shown.token } : request,
      onBusy: () => { $("status").textContent = "The service is busy; trying again…"; },
    });
    if (number !== searches) return;
    shown = { query, scope, request, token: answer.next_page_token };
    moments = more ? [...moments, ...answer.results] : answer.found ? answer.results : answer.nearest;
    curves = { ...(more && curves), ...answer.saliency };
    if (request.min_probability !== 0) probable = answer.found ? moments.length : 0;
    const count = `${moments.length} moment${moments.length === 1 ? "" : "s"}`;
    $("status").textContent = answer.found
      ? `${count} in ${Math.round(answer.took_ms.total)} ms`
      : moments.length
        ? "Nothing found. Nearest anyway:"
        : "No moments found. Try other words, or search all videos.";
    const mayBeMore = answer.found && answer.probability !== null && request.min_probability !== 0
      && moments.length + PAGE <= MAX_RESULTS;
    $("more").hidden = !answer.next_page_token && !mayBeMore;
    $("more").textContent = answer.next_page_token ? "More moments" : "Less probable moments";
    show(before);
  } catch (error) {
    if (number !== searches) return;
    moments = before ? moments : [];
    show(0);
    $("status").className = "failed";
    $("status").textContent = error.message;
  } finally {
    $("results").ariaBusy = false;
  }
}

// Draws the cards, and focuses number `first` unless it is 0.
function show(first) {
  $("results").replaceChildren(...moments.map(card));
  moments.forEach((_, i) => $("results").children[i].classList.toggle("improbable", i >= probable));
  if (first) $("results").children[first]?.querySelector("button").focus();
}

function card(moment) {
  const item = document.createElement("li"), button = document.createElement("button");
  const picture = document.createElement("img"), name = document.createElement("strong");
  const where = document.createElement("span"), score = document.createElement("small");
  name.textContent = moment.video_id.split("/").at(-1); // without its folders, which may be long
  name.title = moment.video_id;
  where.textContent = `${timecode(moment.start)} – ${timecode(moment.end)}`;
  score.textContent = moment.probability === null ? `score ${moment.score.toFixed(1)}` : percent(moment.probability);
  score.title = `score ${moment.score.toFixed(1)}`;
  picture.src = moment.thumbnail;
  picture.alt = "";
  picture.loading = "lazy";
  picture.onerror = () => picture.classList.add("none");
  button.append(picture, name, where, score);
  button.setAttribute("aria-current", moment === chosen);
  button.onclick = () => choose(moment);
  item.append(button);
  return item;
}

// Neither certainty is ever claimed.
function percent(probability) {
  return `${Math.min(Math.max(Math.round(100 * probability), 1), 99)} %`;
}

function choose(moment, { start = true, remember = true } = {}) {
  chosen = moment;
  [...$("results").children].forEach((item, i) => item.firstChild.setAttribute("aria-current", moments[i] === moment));
  const hits = moments.filter(other => other.video_id === moment.video_id);
  play(moment, hits.includes(moment) ? hits : [...hits, moment], curves[moment.video_id], choose, start);
  if (remember) address({ q: shown?.query, in: shown?.scope, v: moment.video_id, t: moment.start.toFixed(2) });
}

$("form").onsubmit = event => {
  event.preventDefault();
  const query = $("query").value.trim(), scope = $("scope").value.trim();
  if (!query) return;
  leave();
  address({ q: query, in: scope });
  $("query").blur(); // so that the arrow keys move through the results
  search(query, scope);
};

$("more").onclick = () => search(shown.query, shown.scope, shown.token ? { more: true } : { all: true });

function leave() {
  chosen = null;
  close();
}

// -- the address: ?q= the sentence, in= the video searched, v= and t= the video and second shown ------

function address(parts) {
  const parameters = new URLSearchParams(Object.entries(parts).filter(([, value]) => value));
  const next = `${location.pathname}${parameters.size ? `?${parameters}` : ""}`;
  if (next !== location.pathname + location.search) history.pushState(null, "", next);
}

async function restore() {
  const parameters = new URLSearchParams(location.search);
  const query = parameters.get("q") ?? "", scope = parameters.get("in") ?? "";
  $("query").value = query;
  $("scope").value = scope;
  if (!query) {
    searches++;
    shown = null;
    moments = [];
    show(0);
    $("start").hidden = false;
    $("more").hidden = true;
    listVideos();
  } else if (shown?.query !== query || shown.scope !== scope) await search(query, scope);
  const video = parameters.get("v"), second = Number(parameters.get("t") ?? 0);
  if (!video) return leave();
  const same = moments.find(m => m.video_id === video && Math.abs(m.start - second) < 0.05);
  if (same) return choose(same, { remember: false });
  try { // the moment of the link is not among the results
    const { duration } = await call(videoAddress(video));
    choose({ video_id: video, start: second, end: duration }, { remember: false });
  } catch (error) {
    $("status").className = "failed";
    $("status").textContent = error.message;
  }
}

addEventListener("popstate", restore);

// -- the keyboard ------------------------------------------------------------------------------------

addEventListener("keydown", event => {
  const typing = event.target.matches("input, textarea, select") || $("key-prompt").open;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/" && !typing) {
    event.preventDefault();
    $("query").focus();
    $("query").select();
  } else if (event.key === "Escape" && typing && !$("key-prompt").open) {
    event.target.blur();
  } else if (["ArrowDown", "ArrowUp"].includes(event.key) && !event.target.matches("video, #scope") && moments.length) {
    const cards = [...$("results").querySelectorAll("button")], at = cards.indexOf(document.activeElement);
    const next = at < 0 ? (event.key === "ArrowDown" ? 0 : cards.length - 1) : at + (event.key === "ArrowDown" ? 1 : -1);
    event.preventDefault();
    if (next < 0) $("query").focus(); else cards[Math.min(next, cards.length - 1)].focus();
  } else if (event.key === " " && !typing && !event.target.matches("video, #add") && toggle()) {
    event.preventDefault(); // on a card too, which Enter plays
  }
});

// -- the videos --------------------------------------------------------------------------------------

async function listVideos() {
  try {
    const { videos, next_page_token: more } = await call("v1/videos?limit=1000");
    $("videos").replaceChildren(...videos.map(v => new Option(v.video_id)));
    if ($("start").hidden) return; // the status shows a search
    $("status").className = "";
    $("status").textContent = videos.length
      ? `${more ? "More than 1000" : videos.length} video${videos.length === 1 ? "" : "s"} to search.`
      : "There are no videos yet: add one.";
  } catch (error) {
    if ($("start").hidden) return;
    $("status").className = "failed";
    $("status").textContent = error.message;
  }
}

takeUploads((video, searchIt) => {
  listVideos();
  if (!searchIt) return;
  $("scope").value = video;
  $("query").focus();
});
if (new URLSearchParams(location.search).get("q")) listVideos(); // without a query, restore() does
restore();
