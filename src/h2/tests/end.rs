//! One end of a connection, played by hand.

use std::collections::HashMap;

use tokio::time::Instant;

use super::list;
use crate::h2::{
    connection::{Config, Connection, Event, Share},
    frame,
    hpack::{Fields, Name},
    slab::{Key, Slab},
};

/// One message as this end has seen it, its stream, and what was told about it.
#[derive(Debug, Default)]
pub(in crate::h2) struct Seen {
    pub(in crate::h2) stream: Option<Key>,
    pub(in crate::h2) log: Vec<String>,
    pub(in crate::h2) body: Vec<u8>,
    pub(in crate::h2) fields: HashMap<String, String>,
    pub(in crate::h2) ended: bool,
    pub(in crate::h2) reset: bool,
    /// Taken from the windows and not given back.
    pub(in crate::h2) unread: u32,
}

/// One end of a connection. Gives connection windows back at once, those of streams if it `reads`.
#[derive(Debug)]
pub(in crate::h2) struct End {
    pub(in crate::h2) connection: Connection,
    pub(in crate::h2) calls: Vec<Seen>,
    pub(in crate::h2) log: Vec<String>,
    pub(in crate::h2) reads: bool,
    pub(in crate::h2) now: Instant,
    keys: Slab<usize>,
    fields: Fields,
    left: Vec<u8>,
}

impl End {
    pub(in crate::h2) fn new(config: Config, now: Instant) -> Self {
        Self {
            connection: Connection::new(config, now),
            calls: Vec::new(),
            log: Vec::new(),
            reads: true,
            now,
            keys: Slab::default(),
            fields: Fields::new(),
            left: Vec::new(),
        }
    }

    /// What it has to say.
    pub(in crate::h2) fn take(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        self.connection.take_output(&mut out, self.now);
        self.connection.written(out.len(), self.now);
        out
    }

    /// Opens a stream; answers the number of its call.
    pub(in crate::h2) fn start(&mut self, request: &Fields, end: bool) -> usize {
        let number = self.calls.len();
        let key = self.keys.insert(number);
        let stream = Some(
            self.connection
                .open((key, Share::ONLY), request, end, self.now),
        );
        self.calls.push(Seen {
            stream,
            ..Seen::default()
        });
        number
    }

    pub(in crate::h2) fn send(&mut self, call: usize, data: &[u8], end: bool) -> usize {
        let Some(stream) = self.calls[call].stream else {
            return 0;
        };
        let mut sent = 0;
        while let Some(more) = self
            .connection
            .send_data(stream, &data[sent..], end, self.now)
        {
            sent += more;
            if sent == data.len() {
                break;
            }
        }
        sent
    }

    pub(in crate::h2) fn fields(
        &mut self,
        call: usize,
        fields: &[(&str, &str)],
        end: bool,
    ) -> bool {
        let stream = self.calls[call].stream.unwrap();
        let interim = fields[0].1.starts_with('1') && fields[0].0 == ":status";
        self.connection
            .send_fields(stream, &list(fields), interim, end)
    }

    /// A whole unary answer.
    pub(in crate::h2) fn answer(&mut self, call: usize, body: &[u8], status: &str) {
        self.fields(
            call,
            &[(":status", "200"), ("content-type", "application/grpc")],
            false,
        );
        self.send(call, body, false);
        self.fields(call, &[("grpc-status", status)], true);
    }

    pub(in crate::h2) fn reset(&mut self, call: usize, code: frame::ErrorCode) {
        let stream = self.calls[call].stream.unwrap();
        self.connection.reset(stream, code);
    }

    /// What was told since, of all calls.
    pub(in crate::h2) fn told(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }

    /// Everything that is whole; what is left waits for more.
    pub(in crate::h2) fn give(&mut self, bytes: &[u8]) -> Result<(), frame::Error> {
        self.left.extend_from_slice(bytes);
        let input = std::mem::take(&mut self.left);
        let mut at = 0;
        loop {
            let taken = self
                .connection
                .receive(&input[at..], &mut self.fields, self.now);
            let (used, event) = taken.inspect_err(|error| self.connection.fail(error))?;
            self.note(event);
            if used == 0 {
                break;
            }
            at += used;
        }
        self.left.extend_from_slice(&input[at..]);
        self.connection
            .note_remainder(!self.left.is_empty(), at > 0, self.now);
        Ok(())
    }

    #[expect(clippy::too_many_lines, reason = "a table of what is noted")]
    fn note(&mut self, event: Event<'_>) {
        let (call, said) = match event {
            Event::Quiet | Event::Eased | Event::Changed => return,
            Event::Request { stream, end } => {
                let number = self.calls.len();
                let key = self.keys.insert(number);
                self.connection.assign(stream, key);
                self.calls.push(Seen {
                    stream: Some(stream),
                    ended: end,
                    ..Seen::default()
                });
                self.note_fields(number);
                let path = String::from_utf8_lossy(self.fields.get(Name::Path).unwrap_or(b"-"));
                (number, format!("request {path} {end}"))
            }
            Event::Oversized { stream } => {
                self.calls.push(Seen {
                    stream: Some(stream),
                    ..Seen::default()
                });
                (self.calls.len() - 1, "oversized".into())
            }
            Event::Fields { call, part, end } => {
                let number = self.number(call);
                self.note_fields(number);
                self.calls[number].ended = end;
                (number, format!("{part:?} {end}"))
            }
            Event::Data {
                call,
                data,
                flow,
                end,
            } => {
                let number = self.number(call);
                self.connection.release_connection(flow);
                let seen = &mut self.calls[number];
                seen.body.extend_from_slice(data);
                seen.ended = end;
                if self.reads {
                    self.connection.release_stream(seen.stream.unwrap(), flow);
                } else {
                    seen.unread += flow;
                }
                (number, format!("data {} {end}", data.len()))
            }
            Event::Reset { call, code, ours } => {
                let number = self.number(call);
                self.calls[number].reset = true;
                (number, format!("reset {code} {ours}"))
            }
            Event::Widened { call } => (self.number(call), "widened".into()),
            Event::GoAway { last, code } => {
                let gone = self.connection.take_unprocessed(last);
                for call in gone {
                    let number = self.number(call);
                    self.calls[number].reset = true;
                    self.calls[number].log.push("unprocessed".into());
                }
                self.log.push(format!("goaway {last} {code}"));
                return;
            }
        };
        self.calls[call].log.push(said.clone());
        self.log.push(said);
    }

    /// Gives the window of a stream back.
    pub(in crate::h2) fn read(&mut self, call: usize) {
        let seen = &mut self.calls[call];
        let unread = std::mem::take(&mut seen.unread);
        self.connection.release_stream(seen.stream.unwrap(), unread);
    }

    fn number(&self, key: Key) -> usize {
        *self.keys.get(key).unwrap()
    }

    fn note_fields(&mut self, number: usize) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let fields = self.fields.iter();
        let fields = fields.map(|field| (text(field.name), text(field.value)));
        self.calls[number].fields.extend(fields);
    }
}
