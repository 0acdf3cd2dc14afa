/* The order of what the search finds.

   Sphinx asks that a page has every word of a query, and counts the best of them. People write sentences. So here a page may lack some
   words; rare words count more than common ones, words of a heading more than those of the text, and guides, recipes and pages of
   names more than the changelog. Names of functions that a query spells out are found by Sphinx itself. */

"use strict";

const PLACES = { guides: 1.25, cookbook: 1.3, api: 1.0, gallery: 0.8 };
const REST = 0.6; // changelog, contributing, lists of names

function filesOf(entry) {
  if (entry === undefined) return [];
  return Array.isArray(entry) ? entry : [entry];
}

/* The files that have a word, each with how much it counts there. */
function whereIs(word, index) {
  const found = new Map();
  const put = (files, weight) => {
    for (const file of files) found.set(file, Math.max(found.get(file) || 0, weight));
  };
  const look = (terms, exact, partial) => {
    if (Object.hasOwn(terms, word)) put(filesOf(terms[word]), exact);
    else if (word.length > 2)
      for (const [term, files] of Object.entries(terms))
        if (term.startsWith(word) || (word.length > 4 && term.includes(word))) put(filesOf(files), partial);
  };
  look(index.terms, 1, 0.5);
  look(index.titleterms, 3, 1.5);
  // A name in a heading is read as the words that it is made of.
  for (const [name, files] of Object.entries(index.titleterms)) if (name.split(/[_.]/).includes(word)) put(filesOf(files), 3);
  return found;
}

function ranked(searchTerms, excludedTerms) {
  const index = Search._index;
  const total = index.docnames.length;
  const scores = new Map(); // file: [sum of weights, words that it has]
  // A number and its unit are two words, "8bit".
  searchTerms = new Set([...searchTerms].flatMap((word) => /^(\d+)([a-z]+)$/.exec(word)?.slice(1) ?? [word]));
  for (const word of searchTerms) {
    const found = whereIs(word, index);
    const rarity = Math.log(1 + total / (1 + found.size));
    for (const [file, weight] of found) {
      const [sum, words] = scores.get(file) || [0, 0];
      scores.set(file, [sum + weight * rarity, words + 1]);
    }
  }
  for (const word of excludedTerms) for (const file of whereIs(word, index).keys()) scores.delete(file);

  const results = [];
  for (const [file, [sum, words]] of scores) {
    const [folder, page] = index.docnames[file].split("/");
    const place = page === undefined || page === "index" || page.startsWith("all-") ? REST : PLACES[folder] || REST;
    const share = words / searchTerms.size;
    results.push([sum * share * share * place, file]);
  }
  results.sort((a, b) => b[0] - a[0]);
  const best = results.length ? results[0][0] : 1;
  return results
    .filter(([score]) => score > 0.2 * best)
    .slice(0, 50)
    .map(([score, file]) => {
      const points = 40 * (score / best); // Sphinx gives 26 to the exact name of a function.
      return [index.docnames[file], index.titles[file], "", null, points, index.filenames[file], SearchResultKind.text];
    });
}

/* On the search page alone there is something to be found; this listener is there before the one that starts the search. */
document.addEventListener("DOMContentLoaded", () => {
  if (typeof Search !== "undefined") Search.performTermsSearch = ranked;
});
