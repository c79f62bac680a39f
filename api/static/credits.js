// @ts-check
/**
 * Signs in and pays with a browser wallet (EIP-6963, EIP-1193), and shows the progress of payments.
 *
 * The server renders the current state. This module submits the hash of a sent transaction, updates
 * a payment's progress, and reloads parts of the page when something has changed. Money is BigInt or text here, never a float.
 */

import { Problem, Stop, call, clockDifferenceMs, pause, persist, request } from './client.js';
import {
  WalletRefusal,
  ask,
  payBySignature,
  pickWallet,
  readBalance,
  requireChain,
  wallets,
  whenWalletsAreFound,
  word,
} from './wallets.js';

/** @typedef {import('./wallets.js').Wallet} Wallet */
/** @typedef {{ attemptId: string, chainId: number, token: string, to: string, amountRaw: number,
 *   expiresAt: string }} Intent */
/** @typedef {{ key: string, intent?: Intent, isAsked?: boolean }} Offer */
/** @typedef {{ attemptId: string, status: string, clientStatus: string, errorCode?: string | null,
 *   amountUsdCents: number, purpose: string, txHash?: string | null, confirmations?: number | null, confirmationsNeeded?: number | null
 * }} Attempt */
/** @typedef {'' | 'good' | 'bad'} Tone */
/** @typedef {(text: string, tone?: Tone) => void} SetStatus */

const CREDITS_PER_CENT = 100_000n;
const RAW_PER_CENT = 10_000n;
const RAW_PER_USDC = 1_000_000n;
const TRANSFER_SELECTOR = '0xa9059cbb';

/** Codes that refuse a hash for good; after any other answer it is submitted again. */
const HASH_REFUSED = ['ATTEMPT_NOT_FOUND', 'TX_HASH_IN_USE', 'TOO_MANY_REPLACEMENTS', 'INVALID_INPUT'];

/** An intent this close to its expiry is not paid any more: the wallet takes time, and the server's clock decides. */
const INTENT_MARGIN_MS = 60_000;
/** A browser opens six connections to a server, for all its tabs together. Further payments are polled. */
const STREAMS_MAX = 2;
const POLL_MS = 3_000;
/** Also while a stream is open: a proxy may hold its events back. */
const POLL_BESIDE_STREAM_MS = 20_000;
const DEPOSITS_POLL_MS = 5_000;

const main = /** @type {HTMLElement} */ (document.getElementById('page'));
const site = {
  address: main.dataset.address ?? '',
  chainId: BigInt(main.dataset.chainId ?? 0),
  chainName: main.dataset.chainName ?? '',
  token: main.dataset.token ?? '',
  minCents: BigInt(main.dataset.minCents ?? 0),
  maxCents: BigInt(main.dataset.maxCents ?? 0),
  explorerTxUrl: main.dataset.explorerTxUrl ?? '',
  publicRpcUrl: main.dataset.publicRpcUrl ?? '',
  name: document.querySelector('.brand')?.textContent?.trim() ?? '',
};
const chainIdHex = `0x${site.chainId.toString(16)}`;

// -- money ------------------------------------------------------------------------------------------------

/** Dollars as typed, exactly, in cents; null for what is no such amount. @param {string} text */
function parseCents(text) {
  // No commas: "1,500" is ambiguous between locales.
  const match = /^\s*\$?\s*(\d{1,12})(?:\.(\d{1,2}))?\s*$/.exec(text);
  return match ? BigInt(match[1]) * 100n + BigInt((match[2] ?? '').padEnd(2, '0')) : null;
}

/** @param {bigint} number */
const withThousands = (number) => number.toString().replace(/\B(?=(\d{3})+$)/g, ',');

/** @param {bigint} cents */
const inUsd = (cents) => `${withThousands(cents / 100n)}.${(cents % 100n).toString().padStart(2, '0')}`;

/** At least two decimals, and as many as there are. @param {bigint} raw */
function inUsdc(raw) {
  const decimals = (raw % RAW_PER_USDC).toString().padStart(6, '0').replace(/0{1,4}$/, '');
  return `${withThousands(raw / RAW_PER_USDC)}.${decimals}`;
}

// -- browser storage --------------------------------------------------------------------------------

/** What the browser does not store (some private windows, a full disk) lives as long as the page: storing never fails,
 * because it holds the hash of money that has been sent. */
