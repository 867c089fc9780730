//! Cuts a document into passages: runs of whole lines that belong together.
//!
//! A blank line ends a passage, a heading begins one and keeps the paragraph under it, a `}` at
//! the margin ends one (so that a message of a contract stays whole). Of Rust only the documentation
//! comments are taken: they answer questions, code and its tests only happen to have the same words.
//! Of Markdown, what a program printed (```` ```console ````) is left out: it repeats others.
//! No line is in two passages.

/// Most lines of a passage: what a reader takes in at a glance.
pub(super) const MAX_LINES: usize = 12;

/// Most bytes of a passage. A single line that is longer is left out: nobody wrote it to be read.
pub(super) const MAX_BYTES: usize = 4_096;

/// What a block of code begins and ends with in Markdown.
const FENCE: &str = "```";

/// Lines `first` to `last` of a document, both from 0 and included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) first: usize,
    pub(super) last: usize,
    /// Text of the heading it stands under; empty: none.
    pub(super) heading: String,
}

/// How a document is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Markdown,
    Rust,
    Other,
}

impl Kind {
    pub(super) fn of(file: &str) -> Self {
        match file.rsplit_once('.') {
            Some((_, "md")) => Self::Markdown,
            Some((_, "rs")) => Self::Rust,
            _ => Self::Other,
        }
    }

    /// The line belongs to no passage.
    fn leaves_out(self, line: &str) -> bool {
        let line = line.trim_start();
        line.is_empty()
            || (self == Self::Rust && !line.starts_with("//!") && !line.starts_with("///"))
    }
}

/// The passages of a document given as its lines.
pub(super) fn split(lines: &[&str], kind: Kind) -> Vec<Span> {
    let mut cutter = Cutter::default();
    let mut printed = false;
    for (number, line) in lines.iter().enumerate() {
        let title = (kind == Kind::Markdown).then(|| heading(line)).flatten();
        let was_printed = printed;
        if kind == Kind::Markdown && line.starts_with(FENCE) {
            printed = !printed && line[FENCE.len()..].trim() == "console";
        }
        if printed || was_printed || kind.leaves_out(line) {
            if cutter.only_headings {
                cutter.pass(line);
            } else {
                cutter.cut();
            }
        } else if line.len() > MAX_BYTES {
            cutter.cut();
        } else {
            if title.is_some() && !cutter.only_headings {
                cutter.cut();
            }
            cutter.take(number, line, title);
            if line.starts_with('}') {
                cutter.cut();
            }
        }
    }
    cutter.cut();
    cutter.spans
}

#[derive(Default)]
struct Cutter {
    spans: Vec<Span>,
    /// The passage being gathered: its first line, its last, and the bytes between.
    open: Option<(usize, usize, usize)>,
    /// Nothing but headings so far: the paragraph below belongs to them.
    only_headings: bool,
    heading: String,
}

impl Cutter {
    fn take(&mut self, number: usize, line: &str, title: Option<&str>) {
        if let Some((first, last, bytes)) = self.open {
            // One line end for each line that was passed since, and one more.
            let grown = bytes + (number - last) + line.len();
            if number - first >= MAX_LINES || grown > MAX_BYTES {
                self.cut();
            } else {
                self.open = Some((first, number, grown));
            }
        }
        if self.open.is_none() {
            self.open = Some((number, number, line.len()));
            self.only_headings = title.is_some();
        }
        self.only_headings &= title.is_some();
        if let Some(title) = title {
            title.clone_into(&mut self.heading);
        }
    }

    /// A blank line between a heading and its paragraph, which may have spaces in it.
    fn pass(&mut self, line: &str) {
        if let Some((_, _, bytes)) = &mut self.open {
            *bytes += line.len();
        }
    }

    fn cut(&mut self) {
        if let Some((first, last, _)) = self.open.take() {
            self.spans.push(Span {
                first,
                last,
                heading: self.heading.clone(),
            });
        }
        self.only_headings = false;
    }
}

