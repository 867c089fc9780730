//! Cuts a passage into what can be quoted alone: sentences of prose, a comment with the line of
//! code it speaks of. A piece is a slice of the passage, so it is verbatim by construction.

use std::ops::Range;

use crate::found::Passage;

/// Shorter pieces say nothing, longer ones are not read.
const BYTES: Range<usize> = 20..601;

/// Marks at the start of a line that are not part of what it says.
const MARKS: [&str; 7] = ["//!", "///", "//", "- ", "* ", "+ ", "> "];

/// The pieces of a passage worth quoting, in their order, as ranges of its text.
pub(super) fn pieces(passage: &Passage) -> Vec<Range<usize>> {
    let code = passage.file.ends_with(".proto") || passage.file.ends_with(".toml");
    let text = passage.text.as_str();
    let ends = if code {
        code_ends(text)
    } else {
        prose_ends(text)
    };
    let mut pieces = Vec::new();
    for piece in between(text, 0, ends) {
        if code && piece.len() >= BYTES.end {
            // A comment too long to be quoted whole is quoted by its sentences.
            let ends = prose_ends(&text[piece.clone()]);
            pieces.extend(between(&text[..piece.end], piece.start, ends));
        } else {
            pieces.push(piece);
        }
    }
    pieces.retain(|piece| {
        let text = &text[piece.clone()];
        BYTES.contains(&text.len()) && (code || !is_heading(text))
    });
    pieces
}

/// What stands between the ends, counted from `start`, without blanks and marks around it.
fn between(text: &str, start: usize, ends: Vec<usize>) -> Vec<Range<usize>> {
    let mut last = start;
    let ends = ends.into_iter().map(|end| start + end).chain([text.len()]);
    ends.map(|end| trimmed(text, std::mem::replace(&mut last, end)..end))
        .collect()
}

/// Lines of the file, from 1, on which a range of the passage's text stands.
pub(super) fn lines(passage: &Passage, range: &Range<usize>) -> (u32, u32) {
    let line_ends = |text: &str| {
        u32::try_from(text.matches('\n').count()).expect("a passage has a dozen lines")
    };
    let first = passage.line + line_ends(&passage.text[..range.start]);
    (first, first + line_ends(&passage.text[range.clone()]))
}

/// Where sentences end: at a full stop before a space, at a blank line, before a list item, a
/// table row, a heading or a fence.
fn prose_ends(text: &str) -> Vec<usize> {
    let mut ends = Vec::new();
    for (at, character) in text.char_indices() {
        let rest = &text[at + character.len_utf8()..];
        let ends_here = match character {
            '.' | '!' | '?' => ends_sentence(&text[..at], rest),
            '\n' => begins_block(rest) || stands_alone(last_line(&text[..at])),
            _ => false,
        };
        if ends_here {
            ends.push(at + character.len_utf8());
        }
    }
    ends
}

/// A full stop ends a sentence where a space follows, and then no lower-case letter ("e.g. this").
fn ends_sentence(before: &str, rest: &str) -> bool {
    let line = bare(last_line(before));
    if line.starts_with('|') {
        // A row of a table is one piece.
        return false;
    }
    let numbered = line.chars().all(|character| character.is_ascii_digit());
    let after = rest.trim_start();
    rest.len() > after.len() && !numbered && !after.starts_with(char::is_lowercase)
}

/// A line that does not carry on the sentence before it.
fn begins_block(line: &str) -> bool {
    let line = bare(line.lines().next().unwrap_or_default());
    let item = line.trim_start_matches(|character: char| character.is_ascii_digit());
    line.is_empty()
        || stands_alone(line)
        || ["- ", "* ", "+ "].iter().any(|mark| line.starts_with(mark))
        || (item.len() < line.len() && item.starts_with(". "))
}

/// A line that the next one never carries on: a heading, a row of a table, a fence.
fn stands_alone(line: &str) -> bool {
    let line = bare(line);
    ["#", "|", "```"].iter().any(|mark| line.starts_with(mark))
}

/// Code is cut after each line that is not a comment, so that a comment keeps what it speaks of.
fn code_ends(text: &str) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        at += line.len();
        if !line.trim_start().starts_with("//") && !line.trim_start().starts_with('#') {
            ends.push(at);
        }
    }
    ends
}