const storage = (() => {
  /** @type {Map<string, string>} */
  const inPage = new Map();
  /** @template T @param {() => T} use @param {T} otherwise @returns {T} */
  const tolerant = (use, otherwise) => {
    try {
      return use();
    } catch {
      return otherwise;
    }
  };
  return {
    /** @param {string} name @returns {string | null} */
    get: (name) => inPage.get(name) ?? tolerant(() => localStorage.getItem(name), null),
    /** @param {string} name @param {string} value */
    set: (name, value) => {
      inPage.delete(name);
      if (!tolerant(() => (localStorage.setItem(name, value), true), false)) inPage.set(name, value);
    },
    /** @param {string} name */
    remove: (name) => {
      inPage.delete(name);
      tolerant(() => localStorage.removeItem(name), undefined);
    },
    names: () => [...inPage.keys(), ...tolerant(() => Object.keys(localStorage), [])],
  };
})();

/** A stored JSON value; null where it is damaged. @param {string} name */
const keptJson = (name) => {
  try {
    return JSON.parse(storage.get(name) ?? 'null');
  } catch {
    return null;
  }
};

const SESSION = 'settle:session';
const WALLET = 'settle:wallet';
const UNSENT = 'settle:unsent:';
const mine = site.address.toLowerCase();
/** @param {string} attemptId */
const unsentName = (attemptId) => `${UNSENT}${mine}:${attemptId}`;
/** @param {string} purpose @param {bigint} cents */
const offerName = (purpose, cents) => `settle:offer:${mine}:${purpose}:${cents}`;

// -- wallets --------------------------------------------------------------------------------------------------

const storedWallet = () => wallets().find(({ rdns }) => rdns === storage.get(WALLET));

/** The wallet to use. With `chooseAgain` the user chooses, if there are several. @param {{ chooseAgain: boolean }} options */
async function chooseWallet({ chooseAgain }) {
  const wallet = await pickWallet(chooseAgain ? undefined : storedWallet());
  storage.set(WALLET, wallet.rdns);
  watchRememberedWallet();
  return wallet;
}

/** @param {string} address */
const shortened = (address) => `${address.slice(0, 6)}…${address.slice(-4)}`;
/** @param {string[]} accounts */
const hasMine = (accounts) => accounts.some((account) => account.toLowerCase() === mine);

/** @type {Set<Wallet>} */
const watched = new Set();

/** Warn when the wallet switches to another account than the signed-in one. */
function watchRememberedWallet() {
  const wallet = storedWallet();
  if (!wallet || !mine || watched.has(wallet)) return;
  watched.add(wallet);
  /** @param {string[]} accounts */
  const compare = (accounts) => {
    // Without any account the wallet is locked or not connected, and asks by itself when paying.
    const isOther = accounts.length > 0 && !hasMine(accounts);
    setNotice('account', isOther ? wrongAccountText(accounts[0]) : '');
  };
  /** @param {string} chainId */
  const compareChain = (chainId) => {
    const text = `Your wallet is on another network. Paying will ask you to switch to ${site.chainName}.`;
    setNotice('chain', BigInt(chainId) === site.chainId ? '' : text);
  };
  ask(wallet, 'eth_accounts').then(compare, () => {});
  wallet.provider.on?.('accountsChanged', compare);
  wallet.provider.on?.('chainChanged', compareChain);
}

/** @param {string} account */
const wrongAccountText = (account) =>
  `Your wallet is on ${shortened(account)}, but you are signed in as ${shortened(site.address)}. Choose that account ` +
  'in your wallet, or sign out and sign in with the other one.';

/** @param {Wallet} wallet */
async function requireMyAccount(wallet) {
  let accounts = await ask(wallet, 'eth_accounts');
  if (!hasMine(accounts)) accounts = await ask(wallet, 'eth_requestAccounts');
  if (hasMine(accounts)) return;
  // Where there are several wallets, the account may be in another one.
  storage.remove(WALLET);
  throw new Stop(accounts.length ? wrongAccountText(accounts[0]) : 'Your wallet shows no account to this page.');
}

/** @param {Wallet} wallet @param {bigint} amountRaw */
async function requireFunds(wallet, amountRaw) {
  const balanceRaw = await readBalance(wallet, site, site.address);
  if (balanceRaw >= amountRaw) return;
  throw new Stop(
    `Your wallet has ${inUsdc(balanceRaw)} USDC on ${site.chainName}; this payment needs ${inUsdc(amountRaw)}.`,
  );
}

