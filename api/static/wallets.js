// @ts-check
/**
 * Wallets in the browser (EIP-6963, EIP-1193), and payment by signature (EIP-3009), for the modules of all pages.
 *
 * What a wallet signs is sent to the server, whose relay broadcasts it: the payer needs no gas, and nothing is lost with the
 * page, because what was not sent is worth nothing to anyone.
 */

import { Problem, Stop, exchange, persist } from './client.js';

/** @typedef {{ request(call: { method: string, params?: unknown[] }): Promise<any>, on?: Function }} Provider */
/** @typedef {{ rdns: string, name: string, icon: string, provider: Provider }} Wallet */
/** @typedef {{ chainId: bigint, chainName: string, token: string, explorerTxUrl: string, publicRpcUrl: string }} Network */
/** @typedef {{ from?: string, to: string, value: string, validAfter: string, validBefore: string, nonce: string }} Message */
/** @typedef {{ resource: object, accepts: object[],
 *   authorization: { domain: { chainId: number | string, verifyingContract: string }, message: Message } }} Terms */
/** @typedef {(text: string) => void} SetStatus */

/** A limit of the day: by then the signature has expired. */
const RETRY_AFTER_MS_MAX = 60_000;
const BALANCE_OF_SELECTOR = '0x70a08231';

// -- which wallet -------------------------------------------------------------------------------------------------

/** By EIP-6963, which allows several in one browser. @type {Map<string, Wallet>} */
const announced = new Map();

/** The wallets of this browser; one from before EIP-6963 counts where no other is. @returns {Wallet[]} */
export function wallets() {
  const injected = /** @type {any} */ (window).ethereum;
  if (announced.size || !injected) return [...announced.values()];
  return [{ rdns: 'injected', name: 'Browser wallet', icon: '', provider: injected }];
}

/** What is done about each wallet that is found. */
let onFound = () => {};

/** @param {Event} event */
function noteWallet(event) {
  const { info, provider } = /** @type {CustomEvent} */ (event).detail ?? {};
  if (!info?.uuid || !provider || announced.has(info.uuid)) return;
  // Icons come from extensions: no address of theirs is loaded.
  const icon = String(info.icon ?? '').startsWith('data:image/') ? info.icon : '';
  announced.set(info.uuid, { rdns: String(info.rdns), name: String(info.name), icon, provider });
  onFound();
}

/** Ask for wallets; extensions announce theirs now or later. @param {() => void} act */
export function whenWalletsAreFound(act) {
  onFound = act;
  window.addEventListener('eip6963:announceProvider', noteWallet);
  window.dispatchEvent(new Event('eip6963:requestProvider'));
}

/** The wallet to use: the one that is there, or that the visitor chooses. `known` is one that was chosen before.
 * @param {Wallet} [known] @returns {Promise<Wallet>} */
