// Requests to the service. They throw an Error whose message can be shown to the user.
import { askForKey, key } from "./key.js";

const MAX_RETRIES = 5;
const pause = seconds => new Promise(resolve => setTimeout(resolve, 1000 * seconds));
const authorization = apiKey => (apiKey ? { authorization: `Bearer ${apiKey}` } : {});

// Sends a request and returns the JSON answer. If the service is busy and says when to come back, the request is
// repeated then; `onBusy` is called before each wait.
export async function call(address, { body, method = body ? "POST" : "GET", onBusy = () => {} } = {}) {
  for (let retries = 0; ;) {
    const apiKey = key();
    let response;
    try {
      response = await fetch(address, {
        method,
        headers: { ...authorization(apiKey), ...(body && { "content-type": "application/json" }) },
        body: body && JSON.stringify(body),
      });
    } catch {
      throw new Error("The service cannot be reached. Is it running, and are you connected?");
    }
    if (response.status === 401 && await askForKey(apiKey)) continue;
    const seconds = Number(response.headers.get("retry-after"));
    if ([429, 503].includes(response.status) && seconds && ++retries <= MAX_RETRIES) {
      onBusy();
      await pause(Math.min(seconds, 10));
      continue;
    }
    const answer = await response.json().catch(() => ({}));
    if (!response.ok) throw new Error(answer.error || `The service answered with an error (${response.status}).`);
    return answer;
  }
}

// Uploads a file and returns its job; `onProgress` is called with the fraction that was sent, 0 to 1.
export async function upload(file, onProgress) {
  for (;;) {
    const apiKey = key();
    const { status, answer } = await new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open("POST", `v1/videos?name=${encodeURIComponent(file.name)}`);
      request.setRequestHeader("content-type", file.type.startsWith("video/") ? file.type : "video/octet-stream");
      for (const [name, value] of Object.entries(authorization(apiKey))) request.setRequestHeader(name, value);
      request.responseType = "json";
      request.upload.onprogress = event => onProgress(event.loaded / event.total);
      request.onload = () => resolve({ status: request.status, answer: request.response ?? {} });
      request.onerror = () => reject(new Error("the service cannot be reached"));
      request.send(file);
    });
    if (status === 401 && await askForKey(apiKey)) continue;
    if (status !== 202) throw new Error(answer.error || `the service answered with an error (${status})`);
    return answer;
  }
}

export const videoAddress = id => `v1/videos/${id.split("/").map(encodeURIComponent).join("/")}`;