/**
 * The reason of a failed sending: wallets report missing gas in developers' terms.
 * @param {Wallet} wallet @param {unknown} error
 */
async function explained(wallet, error) {
  if (!(error instanceof WalletRefusal) || error.code === 4001 || error.code === -32002) return error;
  const wei = await ask(wallet, 'eth_getBalance', [site.address, 'latest']).catch(() => '0x1');
  if (BigInt(wei) > 0n) return error;
  return new Stop(`Your wallet has no ETH on ${site.chainName} to pay the network’s fee. Nothing was sent.`);
}

const ON_CHAIN_ASK_MS = 4_000;

// -- signing in -------------------------------------------------------------------------------------------------

/** @param {string} text */
const toHex = (text) =>
  `0x${[...new TextEncoder().encode(text)].map((byte) => byte.toString(16).padStart(2, '0')).join('')}`;

/** @param {SetStatus} setStatus */
async function signIn(setStatus) {
  const wallet = await chooseWallet({ chooseAgain: true });
  setStatus('Open your wallet and choose the account to use.');
  const [address] = await ask(wallet, 'eth_requestAccounts');
  if (!address) throw new Stop('Your wallet shows no account to this page.');
  // Some wallets write checksums of their own.
  const challenge = await call('POST', '/auth/challenge', { address: address.toLowerCase() });
  const { nonce, message } = challenge;
  const lifetimeMs = Date.parse(challenge.expiresAt) - Date.parse(challenge.issuedAt);
  const goodUntil = performance.now() + lifetimeMs - ON_CHAIN_ASK_MS;
  setStatus('Sign the message in your wallet. It costs nothing.');
  const signature = await ask(wallet, 'personal_sign', [toHex(message), address]);
  await logIn({ nonce, signature }, goodUntil, setStatus);
  location.reload();
}

/**
 * An empty signature is that of a wallet whose owners sign on the chain: it is valid once they have.
 * @param {{nonce: string, signature: string}} answer @param {number} goodUntil on the page's clock @param {SetStatus} setStatus
 */
async function logIn(answer, goodUntil, setStatus) {
  for (;;) {
    try {
      return await call('POST', '/auth/login', answer);
    } catch (error) {
      const mayComeYet = answer.signature === '0x' && error instanceof Problem && error.status === 401;
      if (!mayComeYet) throw error;
      if (performance.now() > goodUntil) {
        throw new Stop('Your wallet did not sign on the chain in time. Sign in again when its owners are ready.');
      }
    }
    setStatus('Your wallet signs on the chain. You are signed in once its owners have signed; keep this page open.');
    await pause(ON_CHAIN_ASK_MS);
  }
}

/** Each tab stores whose page it shows; one that shows another user's is reloaded. */
let isSending = false;
let isOutdated = false;
function followSession() {
  if (storage.get(SESSION) !== mine) storage.set(SESSION, mine);
  window.addEventListener('storage', ({ key, newValue }) => {
    if (key === SESSION && newValue !== mine) reloadWhenSafe();
  });
}

function reloadWhenSafe() {
  // Not while the wallet holds a payment: its hash would be lost.
  if (isSending) isOutdated = true;
  else location.reload();
}

function sessionIsOver() {
  setNotice('session', 'Your session has ended. Sign in again to continue; a payment that was sent is stored.', {
    label: 'Sign in again',
    act: signIn,
  });
}

// -- paying -------------------------------------------------------------------------------------------------------

/**
 * The intent of the form: the same one for the same terms, until it is paid or expired.
 * @param {string} purpose @param {bigint} cents @returns {Promise<{ name: string, offer: Offer, intent: Intent }>}
 */
async function offerFor(purpose, cents) {
  const name = offerName(purpose, cents);
  /** @type {Offer | null} */
  const former = keptJson(name);
  if (former?.intent && (await isStillOpen(former.intent))) return { name, offer: former, intent: former.intent };
  // Stored before the request: if the answer is lost, the same key returns the same intent.
  const wasLost = former !== null && !former.intent;
  const key = wasLost ? former.key : crypto.getRandomValues(new Uint32Array(4)).join('-');
  const offer = { key, isAsked: former?.isAsked };
  storage.set(name, JSON.stringify(offer));
  const body = { amountUsdCents: Number(cents), purpose };
  /** @type {Intent} */
  const intent = await call('POST', '/payments/intents', body, { 'Idempotency-Key': key }).catch((error) => {
    if (error instanceof Problem && !error.isPassing && !error.isSessionOver) storage.remove(name);
    throw error;
  });
  if (wasLost && !hasTimeLeft(intent)) {
    storage.remove(name);
    return offerFor(purpose, cents);
  }
  storage.set(name, JSON.stringify({ ...offer, intent }));
  return { name, offer: { ...offer, intent }, intent };
}

