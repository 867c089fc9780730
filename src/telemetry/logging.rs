//! What is logged, and how: to standard error, never to where results go.
//!
//! Lines for people hold one event each: what others say is in them, and must not be able to look
//! like a line of ours or to move the reader's cursor.

use std::{
    fmt::{self, Write as _},
    io::{self, IsTerminal},
    sync::Arc,
};

use clap::ValueEnum;
use parking_lot::Mutex;
use tracing_subscriber::{
    Layer, Registry,
    field::MakeExt,
    filter::{LevelFilter, Targets},
    fmt::{format::debug_fn, layer as lines},
    layer::SubscriberExt,
    reload,
    util::SubscriberInitExt,
};

use super::{
    lines::Lines,
    otlp::{BoxedLayer, Traces},
    span,
};

/// Most bytes of a filter.
pub const FILTER_MAX: usize = 1024;

/// How logs are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    #[default]
    Human,
    /// One JSON object per line
    Json,
}

/// Why nothing is logged as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Not a filter.
    #[error(
        "{filter:?} is no filter: {why}; write a level (error, warn, info, debug, trace) or attache=debug,info"
    )]
    Filter {
        /// What was asked for, cut.
        filter: String,
        /// What is wrong.
        why: String,
    },
    /// The process has another way to log.
    #[error("this process' log cannot be changed")]
    Fixed,
}

/// Changes what a running process logs. Clones are the same; the default changes nothing.
#[derive(Clone, Default)]
pub struct LogControl {
    held: Option<Arc<Held>>,
    counted: Lines,
}

struct Held {
    handle: reload::Handle<Targets, Registry>,
    filter: Mutex<String>,
}

impl LogControl {
    /// Counts of what was written.
    pub fn lines(&self) -> &Lines {
        &self.counted
    }

    /// The filter in force; `None` where it cannot be changed.
    pub fn filter(&self) -> Option<String> {
        self.held.as_ref().map(|held| held.filter.lock().clone())
    }

    /// Puts another filter in force, for all threads at once, and gives the one before.
    ///
    /// # Errors
    /// When it cannot be read, or the process has another way to log.
    pub fn set(&self, filter: &str) -> Result<String, LogError> {
        let held = self.held.as_ref().ok_or(LogError::Fixed)?;
        let targets = parse(filter)?;
        let mut current = held.filter.lock();
        tracing::warn!(from = *current, to = filter, "the log's filter changes");
        held.handle.reload(targets).map_err(|_| LogError::Fixed)?;
        Ok(std::mem::replace(&mut current, filter.to_owned()))
    }
}

impl fmt::Debug for LogControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogControl").field(&self.filter()).finish()
    }
}

/// Starts logging, and recording spans where `traces` are on, for the whole process.
///
/// # Errors
/// When the filter cannot be read, or something else logs already.
pub fn start(filter: &str, format: LogFormat, traces: &Traces) -> Result<LogControl, LogError> {
    let (layer, control) = layer(filter, format, io::stderr, io::stderr().is_terminal())?;
    tracing_subscriber::registry()
        .with(all(layer, traces))
        .try_init()
        .map_err(|_| LogError::Fixed)?;
    Ok(control)
}

/// One list: a layer that may be missing would make every span count as wanted.
fn all(lines: BoxedLayer, traces: &Traces) -> Vec<BoxedLayer> {
    std::iter::once(lines).chain(traces.layer()).collect()
}

fn layer<W>(
    filter: &str,
    format: LogFormat,
    writer: W,
    colours: bool,
) -> Result<(BoxedLayer, LogControl), LogError>
where
    W: for<'a> tracing_subscriber::fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    let (changeable, handle) = reload::Layer::new(parse(filter)?);
    let counted = Lines::default();
    let writer = counted.counting(writer);
    let lines = lines().with_writer(writer).with_ansi(colours);
    let fields = debug_fn(|writer, field, value| match field.name() {
        "message" => write!(Clean(writer), "{value:?}"),
        name => write!(Clean(writer), "{name}={value:?}"),
    });
    let lines = match format {
        LogFormat::Human => lines
            .fmt_fields(fields.delimited(" "))
            .with_filter(changeable)
            .boxed(),
        LogFormat::Json => lines.json().with_filter(changeable).boxed(),
    };
    let held = Held {
        handle,
        filter: Mutex::new(filter.to_owned()),
    };
    let held = Some(Arc::new(held));
    Ok((lines, LogControl { held, counted }))
}

/// A log that goes nowhere and can be changed while the layer lives.
#[cfg(test)]
pub(crate) fn changeable(filter: &str) -> (BoxedLayer, LogControl) {
    layer(filter, LogFormat::Human, io::sink, false).expect("a filter")
}

