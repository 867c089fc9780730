//! Lines that tests write, and read again.

use std::{
    io,
    sync::{Arc, Mutex},
};

use serde_json::Value;
use tracing::Level;
use tracing_subscriber::{Layer, filter::LevelFilter, fmt::MakeWriter, layer::SubscriberExt};

/// Where the lines of one test go.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Lines {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Vec<Value> {
        let text = self.text();
        let lines = text.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

/// What `act` logs, in one form or the other.
pub(crate) fn logged(json: bool, act: impl FnOnce()) -> Lines {
    logged_from(Level::TRACE, json, act)
}

/// What `act` logs on this level and above.
pub(crate) fn logged_from(level: Level, json: bool, act: impl FnOnce()) -> Lines {
    let lines = Lines::default();
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(lines.clone())
        .with_ansi(false);
    let level = LevelFilter::from_level(level);
    if json {
        let all = tracing_subscriber::registry().with(layer.json().with_filter(level));
        tracing::subscriber::with_default(all, act);
    } else {
        let all = tracing_subscriber::registry().with(layer.with_filter(level));
        tracing::subscriber::with_default(all, act);
    }
    lines
}