/** @param {Intent} intent */
const hasTimeLeft = (intent) => Date.parse(intent.expiresAt) - (Date.now() + clockDifferenceMs) > INTENT_MARGIN_MS;

/** @param {Intent} intent */
async function isStillOpen(intent) {
  if (!hasTimeLeft(intent)) return false;
  try {
    return (await call('GET', `/payments/attempts/${intent.attemptId}`)).status === 'CREATED_INTENT';
  } catch (error) {
    if (error instanceof Problem && error.status === 404) return false;
    throw error;
  }
}

/** What the form asks for; null where it first has to be corrected. @param {HTMLFormElement} form */
function agreedCents(form) {
  const cents = chosenCents(form);
  if (typeof cents === 'string') {
    showWhatOneGets(form, { isFinal: true });
    /** @type {HTMLElement | null} */ (form.querySelector('input[type="text"]'))?.focus();
    return null;
  }
  keepDraft(form);
  return cents;
}

/** Pay by signature (EIP-3009), with whatever account the wallet shows. @param {HTMLFormElement} form @param {SetStatus} setStatus */
async function sign(form, setStatus) {
  const cents = agreedCents(form);
  if (cents === null) return;
  const wallet = await chooseWallet({ chooseAgain: false });
  setStatus('Continue in your wallet…');
  const accounts = await ask(wallet, 'eth_requestAccounts');
  if (!accounts.length) throw new Stop('Your wallet shows no account to this page.');
  await requireChain(wallet, site);
  const payment = {
    path: '/payments/topups',
    body: { amountUsdCents: Number(cents), purpose: form.dataset.purpose },
    isAsShown: (/** @type {{ value: string }} */ message) => BigInt(message.value) === cents * RAW_PER_CENT,
    inWords: (/** @type {bigint} */ raw) => `${inUsdc(raw)} USDC`,
  };
  /** @type {Attempt} */
  const attempt = await payBySignature(wallet, hasMine(accounts) ? site.address : accounts[0], site, payment, setStatus);
  history.replaceState(null, '');
  setStatus('Signed. It is listed under Payments, and credited as soon as the network has confirmed it.');
  awaited.add(attempt.attemptId);
  await refresh();
  document.getElementById(`payment-${attempt.attemptId}`)?.scrollIntoView({ block: 'nearest' });
}

/** @param {HTMLFormElement} form @param {SetStatus} setStatus */
async function pay(form, setStatus) {
  const cents = agreedCents(form);
  if (cents === null) return;
  const amountRaw = cents * RAW_PER_CENT;
  const wallet = await chooseWallet({ chooseAgain: false });
  setStatus('Continue in your wallet…');
  await requireMyAccount(wallet);
  await requireChain(wallet, site);
  await requireFunds(wallet, amountRaw);
  const { name, offer, intent } = await offerFor(form.dataset.purpose ?? '', cents);
  const isAsAgreed =
    BigInt(intent.amountRaw) === amountRaw &&
    BigInt(intent.chainId) === site.chainId &&
    intent.token.toLowerCase() === site.token.toLowerCase();
  if (!isAsAgreed) throw new Stop('The terms of payment have changed. Load this page again.');
  if (offer.isAsked) {
    storage.set(name, JSON.stringify({ ...offer, isAsked: false }));
    void refresh();
    throw new Stop(
      'This page was closed while the payment was open in your wallet, so it is unknown whether it was sent. If your wallet ' +
        'shows it as sent, enter its transaction hash under Payments below. If not, press the button again.',
    );
  }
  setStatus(`Confirm ${inUsdc(amountRaw)} USDC in your wallet.`);
  const hash = await send(wallet, intent, name, offer);
  history.replaceState(null, '');
  await submit(intent.attemptId, hash, setStatus);
}

/** Asks the wallet for the transfer; the hash is stored before anything else can happen. @param {Wallet} wallet
 * @param {Intent} intent @param {string} name @param {Offer} offer @returns {Promise<string>} */