/// A line without the mark of a comment.
fn bare(line: &str) -> &str {
    let line = line.trim();
    let comment = MARKS[..3].iter().find_map(|mark| line.strip_prefix(mark));
    comment.unwrap_or(line).trim_start()
}

fn last_line(text: &str) -> &str {
    text.rsplit('\n').next().unwrap_or_default()
}

fn is_heading(piece: &str) -> bool {
    piece.starts_with('#') || piece.starts_with("```") || piece.starts_with("|--")
}

/// The range without blanks at its ends, and without marks at its start.
fn trimmed(text: &str, range: Range<usize>) -> Range<usize> {
    let piece = text[range.clone()].trim_end();
    let end = range.start + piece.len();
    let mut rest = piece.trim_start();
    while let Some(bare) = MARKS.iter().find_map(|mark| rest.strip_prefix(mark)) {
        rest = bare.trim_start();
    }
    end - rest.len()..end
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn passage(file: &str, text: &str) -> Passage {
        Passage {
            file: file.into(),
            line: 10,
            end_line: 21,
            score: 1.0,
            text: text.into(),
        }
    }

    #[test]
    fn prose_is_cut_into_sentences_and_items() {
        let text = "# Title of it all\n\nThe home owns the task, e.g. its journal\nand events. \
                    Nobody else does!\n- a first item\n  of a list\n- a second item of a list\n\
                    1. a numbered item stays whole\n| a cell. | Another cell here |";
        let passage = passage("a.md", text);
        let pieces = pieces(&passage);
        let quotes: Vec<_> = pieces.iter().map(|piece| &text[piece.clone()]).collect();
        assert_eq!(
            quotes,
            [
                "The home owns the task, e.g. its journal\nand events.",
                "a first item\n  of a list",
                "a second item of a list",
                "1. a numbered item stays whole",
                "| a cell. | Another cell here |",
            ]
        );
        let lines: Vec<_> = pieces.iter().map(|piece| lines(&passage, piece)).collect();
        assert_eq!(lines, [(12, 13), (14, 15), (16, 16), (17, 17), (18, 18)]);
    }

    #[test]
    fn a_comment_keeps_the_code_it_speaks_of() {
        let text = "  // Idempotency key,\n  // at most 128 B.\n  string idempotency_key = 4;\n}";
        let pieces = pieces(&passage("a.proto", text));
        let quotes: Vec<_> = pieces.iter().map(|piece| &text[piece.clone()]).collect();
        let whole = "Idempotency key,\n  // at most 128 B.\n  string idempotency_key = 4;";
        assert_eq!(quotes, [whole]);
    }

    #[test]
    fn documentation_is_quoted_by_its_sentences() {
        let text =
            "/// The task, as it\n/// stands now.\n///\n/// # Errors\n/// None that anybody knows.";
        let pieces = pieces(&passage("a.rs", text));
        let quotes: Vec<_> = pieces.iter().map(|piece| &text[piece.clone()]).collect();
        assert_eq!(
            quotes,
            [
                "The task, as it\n/// stands now.",
                "None that anybody knows."
            ]
        );
        let long = format!(
            "// {}Short and good sentence.\nrpc Run();",
            "Some more words. ".repeat(40)
        );
        let pieces = super::pieces(&passage("a.proto", &long));
        assert!(
            pieces.len() == 1 && long[pieces[0].clone()].starts_with("Short"),
            "{pieces:?}"
        );
    }

    proptest! {
        /// Pieces are in order, apart, within bounds, and stand on the lines they are said to.
        #[test]
        fn pieces_stand_on_their_lines(
            lines_of in prop::collection::vec("(- |# |// |\\| )?[a-zA-Zé.!? ]{0,80}", 1..12),
            file in prop::sample::select(vec!["a.md", "a.rs"]),
        ) {
            let text = lines_of.join("\n");
            let passage = passage(file, &text);
            let mut last = 0;
            for piece in pieces(&passage) {
                prop_assert!(piece.start >= last && BYTES.contains(&piece.len()));
                last = piece.end;
                let (line, end_line) = lines(&passage, &piece);
                let (line, end_line) = (line as usize - 10, end_line as usize - 10);
                let stands = lines_of[line..=end_line].join("\n");
                prop_assert!(stands.contains(&text[piece.clone()]));
            }
        }
    }
}