/// Reads levels and `target=level` pairs. A bare word that is no level would be a target of which
/// everything is wanted: more likely it is a mistake.
fn parse(filter: &str) -> Result<Targets, LogError> {
    let wrong = |why: String| LogError::Filter {
        filter: filter.chars().take(80).collect(),
        why,
    };
    if filter.len() > FILTER_MAX {
        return Err(wrong(format!("longer than {FILTER_MAX} bytes")));
    }
    for word in filter.split(',') {
        let level = word.rsplit('=').next().unwrap_or(word);
        if level.is_empty() || level.parse::<LevelFilter>().is_err() || word.starts_with('=') {
            return Err(wrong(format!("{word:?} is no level and no target=level")));
        }
    }
    let targets: Targets = filter.parse().map_err(|error| wrong(format!("{error}")))?;
    // Spans are for the exporter: they would cost every task, and stand in no line.
    Ok(targets.with_target(span::TARGET, LevelFilter::OFF))
}

/// Writes what may hold anything as what holds one line.
struct Clean<W>(W);

impl<W: fmt::Write> fmt::Write for Clean<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for letter in text.chars() {
            if letter.is_control() || moves_the_reader(letter) {
                write!(self.0, "{}", letter.escape_default())?;
            } else {
                self.0.write_char(letter)?;
            }
        }
        Ok(())
    }
}

/// Ends a line, or turns the direction of what follows.
fn moves_the_reader(letter: char) -> bool {
    matches!(letter, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    /// What was written.
    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Paper {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    impl Paper {
        fn take(&self) -> String {
            String::from_utf8(std::mem::take(&mut *self.0.lock())).unwrap()
        }
    }

    fn logged(
        filter: &str,
        format: LogFormat,
        say: impl FnOnce(&LogControl, &Paper),
    ) -> Result<(), LogError> {
        let paper = Paper::default();
        let (layer, control) = layer(filter, format, paper.clone(), true)?;
        let subscriber = tracing_subscriber::registry().with(all(layer, &Traces::default()));
        tracing::subscriber::with_default(subscriber, || say(&control, &paper));
        Ok(())
    }

    /// What a peer might send to forge a line, hide one, or move the cursor.
    const HOSTILE: &str =
        "x\n2026-01-01T00:00:00Z  INFO attache: forged\r\x1b[2J\u{7}\u{9b}31m\u{202e}\u{2028}é";

    #[test]
    fn what_others_say_stays_within_its_line() {
        for format in [LogFormat::Human, LogFormat::Json] {
            logged("info", format, |_, paper| {
                let error = io::Error::other(HOSTILE);
                tracing::info!(task = HOSTILE, shown = %HOSTILE, debugged = ?HOSTILE, %error, "told {HOSTILE}");
                let line = paper.take();
                let inner = line.strip_suffix('\n').unwrap();
                // The colours of the level are ours.
                let ours = inner.replace("\u{1b}[2m", "").replace("\u{1b}[0m", "").replace("\u{1b}[32m", "");
                let bad = ours.chars().find(|c| c.is_control() || moves_the_reader(*c));
                // JSON readers take C1 and the like as data.
                let fine = format == LogFormat::Json && bad.is_none_or(|c| c > '\u{7e}');
                assert!(bad.is_none() || fine, "{bad:?} in {line:?}");
                assert!(line.contains('é'), "{line}");
                if format == LogFormat::Json {
                    let json: serde_json::Value = serde_json::from_str(&line).unwrap();
                    assert_eq!(json["fields"]["task"], HOSTILE);
                }
            })
            .unwrap();
        }
    }

    #[test]
    fn the_filter_changes_while_the_process_runs() {
        logged("info", LogFormat::Human, |control, paper| {
            tracing::debug!("one");
            assert_eq!(paper.take(), "");
            assert_eq!(control.set("attache=debug,error").unwrap(), "info");
            assert!(paper.take().contains("the log's filter changes"));
            tracing::debug!("two");
            assert!(paper.take().contains("two"));
            assert_eq!(control.filter().as_deref(), Some("attache=debug,error"));
            assert!(control.set("attache=loud").is_err());
            tracing::debug!("three");
            assert!(paper.take().contains("three"));
            control.set("off").unwrap();
            drop(paper.take());
            tracing::error!("four");
            assert_eq!(paper.take(), "");
        })
        .unwrap();
        assert!(matches!(
            LogControl::default().set("info"),
            Err(LogError::Fixed)
        ));
    }

    #[test]
    fn spans_for_the_exporter_are_nothing_to_the_log() {
        for filter in ["trace", "attache::trace=trace", "attache=trace"] {
            logged(filter, LogFormat::Human, |_, paper| {
                let work = span::Work::submit(None, "SubmitTask", &"i1.x");
                assert!(work.context().is_none());
                // Not asked of `tracing`, whose answer depends on subscribers of other tests.
                let wanted = parse(filter).unwrap();
                assert!(!wanted.would_enable(span::TARGET, &tracing::Level::INFO));
                assert_eq!(paper.take(), "");
            })
            .unwrap();
        }
    }

    #[test]
    fn filters_that_would_be_misread_are_refused() {
        for good in [
            "info",
            "OFF",
            "attache=debug",
            "attache::task=trace,h2=off,warn",
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
        let long = "a=info,".repeat(FILTER_MAX);
        for bad in [
            "", "inof", "attache", "attache=", "=info", "info,", "a=b=c", "a\nb", &long,
        ] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.contains("attache=debug,info"), "{bad}: {error}");
            assert!(error.len() < 400, "{error}");
        }
    }
}
