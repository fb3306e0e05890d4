// The API key. The page asks the user for it when the service needs one, and keeps it until the tab is closed.
const $ = id => document.getElementById(id);

export const key = () => sessionStorage.getItem("vmr_key");

// The player and images cannot send a header, so they send the key as a cookie.
function keep(apiKey) {
  sessionStorage.setItem("vmr_key", apiKey);
  document.cookie = `vmr_key=${apiKey}; SameSite=Strict; Path=/`;
}

function prompt(message) {
  $("key-error").textContent = message;
  $("key").value = "";
  $("key-prompt").showModal();
  return new Promise(resolve => {
    $("key-form").onsubmit = () => { keep($("key").value.trim()); resolve(true); };
    $("key-prompt").oncancel = () => resolve(false);
  });
}

let pendingPrompt = null; // there is one prompt, however many requests were refused

// Asks the user for a key because the service refused `refusedKey` (null: no key). Returns whether to try again.
export async function askForKey(refusedKey) {
  if (refusedKey !== key()) return true; // the user has answered another request's prompt
  pendingPrompt ??= prompt(refusedKey ? "That key is not valid." : "").finally(() => { pendingPrompt = null; });
  return pendingPrompt;
}