export async function pickWallet(known) {
  const found = wallets();
  if (found.length === 0) {
    throw new Stop(
      'No wallet was found in this browser. Install one, or open this page in your wallet’s own browser, and reload.',
    );
  }
  return known ?? (found.length === 1 ? found[0] : letChoose(found));
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

// -- asking it ----------------------------------------------------------------------------------------------------

/** The wallet refused or failed. `code` is EIP-1193's. */
export class WalletRefusal extends Stop {
  /** @param {any} error */
  constructor(error) {
    // On telephones some wallets wrap their own error.
    const code = Number(error?.data?.originalError?.code ?? error?.code);
    const says = String(error?.message ?? error).slice(0, 200);
    super(
      code === 4001
        ? 'You declined the request in your wallet, and nothing was sent. You can try again.'
        : code === -32002
          ? 'Your wallet already shows a request. Open it and answer there, then try again.'
          : `Your wallet says: ${says}`,
    );
    this.code = code;
  }
}

/** @param {Wallet} wallet @param {string} method @param {unknown[]} [params] */
export async function ask(wallet, method, params) {
  try {
    return await wallet.provider.request(params ? { method, params } : { method });
  } catch (error) {
    throw new WalletRefusal(error);
  }
}

/** Let the wallet be on the network. @param {Wallet} wallet @param {Network} network */
export async function requireChain(wallet, network) {
  const chainIdHex = `0x${network.chainId.toString(16)}`;
  const isThere = async () => BigInt(await ask(wallet, 'eth_chainId')) === network.chainId;
  const switchTo = () => ask(wallet, 'wallet_switchEthereumChain', [{ chainId: chainIdHex }]);
  if (await isThere()) return;
  try {
    await switchTo();
  } catch (error) {
    if (!(error instanceof WalletRefusal) || error.code !== 4902) throw error;
    if (!network.publicRpcUrl) {
      throw new Stop(
        `Your wallet does not know ${network.chainName}. Add the network with chain id ${network.chainId} in its settings, ` +
          'then try again.',
      );
    }
    await ask(wallet, 'wallet_addEthereumChain', [
      {
        chainId: chainIdHex,
        chainName: network.chainName,
        rpcUrls: [network.publicRpcUrl],
        nativeCurrency: { name: 'Ether', symbol: 'ETH', decimals: 18 },
        ...(network.explorerTxUrl ? { blockExplorerUrls: [new URL(network.explorerTxUrl).origin] } : {}),
      },
    ]);
    // Wallets may add it without switching to it.
    if (!(await isThere())) await switchTo();
  }
  if (!(await isThere())) throw new Stop(`Switch your wallet to ${network.chainName}, then try again.`);
}

/** @param {string | bigint} value an address or a number */
export const word = (value) => BigInt(value).toString(16).padStart(64, '0');

/** What an address holds of the network's token, in raw units. @param {Wallet} wallet @param {Network} network
 * @param {string} address */
export async function readBalance(wallet, network, address) {
  const call = { to: network.token, data: BALANCE_OF_SELECTOR + word(address) };
  const answer = await ask(wallet, 'eth_call', [call, 'latest']);
  if (answer !== '0x') return BigInt(answer);
  throw new Stop(
    `There is no USDC contract on your wallet’s ${network.chainName}: it may be another network with the same id.`,
  );
}

// -- payment by signature -----------------------------------------------------------------------------------------

/**
 * Lets a wallet sign what `path` asks for, and sends it there. Returns what the server has answered: also where there is
 * nothing to be signed (any more). Throws `Stop`.
 * @param {Wallet} wallet @param {string} account who signs @param {Network} network
 * @param {{ path: string, body?: object, isAsShown: (message: Message) => boolean, inWords: (raw: bigint) => string }} payment
 * @param {SetStatus} setStatus
 */
export async function payBySignature(wallet, account, network, payment, setStatus) {
  const { path, body } = payment;
  const { status, content } = await exchange('POST', path, body);
  if (status !== 402) return content;
  /** @type {Terms} */
  const terms = content;
  const { domain, message } = terms.authorization;
  const isOurs =
    BigInt(domain.chainId) === network.chainId && domain.verifyingContract.toLowerCase() === network.token.toLowerCase();
  if (!isOurs || !payment.isAsShown(message)) throw new Stop('What is to be paid has changed. Load this page again.');
  const [amountRaw, balanceRaw] = [BigInt(message.value), await readBalance(wallet, network, account)];
  if (balanceRaw < amountRaw) {
    const [has, needs] = [balanceRaw, amountRaw].map(payment.inWords);
    throw new Stop(`Your wallet has ${has} on ${network.chainName}; this payment needs ${needs}.`);
  }
  setStatus(`Sign ${payment.inWords(amountRaw)} in your wallet. You pay no network fee.`);
  const signed = { from: account, ...message };
  const typed = JSON.stringify({ ...terms.authorization, message: signed });
  const signature = String(await ask(wallet, 'eth_signTypedData_v4', [account, typed]));
  setStatus('Signed. It is being sent…');
  const { resource, accepts } = terms;
  const header = { x402Version: 2, payload: { signature, authorization: signed }, accepted: accepts[0], resource };
  // The same signature gives the same answer: it is repeated until there is one.
  const send = () => exchange('POST', path, body, { 'PAYMENT-SIGNATURE': btoa(JSON.stringify(header)) });
  const answer = await persist(send, (why) => {
    if (why.retryAfterMs > RETRY_AFTER_MS_MAX) throw new Stop(why.message);
    setStatus(`Signed. ${why.message} It is tried again; keep this page open.`);
  });
  if (answer.status === 402) throw new Problem('The server asks for another signature. Load this page again.');
  return answer.content;
}
