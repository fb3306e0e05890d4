import { ask } from "./key.js";

const $ = id => document.getElementById(id);
const time = s => `${Math.floor(s / 60)}:${(s % 60).toFixed(1).padStart(4, "0")}`;
let found = [], videos = new Map(), stop = Infinity;

ask("v1/videos").then(r => { if (!r.ok) throw new Error(); return r.json(); }).then(({ videos: list }) => {
  for (const v of list) {
    videos.set(v.video_id, v);
    $("scope").add(new Option(v.video_id, v.video_id));
  }
  $("status").textContent = `${list.length} videos to search.`;
}).catch(() => { $("status").textContent = "The list of videos could not be loaded."; });

$("form").onsubmit = async event => {
  event.preventDefault();
  const scope = $("scope").value;
  const body = { query: $("query").value, top_k: 10, include: ["thumbnail"], ...(scope && { video_ids: [scope] }) };
  $("status").textContent = "Searching…";
  try {
    const response = await ask("v1/search", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error || response.statusText);
    found = answer.results;
    $("status").textContent = found.length ? `${found.length} moments in ${Math.round(answer.took_ms.total)} ms` : "Nothing found.";
    show();
  } catch (error) { $("status").textContent = error.message; }
};

function show() {
  $("results").replaceChildren(...found.map((m, i) => {
    const item = document.createElement("li"), button = document.createElement("button");
    const picture = document.createElement("img"), name = document.createElement("span"), where = document.createElement("small");
    name.textContent = m.video_id;
    where.textContent = `${time(m.start)} – ${time(m.end)} · score ${m.score.toFixed(2)}`;
    picture.src = m.thumbnail;
    picture.alt = "";
    picture.loading = "lazy";
    button.append(picture, name, where);
    button.onclick = () => play(i);
    item.append(button);
    return item;
  }));
}

function play(i) {
  const m = found[i], video = $("video"), length = videos.get(m.video_id)?.duration || 1;
  [...$("results").querySelectorAll("button")].forEach((b, k) => b.setAttribute("aria-current", k === i));
  $("player").hidden = false;
  $("bar").replaceChildren(...found.filter(o => o.video_id === m.video_id).map(o => {
    const mark = document.createElement("i");
    mark.style.left = `${100 * o.start / length}%`;
    mark.style.width = `${100 * (o.end - o.start) / length}%`;
    if (o === m) mark.className = "now";
    return mark;
  }));
  stop = m.end;
  video.src = "v1/videos/" + m.video_id.split("/").map(encodeURIComponent).join("/") + "/stream";
  video.onloadedmetadata = () => { video.currentTime = m.start; video.play(); };
  video.ontimeupdate = () => { if (video.currentTime >= stop) { video.pause(); stop = Infinity; } };
}