async function send(wallet, intent, name, offer) {
  const data = TRANSFER_SELECTOR + word(intent.to) + word(BigInt(intent.amountRaw));
  isSending = true;
  storage.set(name, JSON.stringify({ ...offer, isAsked: true }));
  try {
    const hash = String(
      await ask(wallet, 'eth_sendTransaction', [
        { from: site.address, to: intent.token, data, value: '0x0', chainId: chainIdHex },
      ]),
    );
    storage.set(unsentName(intent.attemptId), hash);
    storage.remove(name);
    return hash;
  } catch (error) {
    storage.set(name, JSON.stringify(offer));
    throw await explained(wallet, error);
  } finally {
    isSending = false;
    if (isOutdated) location.reload();
  }
}

/** Submits a stored hash until the server has it. @param {string} attemptId @param {string} hash @param {SetStatus} setStatus */
async function submit(attemptId, hash, setStatus) {
  setStatus('Sent. Submitting the transaction…');
  /** @param {Problem} problem */
  const sayThatItWaits = (problem) => {
    const why = problem.status === 429 ? 'The server is busy' : 'The server does not respond';
    setStatus(`Sent. ${why} and will be tried again; the transaction ${hash} is stored in this browser.`);
  };
  try {
    const path = `/payments/attempts/${attemptId}/submit`;
    /** @type {Attempt} */
    const attempt = await persist(() => call('POST', path, { txHash: hash }), sayThatItWaits);
    if (attempt.errorCode === 'INTENT_EXPIRED') {
      // The intent expired before the wallet sent the payment, so another intent takes it.
      const { amountUsdCents, purpose } = attempt;
      const key = { 'Idempotency-Key': `instead-of-${attemptId}` };
      /** @type {Intent} */
      const other = await persist(
        () => call('POST', '/payments/intents', { amountUsdCents, purpose }, key),
        sayThatItWaits,
      );
      storage.set(unsentName(other.attemptId), hash);
      storage.remove(unsentName(attemptId));
      return submit(other.attemptId, hash, setStatus);
    }
  } catch (error) {
    if (!(error instanceof Problem) || error.isSessionOver) throw error;
    if (HASH_REFUSED.includes(error.code)) storage.remove(unsentName(attemptId));
    throw new Stop(`${error.message} Reference ${attemptId}, transaction ${hash}.`);
  }
  storage.remove(unsentName(attemptId));
  setStatus('Sent. It is listed under Payments, and credited as soon as the network has confirmed it.');
  awaited.add(attemptId);
  await refresh();
  document.getElementById(`payment-${attemptId}`)?.scrollIntoView({ block: 'nearest' });
}

/** Hashes that were not submitted, because a page was closed or a session ended. */
function submitUnsent() {
  for (const name of storage.names().filter((each) => each.startsWith(UNSENT))) {
    const [address, attemptId] = name.slice(UNSENT.length).split(':');
    const hash = storage.get(name) ?? '';
    /** @type {SetStatus} */
    const setStatus = (text) => setNotice('unsent', text);
    if (address === mine) void caught(setStatus, () => submit(attemptId, hash, setStatus));
    else setNotice(name, `A payment was sent from ${shortened(address)}. Sign in with that wallet to get it credited.`);
  }
}

// -- progress -----------------------------------------------------------------------------------------------------

/** Payments that are followed, and how to stop each. @type {Map<string, AbortController>} */
const followed = new Map();

/** Payments whose end is to be reported: those that were seen waiting. @type {Set<string>} */
const awaited = new Set();

/** Follow waiting payments; report those that have ended. */
function attendPayments() {
  for (const card of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll('.payment'))) {
    const { attemptId = '', state = '' } = card.dataset;
    if (state === 'pending') {
      awaited.add(attemptId);
      if (!followed.has(attemptId) && !document.hidden) void follow(attemptId);
    } else if (state !== 'unpaid' && awaited.delete(attemptId)) {
      if (!isBusy) for (const form of payForms()) statusSetter(form)('');
      setNotice('unsent', '');
      const [what, how] = ['h3', '.badge'].map((selector) => card.querySelector(selector)?.textContent ?? '');
      setNotice('end', `${what}: ${how.toLowerCase()}.`, { tone: state === 'credited' ? 'good' : 'bad' });
    }
  }
}

