// Compiles the contracts beside this file with the npm package `solc` and writes one JSON for each.
//
//     node devstack/token/compile.mjs [OUTPUT FOLDER]      (default: artifacts/ beside this file)
//
// The same source gives the same bytes on every machine: the compiler's version is pinned by package.json
// and the pragma, the settings are fixed here, and no metadata hash is appended to the code.
// SETTLE_NODE_MODULES names another folder of npm packages than the checkout's.
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const modules = process.env.SETTLE_NODE_MODULES ?? join(here, "..", "..", "node_modules");
const solc = createRequire(join(modules, "solc", "package.json"))("solc");

const contracts = ["TestUSDC", "Multisend"];
const settings = {
  evmVersion: "cancun",
  optimizer: { enabled: true, runs: 200 },
  viaIR: false,
  metadata: { appendCBOR: false, bytecodeHash: "none" },
};

const sources = Object.fromEntries(
  contracts.map((name) => [`${name}.sol`, readFileSync(join(here, `${name}.sol`), "utf8")]),
);
const output = JSON.parse(
  solc.compile(
    JSON.stringify({
      language: "Solidity",
      sources: Object.fromEntries(Object.entries(sources).map(([file, content]) => [file, { content }])),
      settings: {
        ...settings,
        outputSelection: { "*": { "*": ["abi", "evm.bytecode.object", "evm.deployedBytecode.object"] } },
      },
    }),
  ),
);
for (const problem of output.errors ?? []) console.error(problem.formattedMessage);
if (output.errors?.length) process.exit(1); // warnings too

const target = process.argv[2] ?? join(here, "artifacts");
mkdirSync(target, { recursive: true });
for (const name of contracts) {
  const compiled = output.contracts[`${name}.sol`][name];
  const artifact = {
    contractName: name,
    compiler: solc.version(),
    settings,
    sourceSha256: createHash("sha256").update(sources[`${name}.sol`]).digest("hex"),
    abi: compiled.abi,
    bytecode: `0x${compiled.evm.bytecode.object}`,
    deployedBytecode: `0x${compiled.evm.deployedBytecode.object}`,
  };
  writeFileSync(join(target, `${name}.json`), `${JSON.stringify(artifact, null, 1)}\n`);
}
