//! The index: passages in memory, found by BM25 over their words and the headings they stand under.

use tantivy::collector::TopDocs;
use tantivy::query::{BooleanQuery, BoostQuery, Occur, Query as Clause, TermQuery};
use tantivy::schema::{FAST, Field, IndexRecordOption, STORED, Schema, TextFieldIndexing};
use tantivy::schema::{TextOptions, Value as _};
use tantivy::{IndexReader, IndexWriter, Score, SegmentReader, TantivyDocument, Term, doc};

use crate::found::{DEFAULT_PASSAGES, Found, MAX_PASSAGES, Passage, Query};
use crate::search::corpus::Document;
use crate::search::passage::{self, Kind};
use crate::terms::{analyzer, terms};

/// Memory of the writer while it builds; the least that the library takes is 15 MB.
const WRITER_BYTES: usize = 32 << 20;

/// A heading names the subject of a passage but says nothing about it.
const HEADING_WEIGHT: Score = 0.6;

/// Terms of a query; a longer one is no question.
const MAX_TERMS: usize = 64;

/// Name under which the library knows our way of splitting text.
const ANALYZER: &str = "terms";

/// Why the index cannot be built or asked. The documents are not to blame, the library is.
#[derive(Debug, thiserror::Error)]
#[error("the search index failed: {0}")]
pub struct IndexError(#[from] tantivy::TantivyError);

/// Passages, and how to find them.
pub struct Index {
    reader: IndexReader,
    passages: Vec<Passage>,
    fields: Fields,
}

#[derive(Clone, Copy)]
struct Fields {
    text: Field,
    heading: Field,
    /// Which of our passages it is.
    number: Field,
    /// What the score is multiplied by.
    weight: Field,
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index")
            .field("passages", &self.passages.len())
            .finish_non_exhaustive()
    }
}

impl Index {
    /// Indexes all passages of the documents, in memory.
    ///
    /// # Errors
    /// The library failed, for instance because it could not start its thread.
    pub fn build(documents: &[Document]) -> Result<Self, IndexError> {
        let (schema, fields) = schema();
        let index = tantivy::Index::create_in_ram(schema);
        index.tokenizers().register(ANALYZER, analyzer());
        let mut writer: IndexWriter = index.writer_with_num_threads(1, WRITER_BYTES)?;
        let mut passages = Vec::new();
        for document in documents {
            let lines: Vec<_> = document.text.lines().collect();
            for span in passage::split(&lines, Kind::of(&document.file)) {
                let text = lines[span.first..=span.last].join("\n");
                writer.add_document(doc!(
                    fields.text => text.as_str(),
                    fields.heading => span.heading,
                    fields.number => passages.len() as u64,
                    fields.weight => weight(&document.file),
                ))?;
                passages.push(Passage {
                    file: document.file.clone(),
                    line: line_number(span.first),
                    end_line: line_number(span.last),
                    score: 0.0,
                    text,
                });
            }
        }
        writer.commit()?;
        Ok(Self {
            reader: index.reader()?,
            passages,
            fields,
        })
    }

    /// How many passages there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.passages.len()
    }

    /// There is nothing to find.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.passages.is_empty()
    }

    /// The passages that fit best, best first. Words that no document has do no harm.
    ///
    /// # Errors
    /// The library failed.
    pub fn find(&self, query: &Query) -> Result<Found, IndexError> {
        let limit = query
            .limit
            .unwrap_or(DEFAULT_PASSAGES)
            .clamp(1, MAX_PASSAGES);
        let ranking = TopDocs::with_limit(limit).tweak_score(|segment: &SegmentReader| {
            let weights = segment.fast_fields().f64("weight");
            let weights = weights.expect("the schema has it as a fast field");
            move |document, score: Score| {
                f64::from(score) * weights.first(document).unwrap_or_default()
            }
        });
        let searcher = self.reader.searcher();
        let mut found = Found::default();
        for (score, address) in searcher.search(&self.any_of(&query.query), &ranking)? {
            let document: TantivyDocument = searcher.doc(address)?;
            let number = document
                .get_first(self.fields.number)
                .and_then(|value| value.as_u64());
            let passage = number
                .and_then(|number| self.passages.get(usize::try_from(number).ok()?))
                .expect("every document was added with the number of its passage");
            // Three places are enough to compare by, and short in JSON.
            let score = (score * 1_000.0).round() / 1_000.0;
            found.passages.push(Passage {
                score,
                ..passage.clone()
            });
        }
        Ok(found)
    }

    /// A clause for each term in each field, none of them required.
    fn any_of(&self, query: &str) -> BooleanQuery {
        let mut wanted = terms(query);
        wanted.sort_unstable();
        wanted.dedup();
        wanted.truncate(MAX_TERMS);
        let clause = |field, term: &str, boost| {
            let term = Term::from_field_text(field, term);
            let clause = TermQuery::new(term, IndexRecordOption::WithFreqs);
            let clause: Box<dyn Clause> = Box::new(BoostQuery::new(Box::new(clause), boost));
            (Occur::Should, clause)
        };
        let Fields { text, heading, .. } = self.fields;
        let both = |term: &String| {
            [
                clause(text, term, 1.0),
                clause(heading, term, HEADING_WEIGHT),
            ]
        };
        BooleanQuery::new(wanted.iter().flat_map(both).collect())
    }
}