/** Copy an address of one's own. @param {HTMLElement} button */
async function copyAddress(button) {
  const setStatus = statusSetter(/** @type {HTMLElement} */ (document.getElementById('exchange')));
  try {
    // Without TLS, but on this machine, browsers have no clipboard for pages.
    await navigator.clipboard.writeText(button.dataset.copies ?? '');
    setStatus('The address is copied.', 'good');
  } catch {
    getSelection()?.selectAllChildren(/** @type {HTMLElement} */ (button.parentElement?.querySelector('code')));
    setStatus('The browser does not allow it: the address is selected, copy it yourself.');
  }
}

let isWatching = false;
/** Nothing announces a deposit: while there is an address to send to, the page asks. */
async function watchAddresses() {
  if (isWatching || isBusy || document.hidden || !document.querySelector('.where-to')) return;
  isWatching = true;
  await refresh();
  isWatching = false;
}

/** @param {string} attemptId */
async function follow(attemptId) {
  const path = `/payments/attempts/${attemptId}`;
  const stop = new AbortController();
  const stream = followed.size < STREAMS_MAX ? new EventSource(`/api/v1${path}/events`) : null;
  followed.set(attemptId, stop);
  stop.signal.addEventListener('abort', () => stream?.close());
  if (stream) {
    const refused = new AbortController();
    stream.addEventListener('status', ({ data }) => show(JSON.parse(data)));
    // The browser reopens an interrupted stream; a refused one stays closed.
    stream.addEventListener('error', () => stream.readyState === EventSource.CLOSED && refused.abort());
    await pause(POLL_BESIDE_STREAM_MS, AbortSignal.any([stop.signal, refused.signal]));
  }
  while (!stop.signal.aborted) {
    let waitMs = stream?.readyState === EventSource.OPEN ? POLL_BESIDE_STREAM_MS : POLL_MS;
    try {
      show(await call('GET', path));
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      if (error.isSessionOver) sessionIsOver();
      if (!error.isPassing) stop.abort();
      waitMs = Math.max(waitMs, error.retryAfterMs);
    }
    await pause(waitMs, stop.signal);
  }
  // A stopped stream may be opened again, unless it is open already.
  if (followed.get(attemptId) === stop) followed.delete(attemptId);
}

/** Update a payment's progress, or reload the page's parts when it is final. @param {Attempt} attempt */
function show(attempt) {
  const card = document.getElementById(`payment-${attempt.attemptId}`);
  if (card?.dataset.state !== 'pending') return;
  if (attempt.clientStatus !== 'PENDING_VERIFICATION') {
    followed.get(attempt.attemptId)?.abort();
    void refresh();
    return;
  }
  const bar = card.querySelector('progress');
  const line = card.querySelector('.words');
  if (!bar || !line) return;
  bar.max = attempt.confirmationsNeeded || bar.max;
  bar.value = attempt.confirmations ?? 0;
  // None any more after a reorganisation.
  line.textContent = bar.value
    ? `${bar.value} of ${bar.max} confirmations`
    : attempt.txHash ? 'Sent. Waiting for a block to include it.' : 'Signed. Waiting to be sent.';
}

// -- the page -------------------------------------------------------------------------------------------------------

const LIVE_REGIONS = ['balance', 'payments', 'ledger'];
/** The regions as the server last rendered them. @type {Map<string, string>} */
const rendered = new Map();

/** One after the other: an older answer must not replace a newer one. */
let lastRefresh = Promise.resolve();
function refresh() {
  lastRefresh = lastRefresh.then(replaceParts, replaceParts);
  return lastRefresh;
}

async function replaceParts() {
  const html = await persist(async () => {
    const response = await request(location.pathname + location.search, { headers: { Accept: 'text/html' } });
    if (!response.ok) throw new Problem('The page cannot be loaded.');
    return response.text();
  });
  const fresh = new DOMParser().parseFromString(html, 'text/html');
  if (fresh.getElementById('page')?.dataset.address !== site.address) return reloadWhenSafe();
  const typed = /** @type {HTMLInputElement[]} */ ([...document.querySelectorAll('.hash-form input')]);
  const open = [...document.querySelectorAll('details[open]')].map(({ id }) => id);
  const focused = document.activeElement?.id;
  for (const id of LIVE_REGIONS) {
    const part = fresh.getElementById(id);
    // What has not changed stays: a replaced part loses what is selected in it, and is read aloud again.
    if (!part || rendered.get(id) === part.outerHTML) continue;
    rendered.set(id, part.outerHTML);
    document.getElementById(id)?.replaceWith(part);
  }
  for (const { id, value } of typed) {
    const input = /** @type {HTMLInputElement | null} */ (document.getElementById(id));
    if (input) input.value = value;
  }
  for (const id of open) document.getElementById(id)?.setAttribute('open', '');
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  enliven();
}

