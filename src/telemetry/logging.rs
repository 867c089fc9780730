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

use super::{otlp::TraceLayer, otlp::Traces, span};

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

type Under = tracing_subscriber::layer::Layered<Option<TraceLayer>, Registry>;

/// Changes what a running process logs. Clones are the same; the default changes nothing.
#[derive(Clone, Default)]
pub struct LogControl {
    held: Option<Arc<Held>>,
}

struct Held {
    handle: reload::Handle<Targets, Under>,
    filter: Mutex<String>,
}

impl LogControl {
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
        .with(traces.layer())
        .with(layer)
        .try_init()
        .map_err(|_| LogError::Fixed)?;
    Ok(control)
}

fn layer<W>(
    filter: &str,
    format: LogFormat,
    writer: W,
    colours: bool,
) -> Result<(Box<dyn Layer<Under> + Send + Sync>, LogControl), LogError>
where
    W: for<'a> tracing_subscriber::fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    let (changeable, handle) = reload::Layer::new(parse(filter)?);
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
    Ok((lines, LogControl { held }))
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
        if level.parse::<LevelFilter>().is_err() || word.starts_with('=') {
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
