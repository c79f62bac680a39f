// @ts-check
/**
 * What the server cannot do on the page of a charge: the visitor's time zone, the countdown, copying, live progress, and
 * payment by a wallet's signature.
 *
 * The server renders every state. An event only says that something has changed; then the page's parts are read again.
 */

import { Stop } from './client.js';
import { ask, payBySignature, pickWallet, requireChain, wallets, whenWalletsAreFound } from './wallets.js';

const COPIED_MS = 4000;
const POLL_MS = 20_000;
/** The parts that change. What has not changed stays, so that a screen reader is not interrupted. */
const PARTS = ['state', 'how'];

const main = /** @type {HTMLElement} */ (document.getElementById('page'));
/** Offset of the server's clock: this device's may be wrong, and the price runs out by the server's. */
const clockDifferenceMs = Date.parse(main.dataset.now ?? '') - Date.now() || 0;

const format = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'short' });

/** Let what was rendered do what only a script can. */
function enliven() {
  for (const time of document.querySelectorAll('time')) time.textContent = format.format(new Date(time.dateTime));
  for (const button of /** @type {NodeListOf<HTMLButtonElement>} */ (document.querySelectorAll('button.copy'))) {
    button.hidden = false;
  }
  offerToSign();
  showTimeLeft();
}

/** Only where there is a wallet: for all others the page has an address. */
function offerToSign() {
  const offer = document.getElementById('sign');
  if (offer) offer.hidden = wallets().length === 0;
}

/** The line may have been replaced in between. @param {string} text @param {'' | 'bad'} tone */
function saySigning(text, tone = '') {
  const says = document.getElementById('signing');
  if (!says) return;
  says.textContent = text;
  says.className = `says ${tone}`.trim();
}

let isSigning = false;
/** @param {HTMLButtonElement} button */
async function sign(button) {
  if (isSigning) return;
  isSigning = true;
  button.setAttribute('aria-busy', 'true');
  try {
    await paySigned(/** @type {HTMLElement} */ (document.getElementById('sign')).dataset);
    saySigning('');
  } catch (error) {
    saySigning(error instanceof Stop ? error.message : 'Something went wrong in this page. Load it again.', 'bad');
    if (!(error instanceof Stop)) throw error;
  } finally {
    isSigning = false;
    button.removeAttribute('aria-busy');
  }
  await refresh();
}

/** @param {DOMStringMap} shown what the page asks for */
async function paySigned(shown) {
  const network = {
    chainId: BigInt(main.dataset.chainId ?? 0),
    chainName: main.dataset.chainName ?? '',
    token: main.dataset.token ?? '',
    explorerTxUrl: main.dataset.explorerTxUrl ?? '',
    publicRpcUrl: main.dataset.publicRpcUrl ?? '',
  };
  const wallet = await pickWallet();
  saySigning('Continue in your wallet…');
  const [account] = await ask(wallet, 'eth_requestAccounts');
  if (!account) throw new Stop('Your wallet shows no account to this page.');
  await requireChain(wallet, network);
  const payment = {
    path: location.pathname.replace('/pay/', '/charges/') + '/pay',
    isAsShown: (/** @type {{ to: string, value: string }} */ message) =>
      message.to.toLowerCase() === shown.to?.toLowerCase() && BigInt(message.value) === BigInt(shown.raw ?? 0),
    inWords: (/** @type {bigint} */ raw) => `${inTokens(raw, Number(shown.decimals))} ${shown.symbol}`,
  };
  await payBySignature(wallet, account, network, payment, (words) => saySigning(words));
}

/** @param {bigint} raw @param {number} decimals */
function inTokens(raw, decimals) {
  const digits = raw.toString().padStart(decimals + 1, '0');
  const whole = digits.slice(0, digits.length - decimals);
  const rest = digits.slice(digits.length - decimals).replace(/0+$/, '');
  return rest ? `${whole}.${rest}` : whole;
}

/** @param {HTMLButtonElement} button */
async function copy(button) {
  const source = /** @type {HTMLElement} */ (document.getElementById(button.dataset.copies ?? ''));
  const says = /** @type {HTMLElement} */ (document.getElementById('copied'));
  try {
    // Without TLS, but on this machine, browsers have no clipboard for pages.
    await navigator.clipboard.writeText(source.textContent ?? '');
    says.textContent = button.dataset.copies === 'amount' ? 'The amount is copied.' : 'The address is copied.';
    setTimeout(() => (says.textContent = ''), COPIED_MS);
  } catch {
    getSelection()?.selectAllChildren(source);
    says.textContent = 'The browser does not allow it: it is selected, copy it yourself.';
  }
}

