// @ts-check
/**
 * The server, for the modules of all pages: one call with its time limit, what it refused and why, and calls repeated until
 * they are answered.
 */

const REQUEST_TIMEOUT_MS = 20_000;
const FIRST_WAIT_MS = 1_000;
const LONGEST_WAIT_MS = 30_000;

/** Ends the user's action; the message says why, and what to do. */
export class Stop extends Error {}

/** The server refused a request, or did not answer. */
export class Problem extends Stop {
  /**
   * @param {string} text
   * @param {{ status?: number, code?: string, isRepeatable?: boolean, retryAfterMs?: number }} [facts]
   */
  constructor(text, { status = 0, code = '', isRepeatable = true, retryAfterMs = 0 } = {}) {
    super(text);
    this.status = status;
    this.code = code;
    this.isRepeatable = isRepeatable;
    this.retryAfterMs = retryAfterMs;
  }

  get isSessionOver() {
    return this.code === 'UNAUTHENTICATED';
  }

  /** Worth a retry. A refusal without a code is not ours: a proxy sent it. */
  get isPassing() {
    return !this.code || this.isRepeatable;
  }
}

/** Offset of the server's clock: this device's may be wrong, and intents expire by the server's. */
export let clockDifferenceMs = 0;

/** @param {string} path @param {RequestInit} [options] */
export async function request(path, options) {
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
 * One call of the API, with the status of its answer: 402 is one, which says what to sign. Throws `Problem`.
 * @param {string} method @param {string} path @param {object} [body] @param {Record<string, string>} [headers]
 */
export async function exchange(method, path, body, headers = {}) {
  const response = await request(`/api/v1${path}`, {
    method,
    headers: { Accept: 'application/json', ...(body ? { 'Content-Type': 'application/json' } : {}), ...headers },
    body: body && JSON.stringify(body),
  });
  const { status } = response;
  if (response.ok || status === 402) return { status, content: status === 204 ? null : await response.json() };
  const problem = await response.json().catch(() => ({}));
  throw new Problem(problem.detail || problem.title || `The server answered ${status}.`, {
    status,
    code: problem.code,
    // A server of an earlier version does not send it.
    isRepeatable: problem.retryable ?? ([408, 429].includes(status) || status >= 500),
    retryAfterMs: (Number(response.headers.get('Retry-After')) || 0) * 1_000,
  });
}

/**
 * One call of the API: its answer. Throws `Problem`.
 * @param {string} method @param {string} path @param {object} [body] @param {Record<string, string>} [headers]
 */
export const call = async (method, path, body, headers) => (await exchange(method, path, body, headers)).content;

/** @param {number} ms @param {AbortSignal} [signal] */
export const pause = (ms, signal) =>
  new Promise((done) => {
    const timer = setTimeout(done, ms);
    signal?.addEventListener('abort', () => (clearTimeout(timer), done(undefined)), { once: true });
  });

/**
 * Retries an action until the server has answered, with a growing delay.
 * @template T @param {() => Promise<T>} action @param {(problem: Problem) => void} [onWait] @returns {Promise<T>}
 */
export async function persist(action, onWait) {
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
