// @ts-check
/** What the server cannot do on the Usage page: the visitor's time zone, and copying a new key. */

const COPIED_MS = 4000;

const format = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'short' });
for (const time of document.querySelectorAll('time')) time.textContent = format.format(new Date(time.dateTime));

for (const button of /** @type {NodeListOf<HTMLButtonElement>} */ (document.querySelectorAll('button.copy'))) {
  const secret = /** @type {HTMLElement} */ (document.getElementById(button.dataset.copies ?? ''));
  const says = /** @type {HTMLElement} */ (button.closest('section')?.querySelector('.says'));
  // Without TLS, but on this machine, browsers have no clipboard for pages.
  button.hidden = !navigator.clipboard;
  button.addEventListener('click', async () => {
    try {
      await navigator.clipboard.writeText(secret.textContent ?? '');
      says.textContent = 'Copied.';
      setTimeout(() => (says.textContent = ''), COPIED_MS);
    } catch {
      getSelection()?.selectAllChildren(secret);
      says.textContent = 'The browser does not allow it: the key is selected, copy it yourself.';
    }
  });
}
