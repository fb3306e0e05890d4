// Requests to the service. What goes wrong is an Error whose message is for people.
import { askForKey, key } from "./key.js";

const pause = seconds => new Promise(done => setTimeout(done, 1000 * seconds));
const header = given => (given ? { authorization: `Bearer ${given}` } : {});

// A JSON answer. A busy service is asked again, as long as it says when; `waiting` hears of it.
export async function call(address, { body, method = body ? "POST" : "GET", waiting = () => {} } = {}) {
  for (let busy = 0; ;) {
    const given = key();
    let response;
    try {
      response = await fetch(address, {
        method,
        headers: { ...header(given), ...(body && { "content-type": "application/json" }) },
        body: body && JSON.stringify(body),
      });
    } catch {
      throw new Error("The service cannot be reached. Is it running, and are you connected?");
    }
    if (response.status === 401 && await askForKey(given)) continue;
    const retry = Number(response.headers.get("retry-after"));
    if ([429, 503].includes(response.status) && retry && ++busy <= 5) {
      waiting();
      await pause(Math.min(retry, 10));
      continue;
    }
    const answer = await response.json().catch(() => ({}));
    if (!response.ok) throw new Error(answer.error || `The service answered ${response.status}.`);
    return answer;
  }
}

// The job of an upload; `progress` hears the share that is sent, 0 to 1.
export async function upload(file, progress) {
  for (;;) {
    const given = key();
    const { status, answer } = await new Promise((done, failed) => {
      const request = new XMLHttpRequest();
      request.open("POST", `v1/videos?name=${encodeURIComponent(file.name)}`);
      request.setRequestHeader("content-type", file.type.startsWith("video/") ? file.type : "video/octet-stream");
      for (const [name, value] of Object.entries(header(given))) request.setRequestHeader(name, value);
      request.responseType = "json";
      request.upload.onprogress = event => progress(event.loaded / event.total);
      request.onload = () => done({ status: request.status, answer: request.response ?? {} });
      request.onerror = () => failed(new Error("the service cannot be reached"));
      request.send(file);
    });
    if (status === 401 && await askForKey(given)) continue;
    if (status !== 202) throw new Error(answer.error || `the service answered ${status}`);
    return answer;
  }
}

export const videoAddress = id => `v1/videos/${id.split("/").map(encodeURIComponent).join("/")}`;