/// The text of a Markdown heading.
fn heading(line: &str) -> Option<&str> {
    let text = line.trim_start_matches('#');
    let level = line.len() - text.len();
    ((1..=6).contains(&level) && text.starts_with(' ')).then(|| text.trim())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_program_printed_is_left_out() {
        let text = "Run it:\n\n```sh\nask\n```\n\n```console\n> an answer\n\n# no title\n```\n\nAnd so on.";
        let found = spans(text)
            .into_iter()
            .map(|(first, last, _)| (first, last));
        assert_eq!(found.collect::<Vec<_>>(), [(0, 0), (2, 4), (12, 12)]);
    }

    fn spans(text: &str) -> Vec<(usize, usize, String)> {
        let lines: Vec<_> = text.lines().collect();
        let spans = split(&lines, Kind::Markdown).into_iter();
        spans
            .map(|span| (span.first, span.last, span.heading))
            .collect()
    }

    #[test]
    fn paragraphs_headings_and_blocks_are_where_it_is_cut() {
        type Cut<'a> = (usize, usize, &'a str);
        let table: &[(&str, &[Cut<'_>])] = &[
            ("", &[]),
            ("one\ntwo\n\n\nthree", &[(0, 1, ""), (4, 4, "")]),
            (
                "# Title\n\ntext\nmore\n\nrest",
                &[(0, 3, "Title"), (5, 5, "Title")],
            ),
            ("# A\n\n## B\n\ntext", &[(0, 4, "B")]),
            ("text\n## Next\nunder", &[(0, 0, ""), (1, 2, "Next")]),
            ("fn a() {\n  b\n}\nfn c() {}\n", &[(0, 2, ""), (3, 3, "")]),
            ("#no heading\n#[derive]", &[(0, 1, "")]),
        ];
        for (text, expected) in table {
            let expected: Vec<_> = expected
                .iter()
                .map(|(first, last, title)| (*first, *last, (*title).into()))
                .collect();
            assert_eq!(spans(text), expected, "{text}");
        }
    }

    #[test]
    fn long_runs_are_cut_and_endless_lines_left_out() {
        let thirty = "line\n".repeat(30);
        let cut: Vec<_> = spans(&thirty)
            .iter()
            .map(|(first, last, _)| (*first, *last))
            .collect();
        assert_eq!(cut, [(0, 11), (12, 23), (24, 29)]);
        let endless = format!("before\n{}\nafter", "x".repeat(MAX_BYTES + 1));
        let cut: Vec<_> = spans(&endless)
            .iter()
            .map(|(first, last, _)| (*first, *last))
            .collect();
        assert_eq!(cut, [(0, 0), (2, 2)]);
    }

    #[test]
    fn blanks_under_a_heading_count_too() {
        let text = "x".repeat(MAX_BYTES - "# A\n  \n".len());
        for (blank, cut) in [("  ", vec![(0, 2)]), ("   ", vec![(0, 0), (2, 2)])] {
            let spans = spans(&format!("# A\n{blank}\n{text}"));
            let spans: Vec<_> = spans
                .iter()
                .map(|(first, last, _)| (*first, *last))
                .collect();
            assert_eq!(spans, cut, "{blank:?}");
        }
    }

    #[test]
    fn of_rust_only_its_documentation_is_taken() {
        let lines = [
            "//! The map.",
            "",
            "/// Says it",
            "/// twice.",
            "fn say() {}",
            "// Not this.",
        ];
        let spans = split(&lines, Kind::of("src/lib.rs"));
        let spans: Vec<_> = spans.iter().map(|span| (span.first, span.last)).collect();
        assert_eq!(spans, [(0, 0), (2, 3)]);
    }

    proptest! {
        /// Every line with text is in exactly one passage, and every passage keeps its bounds.
        #[test]
        fn no_line_is_lost_or_taken_twice(
            lines in prop::collection::vec("(#{1,3} |/// )?[a-z }]{0,30}|x{2000}", 0..60),
            kind in prop::sample::select(vec![Kind::Markdown, Kind::Rust, Kind::Other]),
        ) {
            let lines: Vec<_> = lines.iter().map(String::as_str).collect();
            let spans = split(&lines, kind);
            let mut taken = vec![0; lines.len()];
            for span in &spans {
                prop_assert!(span.last - span.first < MAX_LINES);
                prop_assert!(lines[span.first..=span.last].join("\n").len() <= MAX_BYTES);
                prop_assert!(!lines[span.first].trim().is_empty());
                prop_assert!(!lines[span.last].trim().is_empty());
                for taken in &mut taken[span.first..=span.last] {
                    *taken += 1;
                }
            }
            for (line, taken) in lines.iter().zip(taken) {
                prop_assert!(taken <= 1 && (taken == 1 || kind.leaves_out(line)), "{line:?}");
            }
            prop_assert!(spans.windows(2).all(|two| two[0].last < two[1].first));
        }
    }
}
