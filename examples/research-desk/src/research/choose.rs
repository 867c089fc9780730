//! Chooses what to quote: the few sentences that share most with the question.
//!
//! A word counts the more the fewer sentences have it. A sentence is judged by the share of the
//! question it speaks of, by its passage (the answer often stands beside the word that was asked
//! for), and by how little else it says. What says the same as a better one is left out.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use crate::found::Passage;
use crate::research::sentence;
use crate::terms::terms;

/// Most sentences in an answer: more is not an answer but reading material.
const MAX_QUOTES: usize = 5;

/// Share of the question that a sentence must speak of.
const MIN_COVERAGE: f64 = 0.25;

/// Share of the question that all quotes together must speak of, else nothing answers it.
const MIN_ANSWERED: f64 = 0.4;

/// A sentence may share this much of its words with one already chosen.
const MAX_OVERLAP: f64 = 0.6;

/// Below this share of the best sentence's score the rest is noise.
const MIN_OF_BEST: f64 = 0.6;

/// What the passage around a sentence, its rank, and its density count beside its coverage.
const WEIGHT_AROUND: f64 = 0.35;
const WEIGHT_RANK: f64 = 0.25;
const WEIGHT_DENSITY: f64 = 0.5;

/// A range of the text of the passage with this number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Quote {
    pub(super) passage: usize,
    pub(super) range: Range<usize>,
}

struct Candidate {
    quote: Quote,
    words: HashSet<String>,
    /// Share of the question it speaks of, 0 to 1.
    coverage: f64,
    score: f64,
}

/// The sentences to quote, in the order of the passages; empty: none of them answers.
pub(super) fn choose(question: &str, passages: &[Passage]) -> Vec<Quote> {
    let asked: HashSet<String> = terms(question).into_iter().collect();
    let sentences = sentences(&asked, passages);
    let weights = Weights::of(&asked, &sentences);
    let mut candidates = rated(&weights, passages, sentences);
    candidates.sort_by(|one, other| other.score.total_cmp(&one.score));
    let best = candidates.first().map_or(0.0, |best| best.score);
    let mut chosen: Vec<Candidate> = Vec::new();
    for candidate in candidates {
        let again = chosen
            .iter()
            .any(|other| overlap(&candidate.words, &other.words) > MAX_OVERLAP);
        let weak = candidate.coverage < MIN_COVERAGE || candidate.score < best * MIN_OF_BEST;
        if !again && !weak && chosen.len() < MAX_QUOTES {
            chosen.push(candidate);
        }
    }
    let said: HashSet<String> = chosen
        .iter()
        .flat_map(|quote| quote.words.iter().cloned())
        .collect();
    if weights.coverage(&said) < MIN_ANSWERED {
        return Vec::new();
    }
    let mut quotes: Vec<_> = chosen
        .into_iter()
        .map(|candidate| candidate.quote)
        .collect();
    quotes.sort_by_key(|quote| (quote.passage, quote.range.start));
    quotes
}

/// All sentences with their words, but for those that only ask, or repeat the question.
fn sentences(asked: &HashSet<String>, passages: &[Passage]) -> Vec<(Quote, Vec<String>)> {
    let mut sentences = Vec::new();
    for (number, passage) in passages.iter().enumerate() {
        for range in sentence::pieces(passage) {
            let text = &passage.text[range.clone()];
            let words = terms(text);
            let echo = text.contains('?') && asked.iter().all(|term| words.contains(term));
            if !text.ends_with('?') && !echo {
                let quote = Quote {
                    passage: number,
                    range,
                };
                sentences.push((quote, words));
            }
        }
    }
    sentences
}

fn rated(
    weights: &Weights,
    passages: &[Passage],
    sentences: Vec<(Quote, Vec<String>)>,
) -> Vec<Candidate> {
    let top = passages
        .iter()
        .map(|passage| passage.score)
        .fold(f64::MIN_POSITIVE, f64::max);
    let around = |passage: &Passage| weights.coverage(&terms(&passage.text).into_iter().collect());
    let passages: Vec<_> = passages
        .iter()
        .map(|passage| (around(passage), passage.score / top))
        .collect();
    let rate = |(quote, words): (Quote, Vec<String>)| {
        let (around, rank) = passages[quote.passage];
        let density = weights.density(&words);
        let words: HashSet<_> = words.into_iter().collect();
        let coverage = weights.coverage(&words);
        let score =
            coverage + WEIGHT_AROUND * around + WEIGHT_RANK * rank + WEIGHT_DENSITY * density;
        Candidate {
            quote,
            words,
            coverage,
            score,
        }
    };
    sentences.into_iter().map(rate).collect()
}

