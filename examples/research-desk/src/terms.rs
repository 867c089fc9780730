//! What counts as a word, for the index and for choosing sentences alike: lower case, without
//! stop words and question words, reduced to its stem.

use std::sync::LazyLock;

use tantivy::tokenizer::{
    Language, LowerCaser, RemoveLongFilter, SimpleTokenizer, Stemmer, StopWordFilter, TextAnalyzer,
};

/// Longer runs of letters are hashes and base64, not words.
const LONGEST_WORD: usize = 40;

/// Words that ask rather than say; the library's own list has only articles, pronouns and the like.
const QUESTION_WORDS: &[&str] = &[
    "about", "am", "any", "been", "can", "could", "did", "do", "does", "get", "gets", "had", "has",
    "have", "how", "i", "its", "many", "me", "much", "my", "our", "should", "so", "some", "tell",
    "than", "we", "were", "what", "when", "where", "which", "who", "whom", "whose", "why", "would",
    "you", "your",
];

/// Made once: its lists of words are longer than most texts that it splits.
static ANALYZER: LazyLock<TextAnalyzer> = LazyLock::new(made);

/// Splits text into terms.
#[must_use]
pub fn analyzer() -> TextAnalyzer {
    ANALYZER.clone()
}

/// The terms of `text` in their order, each time they occur.
#[must_use]
pub fn terms(text: &str) -> Vec<String> {
    let mut analyzer = analyzer();
    let mut stream = analyzer.token_stream(text);
    let mut terms = Vec::new();
    while let Some(token) = stream.next() {
        terms.push(token.text.clone());
    }
    terms
}

fn made() -> TextAnalyzer {
    let stop_words = StopWordFilter::new(Language::English)
        .expect("the library is built with its `stopwords` feature");
    let question_words = StopWordFilter::remove(QUESTION_WORDS.iter().map(ToString::to_string));
    TextAnalyzer::builder(SimpleTokenizer::default())
        .filter(RemoveLongFilter::limit(LONGEST_WORD))
        .filter(LowerCaser)
        .filter(stop_words)
        .filter(question_words)
        .filter(Stemmer::new(Language::English))
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_reduced_to_what_they_have_in_common() {
        let table: &[(&str, &[&str])] = &[
            (
                "What survives a crash of the home sidecar?",
                &["surviv", "crash", "home", "sidecar"],
            ),
            ("crashes, CRASHED; crashing", &["crash", "crash", "crash"]),
            ("billing.check_balance", &["bill", "check", "balanc"]),
            ("How do I do it?", &[]),
            ("", &[]),
        ];
        for (text, expected) in table {
            assert_eq!(terms(text), *expected, "{text}");
        }
    }
}
