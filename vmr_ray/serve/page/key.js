// The API key: asked for when the service wants one, kept for the tab's session.
const $ = id => document.getElementById(id);

// A player and a picture can send no header, so they send the key as a cookie.
function keep(key) {
  sessionStorage.setItem("vmr_key", key);
  document.cookie = `vmr_key=${key}; SameSite=Strict; Path=/`;
}

function asked(told) {
  $("key-told").textContent = told;
  $("key").value = "";
  $("key-prompt").showModal();
  return new Promise(given => {
    $("key-form").onsubmit = () => { keep($("key").value.trim()); given(true); };
    $("key-prompt").oncancel = () => given(false);
  });
}

let asking = null; // one prompt, however many requests were refused

export async function ask(address, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem("vmr_key");
    const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
    const response = await fetch(address, { ...options, headers });
    if (response.status !== 401) return response;
    asking ??= asked(key ? "That key is not valid." : "").finally(() => { asking = null; });
    if (!await asking) return response;
  }
}
