// @ts-check
/**
 * Signs in and pays with a browser wallet (EIP-6963, EIP-1193), and shows how payments get on.
 *
 * The server renders everything that is true by now, in words and numbers. This module asks the wallet, tells the
 * server which transaction was sent, moves a payment's progress, and fetches the page's parts anew when something has
 * changed. Money is BigInt or text here, never a float.
 */

/** @typedef {{ request(call: { method: string, params?: unknown[] }): Promise<any>, on?: Function }} Provider */
/** @typedef {{ rdns: string, name: string, icon: string, provider: Provider }} Wallet */
/** @typedef {{ attemptId: string, chainId: number, token: string, to: string, amountRaw: number,
 *   expiresAt: string }} Intent */
/** @typedef {{ key: string, intent?: Intent, isAsked?: boolean }} Offer */
/** @typedef {{ attemptId: string, status: string, clientStatus: string, errorCode?: string | null,
 *   amountUsdCents: number, purpose: string, confirmations?: number | null, confirmationsNeeded?: number | null
 * }} Attempt */
/** @typedef {'' | 'good' | 'bad'} Tone */
/** @typedef {(words: string, tone?: Tone) => void} Say */

const CREDITS_PER_CENT = 100_000n;
const RAW_PER_CENT = 10_000n;
const RAW_PER_USDC = 1_000_000n;
const TRANSFER_SELECTOR = '0xa9059cbb';
const BALANCE_OF_SELECTOR = '0x70a08231';

/** The server's last words on a hash; after any other answer it has to hear of it again. */
const HASH_REFUSED = ['ATTEMPT_NOT_FOUND', 'TX_HASH_IN_USE', 'TOO_MANY_REPLACEMENTS', 'INVALID_INPUT'];

const REQUEST_TIMEOUT_MS = 20_000;
const FIRST_WAIT_MS = 1_000;
const LONGEST_WAIT_MS = 30_000;
/** An intent this close to its end is not paid any more: the wallet takes its time, and the server decides. */
const INTENT_MARGIN_MS = 60_000;
/** A browser opens six connections to a server, for all its tabs together. Further payments are asked for. */
const STREAMS_MAX = 2;
const POLL_MS = 3_000;
/** Also while a stream is open: something between here and the server may hold its events back. */
const POLL_BESIDE_STREAM_MS = 20_000;

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

/** Ends what the person has begun; the message says why, and what to do. */
class Stop extends Error {}

// -- money ------------------------------------------------------------------------------------------------