/// What each word of the question counts; all together count 1.
struct Weights(HashMap<String, f64>);

impl Weights {
    fn of(asked: &HashSet<String>, sentences: &[(Quote, Vec<String>)]) -> Self {
        let rarity = |term: &String| {
            let having = sentences
                .iter()
                .filter(|(_, words)| words.contains(term))
                .count();
            // Of a few dozen sentences, so exact.
            #[expect(
                clippy::cast_precision_loss,
                reason = "a few hundred sentences at most"
            )]
            let share = (sentences.len() + 1) as f64 / (having + 1) as f64;
            (1.0 + share).ln()
        };
        let weights: HashMap<_, _> = asked
            .iter()
            .map(|term| (term.clone(), rarity(term)))
            .collect();
        let sum: f64 = weights.values().sum();
        Self(
            weights
                .into_iter()
                .map(|(term, weight)| (term, weight / sum))
                .collect(),
        )
    }

    fn coverage(&self, words: &HashSet<String>) -> f64 {
        let known = self.0.iter().filter(|(term, _)| words.contains(*term));
        known.map(|(_, weight)| weight).sum()
    }

    /// Share of the words that the question asks about.
    fn density(&self, words: &[String]) -> f64 {
        let asked = words
            .iter()
            .filter(|word| self.0.contains_key(*word))
            .count();
        #[expect(clippy::cast_precision_loss, reason = "words of one sentence")]
        let share = asked as f64 / words.len().max(1) as f64;
        share
    }
}

/// Share of the smaller set that is in the other one too.
fn overlap(one: &HashSet<String>, other: &HashSet<String>) -> f64 {
    let smaller = one.len().min(other.len()).max(1);
    #[expect(clippy::cast_precision_loss, reason = "words of two sentences")]
    let share = one.intersection(other).count() as f64 / smaller as f64;
    share
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passage(file: &str, score: f64, text: &str) -> Passage {
        Passage {
            file: file.into(),
            line: 1,
            end_line: 1,
            score,
            text: text.into(),
        }
    }

    fn quotes(question: &str, passages: &[Passage]) -> Vec<String> {
        let chosen = choose(question, passages);
        chosen
            .iter()
            .map(|quote| passages[quote.passage].text[quote.range.clone()].into())
            .collect()
    }

    #[test]
    fn the_sentence_that_answers_is_quoted_and_its_echo_is_not() {
        let passages = [
            passage(
                "example.md",
                9.0,
                "Try it: `What survives a crash of the home sidecar?` and look at what it says.",
            ),
            passage(
                "promises.md",
                8.0,
                "The weather in the mountains is fine today. After a crash of its sidecar the home \
                 replays its journal: every acknowledged task survives. Bananas are yellow fruit.",
            ),
            passage(
                "copy.md",
                7.0,
                "After a crash of its sidecar the home replays its journal: every acknowledged \
                 task survives it.",
            ),
        ];
        assert_eq!(
            quotes("What survives a crash of the home sidecar?", &passages),
            [
                "After a crash of its sidecar the home replays its journal: every acknowledged task \
              survives."
            ]
        );
    }

    #[test]
    fn a_question_that_nothing_speaks_of_has_no_answer() {
        let passages = [passage(
            "price.md",
            3.0,
            "The price of a durable commit is one disk sync.",
        )];
        assert_eq!(
            quotes("What is the price of bananas in Paris?", &passages),
            [""; 0]
        );
        assert_eq!(quotes("What is the price of a commit?", &passages).len(), 1);
        assert_eq!(quotes("Why?", &passages), [""; 0]);
        assert_eq!(quotes("crash", &[]), [""; 0]);
    }

    #[test]
    fn an_answer_stays_short() {
        let text: String = [
            "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta",
        ]
        .map(|word| format!("A crash of {word} {word}{word} number{word} ends it. "))
        .concat();
        assert_eq!(
            quotes("crash ends", &[passage("many.md", 1.0, &text)]).len(),
            MAX_QUOTES
        );
    }
}
