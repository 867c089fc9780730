//! The only place that prints. Results go to standard output, everything else to standard error.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is the printer"
)]

use std::{
    io::{self, IsTerminal, Write},
    os::fd::AsFd,
};

use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width, presets};
use parking_lot::Mutex;

use super::args::Format;

/// Widest progress bar, in columns.
const BAR: usize = 24;
/// Width of a terminal that does not tell.
const WIDTH: u16 = 100;
/// Cells up to this width, in columns, are never wrapped: times, states, counts.
const SHORT: usize = 24;

/// Prints in the format that was asked for.
#[derive(Debug)]
pub struct Output {
    format: Format,
    live: bool,
    // The progress line that stands on the terminal now, to be wiped before anything else.
    standing: Mutex<bool>,
}

impl Output {
    /// A printer; progress is drawn only on a terminal and only for people.
    pub fn new(format: Format) -> Self {
        let live = format == Format::Human && io::stderr().is_terminal();
        Self {
            format,
            live,
            standing: Mutex::new(false),
        }
    }

    /// Whether programs read the output.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// A result: a line for people.
    pub fn line(&self, text: &str) {
        self.wipe();
        out(text);
    }

    /// A result: a JSON value for programs, on a line of its own.
    pub fn json(&self, value: &serde_json::Value) {
        self.wipe();
        out(&value.to_string());
    }

    /// What goes on, for people only; not part of the result.
    pub fn note(&self, text: &str) {
        if self.format == Format::Human {
            self.wipe();
            eprintln!("{text}");
        }
    }

    /// What went wrong and what to do, whoever reads.
    pub fn error(&self, text: &str) {
        self.wipe();
        eprintln!("attache: {text}");
    }

    /// A table; sentences are wrapped to fit the terminal, words never: they are copied.
    pub fn table(&self, header: &[&str], rows: Vec<Vec<String>>) {
        self.wipe();
        for line in table(header, rows, width(io::stdout())) {
            out(&line);
        }
    }

    /// A table beside the result, for people only.
    pub fn side_table(&self, header: &[&str], rows: Vec<Vec<String>>) {
        for line in table(header, rows, width(io::stderr())) {
            self.note(&line);
        }
    }

    /// How far a task is: a bar on a terminal, a line elsewhere.
    pub fn progress(&self, fraction: Option<f64>, text: &str) {
        if self.format == Format::Json {
            return;
        }
        if !self.live {
            let percent =
                fraction.map_or(String::new(), |share| format!("{:3.0}% ", share * 100.0));
            eprintln!("  {percent}{}", clean(text));
            return;
        }
        let line = format!("  {} {}", bar(fraction), clean(text));
        let fitting: String = line
            .chars()
            .take(usize::from(width(io::stderr()).unwrap_or(WIDTH)).saturating_sub(1))
            .collect();
        eprint!("\r\x1b[2K{fitting}");
        flush(&mut io::stderr());
        *self.standing.lock() = true;
    }

    /// Takes the progress line off the terminal.
    pub fn wipe(&self) {
        if std::mem::take(&mut *self.standing.lock()) {
            eprint!("\r\x1b[2K");
            flush(&mut io::stderr());
        }
    }
}

/// Lines of a table; `width` is the terminal's, `None` where programs read it: nothing wraps there.
fn table(header: &[&str], rows: Vec<Vec<String>>, width: Option<u16>) -> Vec<String> {
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .map(|row| row.iter().map(|cell| clean(cell)).collect())
        .collect();
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    match width {
        Some(width) => table
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(width),
        None => table.set_content_arrangement(ContentArrangement::Disabled),
    };
    table.set_header(header.iter().map(|text| text.to_uppercase()));
    for row in &rows {
        table.add_row(row);
    }
    for (place, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        let cells = rows.iter().filter_map(|row| row.get(place));
        column.set_constraint(constraint(cells.map(String::as_str)));
    }
    table
        .to_string()
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect()
}

/// An id or address that is cut in the middle cannot be copied: it may run over the edge instead.
fn constraint<'a>(cells: impl Iterator<Item = &'a str> + Clone) -> ColumnConstraint {
    let longest = cells.clone().map(|cell| cell.chars().count()).max();
    let words = cells.flat_map(str::split_whitespace);
    let word = words.map(|word| word.chars().count()).max().unwrap_or(0);
    if longest.is_none_or(|longest| longest <= SHORT || longest == word) {
        return ColumnConstraint::ContentWidth;
    }
    ColumnConstraint::LowerBoundary(Width::Fixed(u16::try_from(word + 2).unwrap_or(u16::MAX)))
}

/// Text of strangers without control characters: a name must not move the cursor.
pub fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && c != '\n' { ' ' } else { c })
        .collect()
}

/// Writes a line; a reader that went away (`| head`) ends the output quietly.
fn out(text: &str) {
    let mut stdout = io::stdout().lock();
    if writeln!(stdout, "{text}").is_ok() {
        flush(&mut stdout);
    }
}

fn flush(to: &mut impl Write) {
    if to.flush().is_err() {
        tracing::trace!("nobody reads the output any more");
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "clamped to 0..=24 columns"
)]
fn bar(fraction: Option<f64>) -> String {
    let Some(share) = fraction else {
        return format!("[{}]", "·".repeat(BAR));
    };
    let share = share.clamp(0.0, 1.0);
    let full = (share * BAR as f64) as usize;
    format!(
        "[{}{}] {:3.0}%",
        "█".repeat(full),
        " ".repeat(BAR - full),
        share * 100.0
    )
}

/// Columns of the terminal that a stream goes to, at least 40; `None`: it goes elsewhere.
fn width(of: impl IsTerminal + AsFd) -> Option<u16> {
    if !of.is_terminal() {
        return None;
    }
    Some(rustix::termios::tcgetwinsize(of).map_or(WIDTH, |size| size.ws_col.max(40)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_keep_their_width() {
        for share in [
            Some(-1.0),
            Some(0.0),
            Some(0.5),
            Some(1.0),
            Some(7.0),
            Some(f64::NAN),
        ] {
            assert_eq!(bar(share).chars().count(), BAR + 2 + 5, "{share:?}");
        }
        assert_eq!(bar(None).chars().count(), BAR + 2);
    }

    #[test]
    fn strangers_do_not_move_the_cursor() {
        assert_eq!(clean("a\x1b[2Jb\r\u{9b}c\nd"), "a [2Jb  c\nd");
    }

    #[test]
    fn words_are_never_cut_and_sentences_fit_the_terminal() {
        let id = "izjquaijrygvcnbvl.01a2053c-c773-74bd-a8fa-3f5ac8454aa6";
        let time = "2026-11-22 21:49:59";
        let skills = "billing.check_balance billing.refund billing.invoice billing.remind_customer";
        let row = vec![id.to_owned(), time.to_owned(), skills.to_owned()];
        for width in [40, 60, 80, 120, 400] {
            let lines = table(&["task", "at", "skills"], vec![row.clone()], Some(width));
            let text = lines.join("\n");
            let words = [id, time].into_iter().chain(skills.split(' '));
            for word in words {
                assert!(text.contains(word), "{word} at {width}:\n{text}");
            }
        }
        let wide = table(&["task", "at", "skills"], vec![row.clone()], Some(110));
        assert!(wide.len() > 2, "nothing was wrapped: {wide:?}");
        assert!(
            wide.iter().all(|line| line.chars().count() <= 110),
            "{wide:?}"
        );
        let piped = table(&["task", "at", "skills"], vec![row], None);
        assert_eq!(piped.len(), 2, "one line per row for programs: {piped:?}");
    }
}
