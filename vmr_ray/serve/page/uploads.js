// Videos on their way into the index: dropped or chosen, sent, embedded, searchable.
import { call, upload } from "./api.js";

const $ = id => document.getElementById(id);
const STEPS = { queued: "waiting", embedding: "embedding", indexing: "indexing", done: "searchable" };

export function takeUploads(done) {
  const add = files => { for (const file of files) send(file, done); };
  $("file").onchange = () => { add($("file").files); $("file").value = ""; };
  $("add").onkeydown = event => { if (["Enter", " "].includes(event.key)) { event.preventDefault(); $("file").click(); } };
  let inside = 0; // dragenter and dragleave come for every element under the pointer
  const files = event => event.dataTransfer?.types.includes("Files");
  const overlay = shown => { $("drop").hidden = !shown; };
  addEventListener("dragenter", event => { if (files(event)) overlay(++inside > 0); });
  addEventListener("dragleave", event => { if (files(event)) overlay(--inside > 0); });
  addEventListener("dragover", event => { if (files(event)) event.preventDefault(); });
  addEventListener("drop", event => {
    if (!files(event)) return;
    event.preventDefault();
    overlay(inside = 0);
    add(event.dataTransfer.files);
  });
}

async function send(file, done) {
  const item = document.createElement("li"), name = document.createElement("span");
  const bar = document.createElement("progress"), told = document.createElement("span");
  const close = document.createElement("button");
  name.textContent = file.name;
  bar.setAttribute("aria-label", `Progress of ${file.name}`);
  close.textContent = "×";
  close.setAttribute("aria-label", `Hide ${file.name}`);
  close.onclick = () => item.remove();
  item.append(name, bar, told);
  $("uploads").append(item);
  try {
    let job = await upload(file, share => {
      bar.value = share;
      told.textContent = `${Math.round(100 * share)} % sent`;
    });
    bar.removeAttribute("value"); // how long the rest takes is not known
    while (!["done", "failed"].includes(job.status)) {
      told.textContent = STEPS[job.status];
      await new Promise(next => setTimeout(next, 1000));
      job = await call(`v1/jobs/${job.job_id}`);
    }
    if (job.status === "failed") throw new Error(job.error);
    told.textContent = STEPS.done;
    const button = document.createElement("button");
    button.textContent = "Search in it";
    button.onclick = () => { item.remove(); done(job.video_id, true); };
    item.append(button);
    done(job.video_id, false);
  } catch (error) {
    item.className = "failed";
    told.textContent = error.message;
  }
  bar.remove();
  item.append(close);
}
