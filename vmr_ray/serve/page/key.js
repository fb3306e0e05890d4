// The API key: asked for when the service wants one, kept for the tab's session.
const $ = id => document.getElementById(id);

export const key = () => sessionStorage.getItem("vmr_key");

// A player and a picture can send no header, so they send the key as a cookie.
function keep(given) {
  sessionStorage.setItem("vmr_key", given);
  document.cookie = `vmr_key=${given}; SameSite=Strict; Path=/`;
}

function prompted(told) {
  $("key-told").textContent = told;
  $("key").value = "";
  $("key-prompt").showModal();
  return new Promise(given => {
    $("key-form").onsubmit = () => { keep($("key").value.trim()); given(true); };
    $("key-prompt").oncancel = () => given(false);
  });
}

let asking = null; // one prompt, however many requests were refused

// Whether there is another key to try, after `refused` (or no key at all) was not taken.
export async function askForKey(refused) {
  if (refused !== key()) return true; // another request has asked meanwhile
  asking ??= prompted(refused ? "That key is not valid." : "").finally(() => { asking = null; });
  return asking;
}
