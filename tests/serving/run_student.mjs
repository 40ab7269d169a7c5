// Run the browser's student in node: read a request from stdin, and write its results as JSON.
//   { folder, calls: [[method, ...arguments], ...] } -> a result, or { error }, for each call

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Student } from "../../fed_distill/serving/web/student.js";
import { TextCleaning, UNASSIGNED } from "../../fed_distill/serving/web/texts.js";
import { WordPieces } from "../../fed_distill/serving/web/wordpiece.js";

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
const cleaning = new TextCleaning({ ...description, text: { max_characters: Infinity } });
const blocks = (size, after, call) =>
  Array.from({ length: 0x110000 / size }, (_, block) => {
    const one = (place) => `a${String.fromCodePoint(block * size + place)}${after}`;
    const text = Array.from({ length: size }, (_, place) => one(place)).join(" ");
    return createHash("sha256").update(call(cleaning.clean(text, "text"))).digest("hex");
  });
const own = {
  tryEncode: (texts) => texts.map((text) => attempt(() => student.encode(text))),
  // SHA-256 of what is left of all code points, in blocks, each after an "a".
  digests: (size) => {
    const kept = (character) => ![0, UNASSIGNED].includes(cleaning.kinds[character.codePointAt(0)]);
    return blocks(size, "", (text) => [...cleaning.normalize(text)].filter(kept).join(""));
  },
  // SHA-256 of the words of all code points, in blocks, each between "a" and "b".
  wordDigests: (size) => {
    const pieces = new WordPieces(description.encoding, description.wordpiece);
    return blocks(size, "b", (text) => pieces.words(text).join(" "));
  },
};
const results = calls.map(([method, ...given]) =>
  student.error ? student : attempt(() => (own[method] ? own[method](...given) : student[method](...given))),
);
process.stdout.write(JSON.stringify(results));
