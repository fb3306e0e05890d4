// The player: plays a moment and stops at its end. Below it are the video's moments and the saliency curve.
import { call, videoAddress } from "./api.js";

const $ = id => document.getElementById(id);
const video = $("video");
let shown = null; // { moment, hits, saliency, choose }
let file = null; // what is played: { address, begins, length, clip }
let stop = Infinity; // the player's second at which playing stops by itself
const LONGEST_CLIP = 600; // seconds

export function timecode(seconds) {
  const tenths = Math.round(10 * seconds), whole = Math.floor(tenths / 10);
  const parts = [Math.floor(whole / 60) % 60, whole % 60].map((n, i) => (i ? String(n).padStart(2, "0") : n));
  const hours = Math.floor(whole / 3600);
  return `${hours ? `${hours}:${String(parts[0]).padStart(2, "0")}` : parts[0]}:${parts[1]}.${tenths % 10}`;
}

// Plays `moment`. `hits` are all found moments of its video; a click on one of them calls `choose(moment)`.
export function play(moment, hits, saliency, choose, start = true) {
  shown = { moment, hits, saliency, choose };
  $("player").hidden = false;
  $("player").scrollIntoView({ block: "nearest" }); // on a phone it lies above the results
  $("name").textContent = moment.video_id;
  $("range").textContent = `${timecode(moment.start)} – ${timecode(moment.end)}`;
  const address = videoAddress(moment.video_id);
  if (file?.address !== address) load(address, start);
  else if (file.clip) playClip(start);
  else if (video.readyState) { draw(); seek(start); }
}

// Opens the file of another video. Its clock need not begin at 0, and it need not declare its length.
async function load(address, start) {
  const opened = file = { address, begins: 0, length: 0, clip: false };
  $("marks").replaceChildren();
  $("curve").replaceChildren();
  $("length").textContent = "";
  $("note").hidden = true;
  video.removeAttribute("src");
  video.load();
  const known = await call(`${address}/playback`).catch(() => ({ begins: 0, duration: 0, searched_stream: true }));
  if (file !== opened) return;
  file.begins = known.begins;
  file.length = known.duration;
  if (!known.searched_stream) return playClip(start);
  video.onloadedmetadata = () => {
    if (!video.videoWidth) return playClip(start); // its sound alone can be played
    // Browsers seek no further than the declared length, which does not include a late beginning in every format.
    const short = Number.isFinite(video.duration) && video.duration < file.begins + known.duration - 0.5;
    if (file.begins && short) return playClip(start);
    if (Number.isFinite(video.duration)) file.length = Math.max(file.length, video.duration - file.begins);
    draw();
    seek(start);
  };
  video.onerror = () => { if (video.getAttribute("src")) playClip(start); };
  video.src = `${address}/stream`;
}

// Plays the moment as a clip that the service cuts, because the browser does not show the file as it was searched.
function playClip(start) {
  const { moment } = shown, end = Math.min(moment.end, moment.start + LONGEST_CLIP);
  Object.assign(file, { begins: -moment.start, clip: true, length: Math.max(file.length, moment.end) });
  $("note").hidden = false;
  $("note").textContent = "This browser cannot play the video file, so only the moment is shown, as a clip.";
  video.onloadedmetadata = () => { draw(); seek(start); };
  video.onerror = () => {
    if (video.getAttribute("src")) $("note").textContent = "This video cannot be played here.";
  };
  video.src = `${file.address}/clip?start=${moment.start}&end=${end}`;
  draw();
}

export function close() {
  video.pause();
  video.removeAttribute("src");
  video.load();
  $("player").hidden = true;
  shown = file = null;
}

export function toggle() {
  if (!shown) return false;
  if (video.paused) video.play().catch(() => {}); else video.pause();
  return true;
}

// Goes to the start of the moment and, if `start`, plays it.
function seek(start) {
  stop = shown.moment.end + file.begins;
  // A frame begins between the milliseconds that the moment has.
  video.currentTime = shown.moment.start + file.begins + (file.clip ? 0 : 0.001);
  // A browser may refuse to play before the first click; the frame and the controls are shown all the same.
  if (start) video.play().catch(() => {});
}

$("again").onclick = () => seek(true);
// After a seek to another place, or Play at the end of the moment, the rest of the video is played.
video.onseeking = () => {
  if (!shown || !file) return;
  const second = video.currentTime - file.begins;
  if (second < shown.moment.start - 0.5 || second > shown.moment.end + 0.5) stop = Infinity;
};
video.onplay = () => { if (video.currentTime >= stop - 0.05) stop = Infinity; };

// Checked for every frame, because the player's own events come only four times a second.
requestAnimationFrame(function follow() {
  if (shown) {
    if (!video.paused && video.currentTime >= stop) {
      video.pause();
      video.currentTime = stop;
    }
    if (file?.length) $("head").style.left = `${100 * (video.currentTime - file.begins) / file.length}%`;
  }
  requestAnimationFrame(follow);
});

$("timeline").onclick = event => {
  if (event.target.closest("button") || !file?.length || file.clip) return;
  const box = $("timeline").getBoundingClientRect();
  stop = Infinity;
  video.currentTime = file.begins + file.length * (event.clientX - box.left) / box.width;
};

function draw() {
  const { length } = file;
  $("length").textContent = timecode(length);
  $("marks").replaceChildren(...shown.hits.map(hit => {
    const mark = document.createElement("button");
    mark.style.left = `${100 * hit.start / length}%`;
    mark.style.width = `${100 * (Math.min(hit.end, length) - hit.start) / length}%`;
    mark.title = `${timecode(hit.start)} – ${timecode(hit.end)}`;
    mark.setAttribute("aria-label", `Moment from ${timecode(hit.start)} to ${timecode(hit.end)}`);
    mark.setAttribute("aria-current", hit === shown.moment);
    mark.onclick = () => shown.choose(hit);
    return mark;
  }));
  $("curve").replaceChildren(...curvePieces(shown.saliency).map(points => {
    const line = document.createElementNS("http://www.w3.org/2000/svg", "polygon");
    const x = t => (1000 * t / length).toFixed(1);
    const tops = points.map(([t, value]) => `${x(t)},${(100 - 96 * value).toFixed(1)}`);
    line.setAttribute("points", [`${x(points[0][0])},100`, ...tops, `${x(points.at(-1)[0])},100`].join(" "));
    return line;
  }));
}

// The points of the curve in pieces without gaps: of a long video, search scores only some parts.
function curvePieces(saliency) {
  if (!saliency?.times.length) return [];
  const points = saliency.times.map((t, i) => [t, saliency.values[i]]);
  const steps = points.slice(1).map(([t], i) => t - points[i][0]).sort((a, b) => a - b);
  const median = steps[Math.floor(steps.length / 2)] ?? 1;
  const pieces = [[points[0]]];
  for (const point of points.slice(1)) {
    if (point[0] - pieces.at(-1).at(-1)[0] > 3 * median) pieces.push([]);
    pieces.at(-1).push(point);
  }
  return pieces;
}
