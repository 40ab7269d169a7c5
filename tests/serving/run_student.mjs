// Run the browser's student in node: read a request from stdin, and write its results as JSON.
//   { folder, calls: [[method, ...arguments], ...] } -> a result, or { error }, for each call

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Student } from "../../fed_distill/serving/web/student.js";
import { TextCleaning, UNASSIGNED } from "../../fed_distill/serving/web/texts.js";

const { folder, calls } = JSON.parse(readFileSync(0, "utf8"));
const weights = readFileSync(join(folder, "weights.bin"));
const description = JSON.parse(readFileSync(join(folder, "student.json"), "utf8"));

const plain = (value) => {
  if (ArrayBuffer.isView(value)) return Array.from(value);
  return Array.isArray(value) ? value.map(plain) : value;
};

const attempt = (call) => {
  try {
    return plain(call());
  } catch (error) {
    return { error: error.message };
  }
};

const student = attempt(() => new Student(description, Uint8Array.from(weights).buffer));
const own = {
  tryEncode: (texts) => texts.map((text) => attempt(() => student.encode(text))),
  // SHA-256 of what is left of all code points, in blocks, each after an "a".
  digests: (size) => {
    const cleaning = new TextCleaning({ ...description, text: { max_characters: Infinity } });
    const kept = (character) => ![0, UNASSIGNED].includes(cleaning.kinds[character.codePointAt(0)]);
    return Array.from({ length: 0x110000 / size }, (_, block) => {
      const text = Array.from({ length: size }, (_, place) => `a${String.fromCodePoint(block * size + place)}`);
      const normalized = cleaning.normalize(cleaning.clean(text.join(" "), "text"));
      return createHash("sha256").update([...normalized].filter(kept).join("")).digest("hex");
    });
  },
};
const results = calls.map(([method, ...given]) =>
  student.error ? student : attempt(() => (own[method] ? own[method](...given) : student[method](...given))),
);
process.stdout.write(JSON.stringify(results));
