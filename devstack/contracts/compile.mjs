// Compiles every contract of the checkout with the npm package `solc` and writes one JSON for each.
//
//     node devstack/contracts/compile.mjs [OUTPUT FOLDER]      (default: the checkout, artifacts/ beside the sources)
//
// The same source gives the same bytes on every machine: the compiler's version is pinned by package.json
// and the pragma, the settings are fixed here, and no metadata hash is appended to the code.
// SETTLE_NODE_MODULES names another folder of npm packages than the checkout's.
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..", "..");
const modules = process.env.SETTLE_NODE_MODULES ?? join(root, "node_modules");
const solc = createRequire(join(modules, "solc", "package.json"))("solc");

// What the product ships, and what local chains hold. Each file has one contract, of the file's name.
const folders = ["chain/contracts", "devstack/contracts"];
const settings = {
  evmVersion: "cancun",
  optimizer: { enabled: true, runs: 200 },
  viaIR: false,
  metadata: { appendCBOR: false, bytecodeHash: "none" },
};

for (const folder of folders) {
  const files = readdirSync(join(root, folder)).filter((file) => file.endsWith(".sol"));
  const sources = Object.fromEntries(files.map((file) => [file, readFileSync(join(root, folder, file), "utf8")]));
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

  const target = join(process.argv[2] ?? root, folder, "artifacts");
  mkdirSync(target, { recursive: true });
  for (const file of files) {
    const name = file.slice(0, -".sol".length);
    const compiled = output.contracts[file][name];
    const artifact = {
      contractName: name,
      compiler: solc.version(),
      settings,
      sourceSha256: createHash("sha256").update(sources[file]).digest("hex"),
      abi: compiled.abi,
      bytecode: `0x${compiled.evm.bytecode.object}`,
      deployedBytecode: `0x${compiled.evm.deployedBytecode.object}`,
    };
    writeFileSync(join(target, `${name}.json`), `${JSON.stringify(artifact, null, 1)}\n`);
  }
}
