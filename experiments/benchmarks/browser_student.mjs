// Texts that the student in JavaScript embeds a second, and the time of a ranking, on one core.
//
//     fed-distill export runs/NAME --to exported --web int8
//     node experiments/benchmarks/browser_student.mjs exported/web

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Student } from "../../fed_distill/serving/web/student.js";

const NAMES = [
  "Anker 555 USB-C Hub 8-in-1 with 4K HDMI",
  "Samsung Galaxy S23 Ultra 256GB Phantom Black",
  "Kärcher K4 Power Control Hochdruckreiniger grün",
  "LEGO Technic Lamborghini Sian FKP 37 building set",
  "适用苹果15手机壳 硅胶 MagSafe",
];
const TITLES = 100;
const ROUNDS = 50;

const read = (name) => readFileSync(join(process.argv[2], name));
const loading = process.hrtime.bigint();
const student = new Student(JSON.parse(read("student.json")), Uint8Array.from(read("weights.bin")).buffer);
const loaded = Number(process.hrtime.bigint() - loading) / 1e6;
const titles = Array.from({ length: TITLES }, (_, place) => `${place} ${NAMES[place % NAMES.length]}`);

/** Return seconds of the process's time on its cores for each of ROUNDS calls, after as many calls to warm up. */
function measured(call) {
  for (let round = 0; round < ROUNDS; round++) call();
  const start = process.cpuUsage();
  for (let round = 0; round < ROUNDS; round++) call();
  const { user, system } = process.cpuUsage(start);
  return (user + system) / 1e6 / ROUNDS;
}

const embedding = measured(() => student.embed(titles));
const ranking = measured(() => student.rank("usb c hub with hdmi", titles));
console.log(`node ${process.versions.node}, Unicode ${process.versions.unicode}`);
console.log(`loaded in ${loaded.toFixed(0)} ms`);
console.log(`${Math.round(TITLES / embedding)} texts/s`);
console.log(`${(1000 * ranking).toFixed(2)} ms to rank ${TITLES} titles`);