/** How long the price holds. When it has run out, the page is read again, once. */
function showTimeLeft() {
  const left = document.getElementById('left');
  const until = Date.parse(document.getElementById('price')?.dataset.until ?? '');
  if (!left || !until) return;
  const seconds = Math.floor((until - Date.now() - clockDifferenceMs) / 1000);
  if (seconds < 0) {
    left.parentElement?.remove();
    void refresh();
    return;
  }
  const minutes = Math.floor(seconds / 60);
  left.textContent = `${minutes}:${String(seconds % 60).padStart(2, '0')}`;
  /** @type {HTMLElement} */ (left.parentElement).hidden = false;
}

let isReading = false;
let isStale = false;

/** Read the page again, and put what has changed in its place. */
async function refresh() {
  isStale = true;
  if (isReading) return;
  isReading = true;
  try {
    while (isStale) {
      isStale = false;
      const response = await fetch(location.pathname, { signal: AbortSignal.timeout(POLL_MS) });
      if (!response.ok) return;
      replaceParts(new DOMParser().parseFromString(await response.text(), 'text/html'));
    }
  } catch {
    // The next event or poll asks again.
  } finally {
    isReading = false;
  }
}

/** @param {Document} page */
function replaceParts(page) {
  const chosen = /** @type {HTMLInputElement | null} */ (document.querySelector('input[name=code]:checked'))?.value;
  document.title = page.title;
  main.dataset.status = page.getElementById('page')?.dataset.status;
  for (const id of PARTS) {
    const shown = document.getElementById(id);
    const now = page.getElementById(id);
    if (!shown) continue;
    if (!now) shown.remove();
    else if (id === 'state') replaceState(shown, now);
    else if (fingerprint(shown) !== fingerprint(now)) shown.replaceWith(now);
  }
  if (chosen) {
    const again = /** @type {HTMLInputElement | null} */ (document.querySelector(`input[name=code][value=${chosen}]`));
    if (again) again.checked = true;
  }
  enliven();
  if (main.dataset.status === 'paid') stop();
}

/**
 * The words are put into the region that is there: a screen reader reads what changes in it, not a new one.
 * @param {HTMLElement} shown @param {HTMLElement} now
 */
function replaceState(shown, now) {
  const said = shown.querySelector('[role=status]');
  const says = now.querySelector('[role=status]');
  if (!said || !says) return;
  if (said.textContent !== says.textContent) said.replaceChildren(...says.childNodes);
  says.replaceWith(said);
  shown.className = now.className;
  shown.replaceChildren(...now.childNodes);
}

/** What is said about the way to pay, without what this module writes. @param {HTMLElement} part */
const fingerprint = (part) =>
  ['amount', 'address', 'price', 'sign'].map((id) => part.querySelector(`#${id}`)).map((found) =>
    found?.id === 'price' ? found.className : found?.textContent).join();

/** @type {EventSource | null} */
let events = null;
/** @type {ReturnType<typeof setInterval> | undefined} */
let polling;

function follow() {
  if (events || main.dataset.status === 'paid') return;
  events = new EventSource(main.dataset.events ?? '');
  events.addEventListener('status', () => void refresh());
  // Also while a stream is open: a proxy may hold its events back.
  polling = setInterval(refresh, POLL_MS);
}

function stop() {
  events?.close();
  events = null;
  clearInterval(polling);
}

document.addEventListener('click', ({ target }) => {
  const button = /** @type {HTMLElement} */ (target).closest('button.copy');
  if (button) void copy(/** @type {HTMLButtonElement} */ (button));
  const signing = /** @type {HTMLElement} */ (target).closest('#sign button');
  if (signing) void sign(/** @type {HTMLButtonElement} */ (signing));
});
document.addEventListener('visibilitychange', () => {
  // A browser opens few connections to a server: hidden tabs leave them to the visible one.
  if (document.hidden) stop();
  else {
    follow();
    void refresh();
  }
});
setInterval(showTimeLeft, 1000);
whenWalletsAreFound(offerToSign);
enliven();
follow();
