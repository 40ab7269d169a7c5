/** Elements of the results. Texts of the service and of people become text nodes only, never markup. */

/** Return an element with a class and children, which are elements or texts. */
export function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

/**
 * Return a product's line: position, title, score and a bar.
 * @param {"button" | "div"} name button if it can be chosen
 * @param {number} largest the largest score of the list
 */
export function productLine(name, position, title, score, largest) {
  const bar = element("span", "bar");
  bar.style.setProperty("--share", largest > 0 ? Math.max(score, 0) / largest : 0);
  bar.ariaHidden = "true";
  return element(
    name,
    "product",
    element("span", "position", `${position}.`),
    element("span", "title", title),
    element("span", "score", element("span", "", "score "), score.toFixed(4)),
    bar,
  );
}

/** Return the elements that say why a title has its score: both texts with what each word adds. */
export function explanationOf(found) {
  const all = [...found.query_words, ...found.title_words];
  const largest = Math.max(...all.map((word) => Math.abs(word.contribution)), 0);
  const sum = all.reduce((total, word) => total + word.contribution, 0);
  return [
    element("h3", "", "Query"),
    wordsOf(found.query, found.query_words, largest),
    element("h3", "", "Title"),
    wordsOf(found.title, found.title_words, largest),
    element(
      "p",
      "note",
      `Score ${found.score.toFixed(4)} = ${found.baseline.toFixed(4)} without words, ${signed(sum)} by the words`,
    ),
  ];
}

/** Return a text in which each word has its contribution as a number, a sign and a colour. */
function wordsOf(text, words, largest) {
  const characters = [...text]; // positions count code points
  const line = element("p", "explained");
  let last = 0;
  for (const { start, stop, contribution } of words) {
    line.append(characters.slice(last, start).join(""));
    const number = element("span", "number", signed(contribution));
    const word = element("span", contribution < 0 ? "word minus" : "word plus", characters.slice(start, stop).join(""));
    word.append(" ", number);
    word.style.setProperty("--strength", largest > 0 ? Math.abs(contribution) / largest : 0);
    line.append(word);
    last = stop;
  }
  line.append(characters.slice(last).join(""));
  return line;
}

function signed(number) {
  return `${number < 0 ? "−" : "+"}${Math.abs(number).toFixed(4)}`;
}
