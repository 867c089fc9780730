//! The answer: quotes under numbers, and for each number the file and the lines.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::found::Passage;
use crate::research::choose::{Quote, choose};
use crate::research::sentence;

/// A question and what the documents say about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// As it was asked.
    pub question: String,
    /// Numbered from 1; never empty.
    pub citations: Vec<Citation>,
}

/// One quote and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Citation {
    /// Number by which the text refers to it, from 1.
    pub n: u32,
    /// Path below the folder that was searched.
    pub file: String,
    /// First line of the quote, from 1.
    pub line: u32,
    /// Its last line, included.
    pub end_line: u32,
    /// Word for word; several lines are joined by `\n`.
    pub quote: String,
}

impl Answer {
    /// Answers with quotes from the passages; none if no sentence speaks of what was asked.
    #[must_use]
    pub fn compose(question: &str, passages: &[Passage]) -> Option<Self> {
        let quotes = joined(choose(question, passages), passages);
        let citations: Vec<_> = (1..)
            .zip(&quotes)
            .map(|(n, quote)| {
                let passage = &passages[quote.passage];
                let (line, end_line) = sentence::lines(passage, &quote.range);
                let quote = passage.text[quote.range.clone()].to_owned();
                Citation {
                    n,
                    file: passage.file.clone(),
                    line,
                    end_line,
                    quote,
                }
            })
            .collect();
        (!citations.is_empty()).then(|| Self {
            question: question.to_owned(),
            citations,
        })
    }

    /// The answer as Markdown: each quote, its number, and its place as `path:line-end`.
    #[must_use]
    pub fn markdown(&self) -> String {
        let question = self
            .question
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        let mut text = format!("**{question}**\n");
        for citation in &self.citations {
            text.push('\n');
            for line in citation.quote.lines() {
                line_of(&mut text, &format!("> {}", line.trim()));
            }
            line_of(
                &mut text,
                &format!("\n[{}] {}", citation.n, citation.place()),
            );
        }
        text
    }
}

impl Citation {
    /// `path:line`, or `path:line-end` for several lines.
    #[must_use]
    pub fn place(&self) -> String {
        let Self {
            file,
            line,
            end_line,
            ..
        } = self;
        if line == end_line {
            format!("{file}:{line}")
        } else {
            format!("{file}:{line}-{end_line}")
        }
    }
}

fn line_of(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("a string takes what is written to it");
}

/// Sentences that follow each other become one quote: only blanks stand between them.
fn joined(quotes: Vec<Quote>, passages: &[Passage]) -> Vec<Quote> {
    let mut joined: Vec<Quote> = Vec::new();
    for quote in quotes {
        match joined.last_mut() {
            Some(last)
                if last.passage == quote.passage
                    && passages[quote.passage].text[last.range.end..quote.range.start]
                        .trim()
                        .is_empty() =>
            {
                last.range.end = quote.range.end;
            }
            _ => joined.push(quote),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::found::{MAX_PASSAGES, Query};
    use crate::search::{Document, Index};

    fn passage(text: &str) -> Passage {
        Passage {
            file: "a.md".into(),
            line: 3,
            end_line: 5,
            score: 1.0,
            text: text.into(),
        }
    }

    #[test]
    fn an_answer_names_file_and_lines_of_each_quote() {
        let passages = [passage(
            "The journal is replayed\nafter a crash of the home. Tasks that survive the crash are\n\
             those that were acknowledged. Rain falls on the far away green hills.",
        )];
        let answer = Answer::compose("What survives a crash of the home?", &passages).unwrap();
        assert_eq!(
            answer.citations.len(),
            1,
            "sentences that follow each other are one quote"
        );
        assert_eq!(
            answer.markdown(),
            "**What survives a crash of the home?**\n\n> The journal is replayed\n> after a crash \
             of the home. Tasks that survive the crash are\n> those that were acknowledged.\n\n\
             [1] a.md:3-5\n"
        );
    }

    #[test]
    fn without_a_sentence_there_is_no_answer() {
        assert_eq!(
            Answer::compose("What colour has the moon?", &[passage("The home.")]),
            None
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// From documents to citations: every quote stands in its file at the lines it names.
        #[test]
        fn every_quote_stands_where_its_citation_says(
            lines in prop::collection::vec(
                "(# |- |> |\\| |// )?(The home survives|a crash of tasks|rain)?[a-z ]{0,30}[.?!]?",
                1..60,
            ),
            file in prop::sample::select(vec!["a.md", "a.proto", "a.txt"]),
        ) {
            let document = Document { file: file.into(), text: lines.join("\n") };
            let index = Index::build(&[document]).unwrap();
            let question = "Which tasks of the home survive a crash?";
            let query = Query { query: question.into(), limit: Some(MAX_PASSAGES) };
            let passages = index.find(&query).unwrap().passages;
            let Some(answer) = Answer::compose(question, &passages) else { return Ok(()) };
            for citation in &answer.citations {
                let stands = &lines[citation.line as usize - 1..citation.end_line as usize];
                prop_assert!(stands.join("\n").contains(&citation.quote));
                prop_assert!(stands[0].contains(citation.quote.lines().next().unwrap()));
            }
            let numbers: Vec<_> = answer.citations.iter().map(|citation| citation.n).collect();
            prop_assert_eq!(numbers, (1..).take(answer.citations.len()).collect::<Vec<u32>>());
        }
    }
}
