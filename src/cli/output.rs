//! The only place that prints. Results go to standard output, everything else to standard error.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is the printer"
)]

use std::io::{self, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use parking_lot::Mutex;

use super::args::Format;

/// Widest progress bar, in columns.
const BAR: usize = 24;
/// Width where the terminal does not tell.
const WIDTH: u16 = 100;

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

    /// A table that fits the terminal.
    pub fn table(&self, header: &[&str], rows: Vec<Vec<String>>) {
        self.wipe();
        for line in table(header, rows) {
            out(&line);
        }
    }

    /// A table beside the result, for people only.
    pub fn side_table(&self, header: &[&str], rows: Vec<Vec<String>>) {
        for line in table(header, rows) {
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
            .take(usize::from(width()).saturating_sub(1))
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

fn table(header: &[&str], rows: Vec<Vec<String>>) -> Vec<String> {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic);
    table
        .set_width(width())
        .set_header(header.iter().map(|text| text.to_uppercase()));
    for row in rows {
        table.add_row(row.iter().map(|cell| clean(cell)));
    }
    table
        .to_string()
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect()
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

fn width() -> u16 {
    rustix::termios::tcgetwinsize(io::stdout()).map_or(WIDTH, |size| size.ws_col.max(40))
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
}
