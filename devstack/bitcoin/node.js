// A Bitcoin regtest node in memory: `node node.js PORT`. Prints one line once it answers.
//
// bcoin's own JSON-RPC, and the calls that a test needs of a node: they begin with "dev". Its coins are mined to the key
// below, which is public: nothing of value may ever be sent to it.
'use strict';

process.env.NODE_BACKEND = 'js'; // else bcoin loads compiled code, which is not installed

const FullNode = require('bcoin/lib/node/fullnode');
const KeyRing = require('bcoin/lib/primitives/keyring');
const MTX = require('bcoin/lib/primitives/mtx');
const Script = require('bcoin/lib/script/script');
const Output = require('bcoin/lib/primitives/output');

const FEE_RATE = 10000;
const key = KeyRing.fromPrivate(Buffer.alloc(32, 1), true);
const port = Number(process.argv[2]);

const node = new FullNode({
  network: 'regtest',
  memory: true,
  listen: false,
  workers: false,
  httpHost: '127.0.0.1',
  httpPort: port,
  noAuth: true,
  indexTx: true,
  indexAddress: true,
  logFile: false,
  logConsole: true,
  logLevel: 'warning',
});

// devmine COUNT [WITH_TRANSACTIONS [SCRIPT_HEX]]: mines blocks with what waits in the memory pool, or empty, to the
// node's key or to a script.
async function mine([count, withTransactions = true, script = null]) {
  const to = script ? Script.fromRaw(Buffer.from(script, 'hex')).getAddress() : key.getAddress();
  const hashes = [];
  for (let mined = 0; mined < count; mined++) {
    const job = await node.miner.createJob(null, to);
    if (!withTransactions) {
      job.attempt.items.length = 0;
      job.attempt.fees = 0;
      job.refresh();
    }
    const block = await job.mineAsync();
    const entry = await node.chain.add(block);
    if (!entry) throw new Error('the block was not accepted');
    hashes.push(entry.rhash());
  }
  return hashes;
}

// devpay [[SCRIPT_HEX, SATOSHIS], ...]: pays from the node's key; gives back the transaction's bytes.
async function pay([outputs]) {
  const mtx = new MTX();
  for (const [script, value] of outputs)
    mtx.addOutput(new Output({script: Script.fromRaw(Buffer.from(script, 'hex')), value}));
  const coins = await node.getCoinsByAddress([key.getAddress()]);
  const unspent = coins.filter((coin) => !node.mempool.isSpent(coin.hash, coin.index));
  await mtx.fund(unspent, {rate: FEE_RATE, changeAddress: key.getAddress(), height: node.chain.height});
  mtx.sign(key);
  const tx = mtx.toTX();
  await node.mempool.addTX(tx);
  if (!node.mempool.has(tx.hash('hex'))) throw new Error('the memory pool refuses the transaction');
  return {txid: tx.txid(), hex: tx.toRaw().toString('hex')};
}

// devforget: empties the memory pool.
async function forget() {
  const count = node.mempool.map.size;
  await node.mempool.reset();
  return count;
}

(async () => {
  await node.ensure();
  await node.open();
  const calls = {devmine: mine, devpay: pay, devforget: forget, devready: async () => true};
  for (const [name, call] of Object.entries(calls)) node.rpc.add(name, call);
  console.log(`regtest on port ${port}`);
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
