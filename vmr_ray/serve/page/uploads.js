// Uploads: a video is dropped or chosen, sent, embedded and indexed.
import { call, upload } from "./api.js";

const $ = id => document.getElementById(id);
const STEPS = { queued: "waiting", embedding: "embedding", indexing: "indexing", done: "searchable" };

// `onDone(video_id, searchIt)` is called when a video is searchable, and again if the user wants to search it.
export function takeUploads(onDone) {
  const add = files => { for (const file of files) send(file, onDone); };
  $("file").onchange = () => { add($("file").files); $("file").value = ""; };
  $("add").onkeydown = event => { if (["Enter", " "].includes(event.key)) { event.preventDefault(); $("file").click(); } };
  let depth = 0; // dragenter and dragleave come for every element under the pointer
  const hasFiles = event => event.dataTransfer?.types.includes("Files");
  const overlay = shown => { $("drop").hidden = !shown; };
  addEventListener("dragenter", event => { if (hasFiles(event)) overlay(++depth > 0); });
  addEventListener("dragleave", event => { if (hasFiles(event)) overlay(--depth > 0); });
  addEventListener("dragover", event => { if (hasFiles(event)) event.preventDefault(); });
  addEventListener("drop", event => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    overlay(depth = 0);
    add(event.dataTransfer.files);
  });
}

async function send(file, onDone) {
  const item = document.createElement("li"), name = document.createElement("span");
  const bar = document.createElement("progress"), state = document.createElement("span");
  const close = document.createElement("button");
  name.textContent = file.name;
  bar.setAttribute("aria-label", `Progress of ${file.name}`);
  close.textContent = "×";
  close.setAttribute("aria-label", `Hide ${file.name}`);
  close.onclick = () => item.remove();
  item.append(name, bar, state);
  $("uploads").append(item);
  try {
    let job = await upload(file, fraction => {
      bar.value = fraction;
      state.textContent = `${Math.round(100 * fraction)} % sent`;
    });
    bar.removeAttribute("value"); // the rest takes an unknown time
    while (!["done", "failed"].includes(job.status)) {
      state.textContent = STEPS[job.status];
      await new Promise(resolve => setTimeout(resolve, 1000));
      job = await call(`v1/jobs/${job.job_id}`);
    }
    if (job.status === "failed") throw new Error(job.error);
    state.textContent = STEPS.done;
    const button = document.createElement("button");
    button.textContent = "Search in it";
    button.onclick = () => { item.remove(); onDone(job.video_id, true); };
    item.append(button);
    onDone(job.video_id, false);
  } catch (error) {
    item.className = "failed";
    state.textContent = error.message;
  }
  bar.remove();
  item.append(close);
}