/** What the server cannot do: the user's time zone, forms that need this module, progress. */
function enliven() {
  const format = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'short' });
  for (const time of document.querySelectorAll('time')) time.textContent = format.format(new Date(time.dateTime));
  for (const button of document.querySelectorAll('button:disabled')) button.removeAttribute('disabled');
  for (const button of document.querySelectorAll('button.copy')) button.removeAttribute('hidden');
  attendPayments();
}

/** @param {HTMLElement} place @returns {SetStatus} */
const statusSetter = (place) => (text, tone = '') => {
  const line = /** @type {HTMLElement} */ (place.querySelector('.says'));
  line.textContent = text;
  line.className = `says ${tone}`;
};

/**
 * A notice above the page, one per topic; an empty text removes it.
 * @param {string} topic @param {string} text
 * @param {{ tone?: Tone, label?: string, act?: (setStatus: SetStatus) => Promise<void> }} [options]
 */
function setNotice(topic, text, { tone = '', label = '', act } = {}) {
  const id = `notice-${topic}`;
  const notice = document.getElementById(id) ?? Object.assign(document.createElement('div'), { id });
  if (!text) return notice.remove();
  const line = document.createElement('p');
  line.className = 'says';
  line.textContent = text;
  notice.className = `notice ${tone}`;
  notice.replaceChildren(line);
  if (act) {
    const button = Object.assign(document.createElement('button'), { type: 'button', textContent: label });
    button.addEventListener('click', () => void busy(button, statusSetter(notice), act));
    notice.append(button);
  }
  if (!notice.isConnected) document.getElementById('notices')?.append(notice);
}

/** Report an error to the user. @param {SetStatus} setStatus @param {() => Promise<void>} action */
async function caught(setStatus, action) {
  try {
    await action();
  } catch (error) {
    if (error instanceof Problem && error.isSessionOver && mine) {
      setStatus('');
      sessionIsOver();
    } else {
      setStatus(error instanceof Stop ? error.message : 'Something went wrong in this page. Load it again.', 'bad');
      if (!(error instanceof Stop)) throw error;
    }
  }
}

/** One thing at a time, in all tabs: a double click must not pay twice. */
let isBusy = false;
/** @param {HTMLElement} button @param {SetStatus} setStatus @param {(setStatus: SetStatus) => Promise<void>} action */
async function busy(button, setStatus, action) {
  if (isBusy) return;
  isBusy = true;
  setStatus('');
  setNotice('end', '');
  // Not disabled: a disabled button loses the keyboard's focus.
  button.setAttribute('aria-busy', 'true');
  for (const other of document.querySelectorAll('button.primary')) other.setAttribute('aria-disabled', 'true');
  try {
    await caught(setStatus, () => inNoOtherTab(() => action(setStatus)));
  } finally {
    isBusy = false;
    button.removeAttribute('aria-busy');
    for (const other of document.querySelectorAll('button.primary')) other.removeAttribute('aria-disabled');
  }
}

/** @param {() => Promise<void>} action */
async function inNoOtherTab(action) {
  // Browsers without locks, and pages without TLS, have only the guard of their own page.
  if (!navigator.locks) return action();
  await navigator.locks.request('settle:busy', { ifAvailable: true }, async (lock) => {
    if (!lock) throw new Stop('Another tab of this page is using your wallet. Continue there, or close it.');
    await action();
  });
}

const payForms = () => /** @type {HTMLFormElement[]} */ ([...document.querySelectorAll('form.pay')]);

/** The amount in cents, or what is wrong with it. @param {HTMLFormElement} form */
function chosenCents(form) {
  const values = new FormData(form);
  const preset = String(values.get('preset'));
  const cents = preset === 'other' ? parseCents(String(values.get('other'))) : BigInt(preset);
  if (cents === null) return 'Enter the amount in digits, such as 40 or 12.50.';
  const isAllowed = site.minCents <= cents && cents <= site.maxCents;
  return isAllowed ? cents : `The amount must be between ${inUsd(site.minCents)} and ${inUsd(site.maxCents)} US dollars.`;
}

