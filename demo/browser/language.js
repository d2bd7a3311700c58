// What Streamlit says by itself is English, whatever the page speaks: <html lang>, by which screen readers and the choice of kanji shapes go, and the
// words of its own controls, of which few have a parameter. Those that the table knows are put into Japanese where they stand; in English they come
// back. Only the value of a text node or of aria-label changes, never a node, so that React finds all it has made.
const OWN = ["FileUploaderDropzone", "StatusWidget", "ConnectionStatus", "TooltipContent", "Dialog"].map((name) => `[data-testid="st${name}"]`)
  .concat(`[data-testid^="stMainMenu"]`, `[data-testid="InputInstructions"]`, `[role="listbox"]`).join(", ");

const texts = new WeakMap(), labels = new WeakMap(); // of a node: what Streamlit said, and what was put there
let pairs = [], watching = false;

function inJapanese(said) {
  for (const [pattern, japanese] of pairs) {
    const found = said.match(pattern);
    if (found) return found.slice(1).reduce((text, part) => text.replace("{}", () => part), japanese);
  }
  return said;
}

function renew(known, node, now, write) {
  const before = known.get(node), said = before && before.put === now ? before.said : now; // else Streamlit has written anew
  const put = inJapanese(said);
  if (put === said) known.delete(node); else known.set(node, { said, put });
  if (put !== now) write(put);
}

const renewText = (node) => renew(texts, node, node.nodeValue, (put) => { node.nodeValue = put; });
const renewLabel = (node) => renew(labels, node, node.getAttribute("aria-label"), (put) => { node.setAttribute("aria-label", put); });

function renewAll(root) {
  for (const own of root.closest(OWN) ? [root] : root.querySelectorAll(OWN)) {
    const walker = document.createTreeWalker(own, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) renewText(walker.currentNode);
  }
  for (const one of root.querySelectorAll("[aria-label]")) renewLabel(one);
  if (root.hasAttribute("aria-label")) renewLabel(root);
}

function changed({ type, target, addedNodes }) {
  if (type === "attributes") { if (target.hasAttribute("aria-label")) renewLabel(target); return; }
  for (const node of type === "characterData" ? [target] : addedNodes) {
    if (node.nodeType === Node.ELEMENT_NODE) renewAll(node);
    else if (node.nodeType === Node.TEXT_NODE && node.parentElement?.closest(OWN)) renewText(node);
  }
}

export default function ({ data }) {
  document.documentElement.lang = data.lang;
  pairs = data.words.map(([english, japanese]) => {
    const plain = english.split("{}").map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    return [new RegExp(`^${plain.join("(.+?)")}$`), japanese];
  });
  renewAll(document.body);
  if (watching) return;
  watching = true;
  // Streamlit takes a Ctrl+Enter in the middle of a conversion for its shortcut: an input method's Enter (229, also Safari's after it) is kept from it.
  window.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.isComposing || event.keyCode === 229)) event.stopImmediatePropagation();
  }, true);
  new MutationObserver((changes) => changes.forEach(changed))
    .observe(document.body, { subtree: true, childList: true, characterData: true, attributes: true, attributeFilter: ["aria-label"] });
}