/** Dollars as typed, exactly, in cents; null for what is no such amount. @param {string} text */
function parseCents(text) {
  // No commas: "1,500" is a thousand to some and one and a half to others.
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

// -- what this browser keeps --------------------------------------------------------------------------------

/** What the browser does not keep (some private windows, a full disk) lives as long as the page: keeping never fails,
 * because what is kept is the hash of money that has been sent. */
const kept = (() => {
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

/** What was kept as JSON; null where it is damaged. @param {string} name */
const keptJson = (name) => {
  try {
    return JSON.parse(kept.get(name) ?? 'null');
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

// -- the server -----------------------------------------------------------------------------------------------

/** The server has said no, or nothing. */
class Problem extends Stop {
  /**
   * @param {string} words
   * @param {{ status?: number, code?: string, isRepeatable?: boolean, retryAfterMs?: number }} [facts]
   */
  constructor(words, { status = 0, code = '', isRepeatable = true, retryAfterMs = 0 } = {}) {
    super(words);
    this.status = status;
    this.code = code;
    this.isRepeatable = isRepeatable;
    this.retryAfterMs = retryAfterMs;
  }

  get isSessionOver() {
    return this.code === 'UNAUTHENTICATED';
  }

  /** Worth another try. A refusal without a code is not ours: something between here and the server has said it. */
  get isPassing() {
    return !this.code || this.isRepeatable;
  }
}

/** Server's time minus ours: this device's clock may be wrong, and intents end by the server's. */
let clockDifferenceMs = 0;

/** @param {string} path @param {RequestInit} [options] */
async function request(path, options) {
  try {
    const response = await fetch(path, { signal: AbortSignal.timeout(REQUEST_TIMEOUT_MS), ...options });
    const serverTime = Date.parse(response.headers.get('Date') ?? '');
    if (serverTime) clockDifferenceMs = serverTime - Date.now();
    return response;
  } catch {
    throw new Problem('The server cannot be reached. Is this device online?');
  }
}

/**
 * One call of the API. Throws `Problem`.
 * @param {string} method @param {string} path @param {object} [body] @param {Record<string, string>} [headers]
 */
async function call(method, path, body, headers = {}) {
  const response = await request(`/api/v1${path}`, {
    method,
    headers: { Accept: 'application/json', ...(body ? { 'Content-Type': 'application/json' } : {}), ...headers },
    body: body && JSON.stringify(body),
  });
  if (response.ok) return response.status === 204 ? null : response.json();
  const problem = await response.json().catch(() => ({}));
  throw new Problem(problem.detail || problem.title || `The server has answered ${response.status}.`, {
    status: response.status,
    code: problem.code,
    // A server of an earlier version does not say it.
    isRepeatable: problem.retryable ?? ([408, 429].includes(response.status) || response.status >= 500),
    retryAfterMs: (Number(response.headers.get('Retry-After')) || 0) * 1_000,
  });
}

/** @param {number} ms @param {AbortSignal} [signal] */
const pause = (ms, signal) =>
  new Promise((done) => {
    const timer = setTimeout(done, ms);
    signal?.addEventListener('abort', () => (clearTimeout(timer), done(undefined)), { once: true });
  });

/**
 * Does it until the server has answered: one that is away or busy is asked again, ever more slowly.
 * @template T @param {() => Promise<T>} action @param {(problem: Problem) => void} [onWait] @returns {Promise<T>}
 */
async function persist(action, onWait) {
  for (let waitMs = FIRST_WAIT_MS; ; waitMs = Math.min(2 * waitMs, LONGEST_WAIT_MS)) {
    try {
      return await action();
    } catch (error) {
      if (!(error instanceof Problem) || !error.isPassing) throw error;
      onWait?.(error);
      await pause(Math.max(waitMs, error.retryAfterMs));
    }
  }
}

// -- wallets --------------------------------------------------------------------------------------------------

/** By EIP-6963, which lets several live in one browser. @type {Map<string, Wallet>} */
const announced = new Map();

/** The wallets of this browser; one from before EIP-6963 counts where no other is. @returns {Wallet[]} */
function wallets() {
  const injected = /** @type {any} */ (window).ethereum;
  if (announced.size || !injected) return [...announced.values()];
  return [{ rdns: 'injected', name: 'Browser wallet', icon: '', provider: injected }];
}

/** @param {Event} event */
function noteWallet(event) {
  const { info, provider } = /** @type {CustomEvent} */ (event).detail ?? {};
  if (!info?.uuid || !provider || announced.has(info.uuid)) return;
  // Icons come from extensions: no address of theirs is loaded.
  const icon = String(info.icon ?? '').startsWith('data:image/') ? info.icon : '';
  announced.set(info.uuid, { rdns: String(info.rdns), name: String(info.name), icon, provider });
  watchRememberedWallet();
}

const rememberedWallet = () => wallets().find(({ rdns }) => rdns === kept.get(WALLET));

/** The wallet to use. With `anew` the person chooses, unless there is but one. @param {{ anew: boolean }} options */
async function chooseWallet({ anew }) {
  const found = wallets();
  if (found.length === 0) {
    throw new Stop(
      'No wallet was found in this browser. Install one, or open this page in your wallet’s own browser, and reload.',
    );
  }
  const wallet = (anew ? null : rememberedWallet()) ?? (found.length === 1 ? found[0] : await letChoose(found));
  kept.set(WALLET, wallet.rdns);
  watchRememberedWallet();
  return wallet;
}

/** @param {Wallet[]} found @returns {Promise<Wallet>} */
function letChoose(found) {
  const dialog = /** @type {HTMLDialogElement} */ (document.getElementById('wallets'));
  dialog.querySelector('ul')?.replaceChildren(
    ...found.map((wallet, number) => {
      const button = document.createElement('button');
      button.value = String(number);
      if (wallet.icon) {
        const icon = Object.assign(document.createElement('img'), { src: wallet.icon, alt: '', width: 32, height: 32 });
        button.append(icon);
      }
      button.append(wallet.name);
      const item = document.createElement('li');
      item.append(button);
      return item;
    }),
  );
  return new Promise((resolve, reject) => {
    dialog.returnValue = '';
    dialog.onclose = () => {
      const wallet = dialog.returnValue === '' ? undefined : found[Number(dialog.returnValue)];
      wallet ? resolve(wallet) : reject(new Stop('No wallet was chosen.'));
    };
    dialog.showModal();
  });
}

/** The wallet did not do it. `code` is EIP-1193's. */
class WalletRefusal extends Stop {
  /** @param {any} error */
  constructor(error) {
    // On telephones some wallets wrap their own error.
    const code = Number(error?.data?.originalError?.code ?? error?.code);
    const says = String(error?.message ?? error).slice(0, 200);
    super(
      code === 4001
        ? 'You have declined in your wallet, and nothing was sent. You can try again.'
        : code === -32002
          ? 'Your wallet already shows a request. Open it and answer there, then try again.'
          : `Your wallet says: ${says}`,
    );
    this.code = code;
  }
}

/** @param {Wallet} wallet @param {string} method @param {unknown[]} [params] */
async function ask(wallet, method, params) {
  try {
    return await wallet.provider.request(params ? { method, params } : { method });
  } catch (error) {
    throw new WalletRefusal(error);
  }
}

/** @param {string} address */
const shortened = (address) => `${address.slice(0, 6)}…${address.slice(-4)}`;
/** @param {string[]} accounts */
const hasMine = (accounts) => accounts.some((account) => account.toLowerCase() === mine);

/** @type {Set<Wallet>} */
const watched = new Set();

/** Say so as soon as the wallet is on another account than the one that is signed in. */
function watchRememberedWallet() {
  const wallet = rememberedWallet();
  if (!wallet || !mine || watched.has(wallet)) return;
  watched.add(wallet);
  /** @param {string[]} accounts */
  const compare = (accounts) => {
    // Without any account the wallet is locked or not connected, and asks by itself when paying.
    const isOther = accounts.length > 0 && !hasMine(accounts);
    tell('account', isOther ? wrongAccountWords(accounts[0]) : '');
  };
  /** @param {string} chainId */
  const compareChain = (chainId) => {
    const words = `Your wallet is on another network. Paying will ask you to switch to ${site.chainName}.`;
    tell('chain', BigInt(chainId) === site.chainId ? '' : words);
  };
  ask(wallet, 'eth_accounts').then(compare, () => {});
  wallet.provider.on?.('accountsChanged', compare);
  wallet.provider.on?.('chainChanged', compareChain);
}

/** @param {string} account */
const wrongAccountWords = (account) =>
  `Your wallet is on ${shortened(account)}, but you are signed in as ${shortened(site.address)}. Choose that account ` +
  'in your wallet, or sign out and sign in with the other one.';

/** @param {Wallet} wallet */
async function requireMyAccount(wallet) {
  let accounts = await ask(wallet, 'eth_accounts');
  if (!hasMine(accounts)) accounts = await ask(wallet, 'eth_requestAccounts');
  if (hasMine(accounts)) return;
  // Where there are several wallets, the account may be in another one.
  kept.remove(WALLET);
  throw new Stop(accounts.length ? wrongAccountWords(accounts[0]) : 'Your wallet shows no account to this page.');
}

/** @param {Wallet} wallet */
async function requireChain(wallet) {
  const isThere = async () => BigInt(await ask(wallet, 'eth_chainId')) === site.chainId;
  const switchTo = () => ask(wallet, 'wallet_switchEthereumChain', [{ chainId: chainIdHex }]);
  if (await isThere()) return;
  try {
    await switchTo();
  } catch (error) {
    if (!(error instanceof WalletRefusal) || error.code !== 4902) throw error;
    if (!site.publicRpcUrl) {
      throw new Stop(
        `Your wallet does not know ${site.chainName}. Add the network with chain id ${site.chainId} in its settings, ` +
          'then try again.',
      );
    }
    await ask(wallet, 'wallet_addEthereumChain', [
      {
        chainId: chainIdHex,
        chainName: site.chainName,
        rpcUrls: [site.publicRpcUrl],
        nativeCurrency: { name: 'Ether', symbol: 'ETH', decimals: 18 },
        ...(site.explorerTxUrl ? { blockExplorerUrls: [new URL(site.explorerTxUrl).origin] } : {}),
      },
    ]);
    // Wallets may add it without going there.
    if (!(await isThere())) await switchTo();
  }
  if (!(await isThere())) throw new Stop(`Switch your wallet to ${site.chainName}, then try again.`);
}

/** @param {string | bigint} value an address or a number */
const word = (value) => BigInt(value).toString(16).padStart(64, '0');

/** @param {Wallet} wallet @param {bigint} amountRaw */
async function requireFunds(wallet, amountRaw) {
  const data = BALANCE_OF_SELECTOR + word(site.address);
  const answer = await ask(wallet, 'eth_call', [{ to: site.token, data }, 'latest']);
  if (answer === '0x') throw new Stop(`Your wallet’s ${site.chainName} has no USDC: is it another one with the same id?`);
  const balanceRaw = BigInt(answer);
  if (balanceRaw >= amountRaw) return;
  throw new Stop(
    `Your wallet has ${inUsdc(balanceRaw)} USDC on ${site.chainName}; this payment needs ${inUsdc(amountRaw)}.`,
  );
}

/**
 * What a failed sending meant: a wallet without gas says it in words for developers.
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

/** @param {Say} say */
async function signIn(say) {
  const wallet = await chooseWallet({ anew: true });
  say('Open your wallet and choose the account to use.');
  const [address] = await ask(wallet, 'eth_requestAccounts');
  if (!address) throw new Stop('Your wallet shows no account to this page.');
  // Some wallets write checksums of their own.
  const challenge = await call('POST', '/auth/challenge', { address: address.toLowerCase() });
  const { nonce, message } = challenge;
  const lifetimeMs = Date.parse(challenge.expiresAt) - Date.parse(challenge.issuedAt);
  const goodUntil = performance.now() + lifetimeMs - ON_CHAIN_ASK_MS;
  say('Sign the message in your wallet. It costs nothing.');
  const signature = await ask(wallet, 'personal_sign', [toHex(message), address]);
  await logIn({ nonce, signature }, goodUntil, say);
  location.reload();
}

/**
 * An empty signature is that of a wallet whose owners sign on the chain: it is good as soon as they have.
 * @param {{nonce: string, signature: string}} answer @param {number} goodUntil on the page's clock @param {Say} say
 */
async function logIn(answer, goodUntil, say) {
  for (;;) {
    try {
      return await call('POST', '/auth/login', answer);
    } catch (error) {
      const mayComeYet = answer.signature === '0x' && error instanceof Problem && error.status === 401;
      if (!mayComeYet) throw error;
      if (performance.now() > goodUntil) {
        throw new Stop('Your wallet has not signed on the chain in time. Sign in again when its owners are ready.');
      }
    }
    say('Your wallet signs on the chain. You are signed in as soon as its owners have; keep this page open.');
    await pause(ON_CHAIN_ASK_MS);
  }
}

/** Each tab says whose page it shows; one that shows another's is loaded anew. */
let isSending = false;
let isOutdated = false;
function followSession() {
  if (kept.get(SESSION) !== mine) kept.set(SESSION, mine);
  window.addEventListener('storage', ({ key, newValue }) => {
    if (key === SESSION && newValue !== mine) reloadWhenSafe();
  });
}

function reloadWhenSafe() {
  // Not while the wallet holds a payment: its hash would come to nobody.
  if (isSending) isOutdated = true;
  else location.reload();
}

function sessionIsOver() {
  tell('session', 'Your session is over. Sign in again and everything goes on; a payment that was sent is kept.', {
    label: 'Sign in again',
    act: signIn,
  });
}

// -- paying -------------------------------------------------------------------------------------------------------

/**
 * What is asked for: the same intent for the same terms, until it is paid or over.
 * @param {string} purpose @param {bigint} cents @returns {Promise<{ name: string, offer: Offer, intent: Intent }>}
 */
async function offerFor(purpose, cents) {
  const name = offerName(purpose, cents);
  /** @type {Offer | null} */
  const former = keptJson(name);
  if (former?.intent && (await isStillOpen(former.intent))) return { name, offer: former, intent: former.intent };
  // Kept before asking: where the answer was lost, the same key brings the same intent.
  const wasLost = former !== null && !former.intent;
  const key = wasLost ? former.key : crypto.getRandomValues(new Uint32Array(4)).join('-');
  const offer = { key, isAsked: former?.isAsked };
  kept.set(name, JSON.stringify(offer));
  const body = { amountUsdCents: Number(cents), purpose };
  /** @type {Intent} */
  const intent = await call('POST', '/payments/intents', body, { 'Idempotency-Key': key }).catch((error) => {
    if (error instanceof Problem && !error.isPassing && !error.isSessionOver) kept.remove(name);
    throw error;
  });
  if (wasLost && !hasTimeLeft(intent)) {
    kept.remove(name);
    return offerFor(purpose, cents);
  }
  kept.set(name, JSON.stringify({ ...offer, intent }));
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

/** @param {HTMLFormElement} form @param {Say} say */
async function pay(form, say) {
  const cents = chosenCents(form);
  if (typeof cents === 'string') {
    showWhatOneGets(form, { isFinal: true });
    /** @type {HTMLElement | null} */ (form.querySelector('input[type="text"]'))?.focus();
    return;
  }
  keepDraft(form);
  const amountRaw = cents * RAW_PER_CENT;
  const wallet = await chooseWallet({ anew: false });
  say('Look at your wallet…');
  await requireMyAccount(wallet);
  await requireChain(wallet);
  await requireFunds(wallet, amountRaw);
  const { name, offer, intent } = await offerFor(form.dataset.purpose ?? '', cents);
  const isAsAgreed =
    BigInt(intent.amountRaw) === amountRaw &&
    BigInt(intent.chainId) === site.chainId &&
    intent.token.toLowerCase() === site.token.toLowerCase();
  if (!isAsAgreed) throw new Stop('The terms of payment have changed. Load this page again.');
  if (offer.isAsked) {
    kept.set(name, JSON.stringify({ ...offer, isAsked: false }));
    void refresh();
    throw new Stop(
      'This page was closed while your wallet had this payment, and did not hear whether it was sent. If your wallet ' +
        'shows it, give its transaction hash under Payments below. If not, press the button again.',
    );
  }
  say(`Confirm ${inUsdc(amountRaw)} USDC in your wallet.`);
  const hash = await send(wallet, intent, name, offer);
  history.replaceState(null, '');
  await submit(intent.attemptId, hash, say);
}

/** Asks the wallet for the transfer; the hash is kept before anything else can happen. @param {Wallet} wallet
 * @param {Intent} intent @param {string} name @param {Offer} offer @returns {Promise<string>} */
async function send(wallet, intent, name, offer) {
  const data = TRANSFER_SELECTOR + word(intent.to) + word(BigInt(intent.amountRaw));
  isSending = true;
  kept.set(name, JSON.stringify({ ...offer, isAsked: true }));
  try {
    const hash = String(
      await ask(wallet, 'eth_sendTransaction', [
        { from: site.address, to: intent.token, data, value: '0x0', chainId: chainIdHex },
      ]),
    );
    kept.set(unsentName(intent.attemptId), hash);
    kept.remove(name);
    return hash;
  } catch (error) {
    kept.set(name, JSON.stringify(offer));
    throw await explained(wallet, error);
  } finally {
    isSending = false;
    if (isOutdated) location.reload();
  }
}

/** Tells the server a kept hash until it has it. @param {string} attemptId @param {string} hash @param {Say} say */
async function submit(attemptId, hash, say) {
  say('Sent. Telling the server…');
  /** @param {Problem} problem */
  const sayThatItWaits = (problem) => {
    const why = problem.status === 429 ? 'The server is busy' : 'The server does not answer yet';
    say(`Sent. ${why} and is told again; the transaction ${hash} is kept in this browser.`);
  };
  try {
    const path = `/payments/attempts/${attemptId}/submit`;
    /** @type {Attempt} */
    const attempt = await persist(() => call('POST', path, { txHash: hash }), sayThatItWaits);
    if (attempt.errorCode === 'INTENT_EXPIRED') {
      // The wallet took longer than the intent lived. The money has gone all the same, so another intent takes it.
      const { amountUsdCents, purpose } = attempt;
      const key = { 'Idempotency-Key': `instead-of-${attemptId}` };
      /** @type {Intent} */
      const other = await persist(
        () => call('POST', '/payments/intents', { amountUsdCents, purpose }, key),
        sayThatItWaits,
      );
      kept.set(unsentName(other.attemptId), hash);
      kept.remove(unsentName(attemptId));
      return submit(other.attemptId, hash, say);
    }
  } catch (error) {
    if (!(error instanceof Problem) || error.isSessionOver) throw error;
    if (HASH_REFUSED.includes(error.code)) kept.remove(unsentName(attemptId));
    throw new Stop(`${error.message} Reference ${attemptId}, transaction ${hash}.`);
  }
  kept.remove(unsentName(attemptId));
  say('Sent. It is listed under Payments, and credited as soon as the network has confirmed it.');
  awaited.add(attemptId);
  await refresh();
  document.getElementById(`payment-${attemptId}`)?.scrollIntoView({ block: 'nearest' });
}

/** Hashes that the server has not heard of, because a page was closed or a session ended. */
function submitUnsent() {
  for (const name of kept.names().filter((each) => each.startsWith(UNSENT))) {
    const [address, attemptId] = name.slice(UNSENT.length).split(':');
    const hash = kept.get(name) ?? '';
    /** @type {Say} */
    const say = (words) => tell('unsent', words);
    if (address === mine) void caught(say, () => submit(attemptId, hash, say));
    else tell(name, `A payment was sent from ${shortened(address)}. Sign in with that wallet to get it credited.`);
  }
}

// -- progress -----------------------------------------------------------------------------------------------------

/** Payments that are followed, and how to stop. @type {Map<string, AbortController>} */
const followed = new Map();

/** Payments whose end is to be said: those that were seen waiting. @type {Set<string>} */
const awaited = new Set();

/** Follow what waits; say what has ended. */
function attendPayments() {
  for (const card of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll('.payment'))) {
    const { attemptId = '', state = '' } = card.dataset;
    if (state === 'pending') {
      awaited.add(attemptId);
      if (!followed.has(attemptId) && !document.hidden) void follow(attemptId);
    } else if (state !== 'unpaid' && awaited.delete(attemptId)) {
      if (!isBusy) for (const form of payForms()) speaker(form)('');
      tell('unsent', '');
      const [what, how] = ['h3', '.badge'].map((selector) => card.querySelector(selector)?.textContent ?? '');
      tell('end', `${what}: ${how.toLowerCase()}.`, { tone: state === 'credited' ? 'good' : 'bad' });
    }
  }
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
    // One that broke off is opened again by the browser; one that was refused is closed for good.
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
  // What was stopped may be followed again; unless it is already.
  if (followed.get(attemptId) === stop) followed.delete(attemptId);
}

/** Move a payment's progress, or fetch the page's parts anew when it is over. @param {Attempt} attempt */
function show(attempt) {
  const card = document.getElementById(`payment-${attempt.attemptId}`);
  if (card?.dataset.state !== 'pending') return;
  if (attempt.clientStatus !== 'PENDING_VERIFICATION') {
    followed.get(attempt.attemptId)?.abort();
    void refresh();
    return;
  }
  const bar = card.querySelector('progress');
  const words = card.querySelector('.words');
  if (!bar || !words) return;
  bar.max = attempt.confirmationsNeeded || bar.max;
  bar.value = attempt.confirmations ?? 0;
  // None any more, where the chain has taken the block back.
  words.textContent = bar.value
    ? `${bar.value} of ${bar.max} confirmations`
    : 'Sent. Waiting for a block to include it.';
}

// -- the page -------------------------------------------------------------------------------------------------------

const LIVING_PARTS = ['balance', 'payments', 'ledger'];

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
  for (const id of LIVING_PARTS) {
    const part = fresh.getElementById(id);
    if (part) document.getElementById(id)?.replaceWith(part);
  }
  for (const { id, value } of typed) {
    const input = /** @type {HTMLInputElement | null} */ (document.getElementById(id));
    if (input) input.value = value;
  }
  for (const id of open) document.getElementById(id)?.setAttribute('open', '');
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  enliven();
}

/** What the server cannot know or do: the person's time zone, forms that need this module, progress. */
function enliven() {
  const format = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'short' });
  for (const time of document.querySelectorAll('time')) time.textContent = format.format(new Date(time.dateTime));
  for (const button of document.querySelectorAll('button:disabled')) button.removeAttribute('disabled');
  attendPayments();
}

/** @param {HTMLElement} place @returns {Say} */
const speaker = (place) => (words, tone = '') => {
  const line = /** @type {HTMLElement} */ (place.querySelector('.says'));
  line.textContent = words;
  line.className = `says ${tone}`;
};

/**
 * A notice above the page, one for each topic; without words it goes away.
 * @param {string} topic @param {string} words
 * @param {{ tone?: Tone, label?: string, act?: (say: Say) => Promise<void> }} [options]
 */
function tell(topic, words, { tone = '', label = '', act } = {}) {
  const id = `notice-${topic}`;
  const notice = document.getElementById(id) ?? Object.assign(document.createElement('div'), { id });
  if (!words) return notice.remove();
  const text = document.createElement('p');
  text.className = 'says';
  text.textContent = words;
  notice.className = `notice ${tone}`;
  notice.replaceChildren(text);
  if (act) {
    const button = Object.assign(document.createElement('button'), { type: 'button', textContent: label });
    button.addEventListener('click', () => void busy(button, speaker(notice), act));
    notice.append(button);
  }
  if (!notice.isConnected) document.getElementById('notices')?.append(notice);
}

/** Say what went wrong in words. @param {Say} say @param {() => Promise<void>} action */
async function caught(say, action) {
  try {
    await action();
  } catch (error) {
    if (error instanceof Problem && error.isSessionOver && mine) {
      say('');
      sessionIsOver();
    } else {
      say(error instanceof Stop ? error.message : 'Something went wrong in this page. Load it again.', 'bad');
      if (!(error instanceof Stop)) throw error;
    }
  }
}

/** One thing at a time, in all tabs: a double click must not pay twice. */
let isBusy = false;
/** @param {HTMLElement} button @param {Say} say @param {(say: Say) => Promise<void>} action */
async function busy(button, say, action) {
  if (isBusy) return;
  isBusy = true;
  say('');
  tell('end', '');
  // Not disabled: a disabled button loses the keyboard's focus.
  button.setAttribute('aria-busy', 'true');
  for (const other of document.querySelectorAll('button.primary')) other.setAttribute('aria-disabled', 'true');
  try {
    await caught(say, () => inNoOtherTab(() => action(say)));
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
    if (!lock) throw new Stop('Another tab of this page is busy with your wallet. Go on there, or close it.');
    await action();
  });
}

const payForms = () => /** @type {HTMLFormElement[]} */ ([...document.querySelectorAll('form.pay')]);

/** The amount in cents, or what is wrong with it. @param {HTMLFormElement} form */
function chosenCents(form) {
  const values = new FormData(form);
  const preset = String(values.get('preset'));
  const cents = preset === 'other' ? parseCents(String(values.get('other'))) : BigInt(preset);
  if (cents === null) return 'Write the amount in digits, such as 40 or 12.50.';
  const isAllowed = site.minCents <= cents && cents <= site.maxCents;
  return isAllowed ? cents : `The amount can be ${inUsd(site.minCents)} to ${inUsd(site.maxCents)} US dollars.`;
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

/** The choice survives signing in again. @param {HTMLFormElement} form */
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

/** @param {HTMLFormElement} form @param {Say} say */
async function submitTyped(form, say) {
  const hash = String(new FormData(form).get('hash')).trim();
  if (!/^0x[0-9a-f]{64}$/i.test(hash)) throw new Stop('A transaction hash is 0x and 64 digits from 0 to f.');
  const { attemptId = '' } = form.dataset;
  kept.set(unsentName(attemptId), hash);
  await submit(attemptId, hash, say);
}

function start() {
  window.addEventListener('eip6963:announceProvider', noteWallet);
  window.dispatchEvent(new Event('eip6963:requestProvider'));
  watchRememberedWallet();

  for (const form of payForms()) {
    restoreDraft(form);
    showWhatOneGets(form);
    form.addEventListener('input', () => showWhatOneGets(form));
  }
  const welcome = document.getElementById('welcome');
  welcome?.querySelector('button')?.addEventListener('click', ({ currentTarget }) => {
    void busy(/** @type {HTMLElement} */ (currentTarget), speaker(welcome), signIn);
  });
  document.addEventListener('submit', (event) => {
    const form = /** @type {HTMLFormElement} */ (event.target);
    const action = form.matches('.pay') ? pay : form.matches('.hash-form') ? submitTyped : null;
    if (!action) return;
    event.preventDefault();
    const button = /** @type {HTMLElement} */ (form.querySelector('button'));
    void busy(button, speaker(form), (say) => action(form, say));
  });
  window.addEventListener('beforeunload', (event) => isSending && event.preventDefault());
  window.addEventListener('storage', ({ key, newValue }) => {
    // Another tab has told the server of a payment.
    if (mine && key?.startsWith(UNSENT + mine) && newValue === null) void refresh();
  });
  document.addEventListener('visibilitychange', () => {
    // Tabs that nobody sees leave the few connections to the one that is seen.
    if (document.hidden) for (const stop of followed.values()) stop.abort();
    else if (mine) void refresh();
  });
  followSession();
  enliven();
  submitUnsent();
}

start();