/** @param {HTMLFormElement} form @param {{ isFinal?: boolean }} [options] */
function showWhatOneGets(form, { isFinal = false } = {}) {
  const chosen = chosenCents(form);
  const isDonation = form.dataset.purpose === 'system';
  const input = /** @type {HTMLInputElement} */ (form.elements.namedItem('other'));
  const output = /** @type {HTMLElement} */ (form.querySelector('output'));
  const button = /** @type {HTMLElement} */ (form.querySelector('button'));
  const isWrong = typeof chosen === 'string' && (isFinal || input.value !== '');
  input.setAttribute('aria-invalid', String(isWrong));
  output.classList.toggle('bad', isWrong);
  if (typeof chosen === 'string') {
    output.textContent = isWrong ? chosen : '';
    button.textContent = isDonation ? 'Donate' : 'Buy credits';
    return;
  }
  const paid = `${inUsd(chosen)} USDC`;
  output.textContent = isDonation
    ? `${paid} for ${site.name}, 0 credits for you`
    : `${withThousands(chosen * CREDITS_PER_CENT)} credits for ${paid}`;
  button.textContent = isDonation ? `Donate ${paid}` : `Pay ${paid}`;
}

/** Keep the choice across a sign-in. @param {HTMLFormElement} form */
function keepDraft(form) {
  const values = new FormData(form);
  const draft = { purpose: form.dataset.purpose, preset: values.get('preset'), other: values.get('other') };
  history.replaceState(draft, '');
}

/** @param {HTMLFormElement} form */
function restoreDraft(form) {
  const draft = history.state;
  if (draft?.purpose !== form.dataset.purpose) return;
  const preset = form.querySelector(`input[value="${draft.preset}"]`);
  if (preset) /** @type {HTMLInputElement} */ (preset).checked = true;
  /** @type {HTMLInputElement} */ (form.elements.namedItem('other')).value = draft.other;
}

/** @param {HTMLFormElement} form @param {SetStatus} setStatus */
async function submitTyped(form, setStatus) {
  const hash = String(new FormData(form).get('hash')).trim();
  if (!/^0x[0-9a-f]{64}$/i.test(hash)) throw new Stop('A transaction hash is 0x and 64 digits from 0 to f.');
  const { attemptId = '' } = form.dataset;
  storage.set(unsentName(attemptId), hash);
  await submit(attemptId, hash, setStatus);
}

function start() {
  whenWalletsAreFound(watchRememberedWallet);
  watchRememberedWallet();

  for (const form of payForms()) {
    restoreDraft(form);
    showWhatOneGets(form);
    form.addEventListener('input', () => showWhatOneGets(form));
  }
  const welcome = document.getElementById('welcome');
  welcome?.querySelector('button')?.addEventListener('click', ({ currentTarget }) => {
    void busy(/** @type {HTMLElement} */ (currentTarget), statusSetter(welcome), signIn);
  });
  document.addEventListener('submit', (event) => {
    const form = /** @type {HTMLFormElement} */ (event.target);
    const isSigned = /** @type {HTMLButtonElement | null} */ (event.submitter)?.value === 'signature';
    const action = form.matches('.pay') ? (isSigned ? sign : pay) : form.matches('.hash-form') ? submitTyped : null;
    if (!action) return;
    event.preventDefault();
    const button = /** @type {HTMLElement} */ (event.submitter ?? form.querySelector('button'));
    void busy(button, statusSetter(form), (setStatus) => action(form, setStatus));
  });
  window.addEventListener('beforeunload', (event) => isSending && event.preventDefault());
  window.addEventListener('storage', ({ key, newValue }) => {
    // Another tab has submitted a payment.
    if (mine && key?.startsWith(UNSENT + mine) && newValue === null) void refresh();
  });
  document.addEventListener('visibilitychange', () => {
    // Hidden tabs leave the few connections to the visible one.
    if (document.hidden) for (const stop of followed.values()) stop.abort();
    else if (mine) void refresh();
  });
  document.addEventListener('click', ({ target }) => {
    const button = /** @type {HTMLElement} */ (target).closest('button.copy');
    if (button) void copyAddress(/** @type {HTMLElement} */ (button));
  });
  setInterval(watchAddresses, DEPOSITS_POLL_MS);
  followSession();
  enliven();
  submitUnsent();
  // A hash submitted while this page was on its way is stored no more, and its payment shown as one nobody has paid.
  if (mine && document.querySelector('.payment[data-state=unpaid]')) void refresh();
}

start();