fn schema() -> (Schema, Fields) {
    let words = TextFieldIndexing::default()
        .set_tokenizer(ANALYZER)
        .set_index_option(IndexRecordOption::WithFreqs);
    let words = TextOptions::default().set_indexing_options(words);
    let mut schema = Schema::builder();
    let fields = Fields {
        text: schema.add_text_field("text", words.clone()),
        heading: schema.add_text_field("heading", words),
        number: schema.add_u64_field("number", STORED),
        weight: schema.add_f64_field("weight", FAST),
    };
    (schema.build(), fields)
}

/// Prose answers questions; a contract does so in its comments; code says how, rarely what.
fn weight(file: &str) -> f64 {
    match file.rsplit_once('.') {
        Some((_, "md" | "txt")) => 1.0,
        Some((_, "proto")) => 0.8,
        _ => 0.5,
    }
}

fn line_number(index: usize) -> u32 {
    u32::try_from(index + 1).expect("a file of at most 1 MiB has fewer lines")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn document(file: &str, text: &str) -> Document {
        Document {
            file: file.into(),
            text: text.into(),
        }
    }

    fn files(index: &Index, query: &str, limit: Option<usize>) -> Vec<String> {
        let found = index
            .find(&Query {
                query: query.into(),
                limit,
            })
            .unwrap();
        found
            .passages
            .into_iter()
            .map(|passage| passage.file)
            .collect()
    }

    #[test]
    fn what_shares_most_with_the_query_comes_first() {
        let index = Index::build(&[
            document("cats.md", "A cat sleeps all day."),
            document(
                "crash.md",
                "# After a crash\n\nThe home replays its journal.",
            ),
            document("home.md", "The home sidecar owns the task."),
            document("home.rs", "/// The home sidecar owns the task."),
        ])
        .unwrap();
        assert_eq!(index.len(), 4);
        assert_eq!(
            files(&index, "Who owns a task?", None),
            ["home.md", "home.rs"]
        );
        assert_eq!(
            files(&index, "crashing", None),
            ["crash.md"],
            "by its heading and its stem"
        );
        assert_eq!(files(&index, "home", Some(1)).len(), 1);
        assert_eq!(files(&index, "zebra", None), [""; 0]);
        assert_eq!(files(&index, "", None), [""; 0]);
        assert_eq!(
            files(&index, "AND (task: \"~", None),
            ["home.md", "home.rs"],
            "no syntax"
        );
    }

    #[test]
    fn an_empty_folder_has_no_passages_and_finds_none() {
        let index = Index::build(&[]).unwrap();
        assert!(index.is_empty());
        assert_eq!(files(&index, "anything", None), [""; 0]);
    }

    #[test]
    fn no_answer_has_more_passages_than_allowed() {
        let many: String = (0..100).map(|n| format!("crash {n}\n\n")).collect();
        let index = Index::build(&[document("many.md", &many)]).unwrap();
        for (asked, given) in [
            (None, DEFAULT_PASSAGES),
            (Some(0), 1),
            (Some(1_000), MAX_PASSAGES),
        ] {
            assert_eq!(files(&index, "crash", asked).len(), given, "{asked:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// What a passage quotes stands in the file, word for word, at the lines it names.
        #[test]
        fn every_passage_stands_where_it_says(
            lines in prop::collection::vec("(# |  )?(home |task |crash )?[a-z.,é ]{0,40}", 1..40),
        ) {
            let index = Index::build(&[document("notes.md", &lines.join("\n"))]).unwrap();
            let query = Query { query: "home task crash".into(), limit: Some(MAX_PASSAGES) };
            let found = index.find(&query).unwrap();
            prop_assert!(found.passages.windows(2).all(|two| two[0].score >= two[1].score));
            for passage in found.passages {
                let (line, end_line) = (passage.line as usize, passage.end_line as usize);
                prop_assert_eq!(&passage.text, &lines[line - 1..end_line].join("\n"));
            }
        }
    }
}
