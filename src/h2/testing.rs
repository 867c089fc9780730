//! For tests: one end of a connection, played by hand, and a world of them around an exchange.

use std::collections::HashMap;

use tokio::time::Instant;

use super::{
    connection::{Config, Connection, Event},
    exchange::{
        Destination, Exchange, GivenBack, Onward, Outcome, Policy, Request, Target, Verdict,
    },
    frame,
    grpc::Code,
    hpack::{Fields, Name},
    slab::{Key, Slab},
};

/// A list of fields from text.
pub(super) fn list(fields: &[(&str, &str)]) -> Fields {
    let mut list = Fields::new();
    for (name, value) in fields {
        list.push(name.as_bytes(), value.as_bytes());
    }
    list
}

/// A gRPC request.
pub(super) fn request(path: &str) -> Fields {
    list(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "x"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ])
}

/// One message as this end has seen it, its stream, and what was told about it.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) stream: Option<Key>,
    pub(super) log: Vec<String>,
    pub(super) body: Vec<u8>,
    pub(super) fields: HashMap<String, String>,
    pub(super) ended: bool,
    pub(super) reset: bool,
    /// Taken from the windows and not given back.
    pub(super) unread: u32,
}

/// One end of a connection. Gives connection windows back at once, those of streams if it `reads`.
#[derive(Debug)]
pub(super) struct End {
    pub(super) connection: Connection,
    pub(super) calls: Vec<Seen>,
    pub(super) log: Vec<String>,
    pub(super) reads: bool,
    pub(super) now: Instant,
    keys: Slab<usize>,
    fields: Fields,
    left: Vec<u8>,
}

impl End {
    pub(super) fn new(config: Config, now: Instant) -> Self {
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
    pub(super) fn take(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        self.connection.take_output(&mut out, self.now);
        self.connection.written(out.len(), self.now);
        out
    }

    /// Opens a stream; answers the number of its call.
    pub(super) fn start(&mut self, request: &Fields, end: bool) -> usize {
        let number = self.calls.len();
        let key = self.keys.insert(number);
        let stream = Some(self.connection.open(key, request, end));
        self.calls.push(Seen {
            stream,
            ..Seen::default()
        });
        number
    }

    pub(super) fn send(&mut self, call: usize, data: &[u8], end: bool) -> usize {
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

    pub(super) fn fields(&mut self, call: usize, fields: &[(&str, &str)], end: bool) -> bool {
        let stream = self.calls[call].stream.unwrap();
        let interim = fields[0].1.starts_with('1') && fields[0].0 == ":status";
        self.connection
            .send_fields(stream, &list(fields), interim, end)
    }

    /// A whole unary answer.
    pub(super) fn answer(&mut self, call: usize, body: &[u8], status: &str) {
        self.fields(
            call,
            &[(":status", "200"), ("content-type", "application/grpc")],
            false,
        );
        self.send(call, body, false);
        self.fields(call, &[("grpc-status", status)], true);
    }

    pub(super) fn reset(&mut self, call: usize, code: frame::ErrorCode) {
        let stream = self.calls[call].stream.unwrap();
        self.connection.reset(stream, code);
    }

    /// What was told since, of all calls.
    pub(super) fn told(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }

    /// Everything that is whole; what is left waits for more.
    pub(super) fn give(&mut self, bytes: &[u8]) -> Result<(), frame::Error> {
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
    pub(super) fn read(&mut self, call: usize) {
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

/// Routes by path and remembers everything: `/t/N/..` goes to target N, `/local` to the pipe,
/// anything else nowhere.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    pub(super) begun: usize,
    pub(super) again: Vec<GivenBack>,
    pub(super) outcomes: Vec<Outcome>,
    pub(super) upstream: Option<Config>,
}

impl Policy for Recorder {
    type Peer = ();
    type Call = String;

    fn on_request(&mut self, (): &(), request: &mut Request<'_>) -> (Verdict, String) {
        self.begun += 1;
        let path = String::from_utf8_lossy(request.fields.get(Name::Path).unwrap()).into_owned();
        request.fields.retain(|field| field.name != b"x-strip");
        request.fields.push(b"x-stamp", b"stamped");
        let verdict = match path.split('/').nth(1) {
            Some("t") => {
                let number = path.split('/').nth(2).unwrap();
                Verdict::Forward(Target(number.parse().unwrap()))
            }
            Some("local") => Verdict::Local,
            _ => Verdict::Reply(Code::UNIMPLEMENTED, "no such path".into()),
        };
        (verdict, path)
    }

    fn on_again(&mut self, path: &mut String, _: &mut Request<'_>, why: GivenBack) -> Verdict {
        self.again.push(why);
        let number = path
            .split('/')
            .nth(2)
            .and_then(|number| number.parse().ok());
        number.map_or(Verdict::Local, |number| Verdict::Forward(Target(number)))
    }

    fn on_response(&mut self, _: &mut String, fields: &mut Fields, _: bool) -> Onward {
        if fields.iter().any(|field| field.name == b"x-again") {
            return Onward::Again;
        }
        Onward::Pass
    }

    fn on_trailers(&mut self, _: &mut String, fields: &mut Fields) {
        fields.push(b"x-trailed", b"yes");
    }

    fn on_end(&mut self, _: String, outcome: &Outcome) {
        self.outcomes.push(*outcome);
    }

    fn config(&self, target: Option<Target>) -> Config {
        let upstream = self.upstream.clone().unwrap_or_else(Config::upstream);
        target.map_or_else(Config::agent, |_| upstream)
    }
}

/// An exchange, callers, and those who answer.
#[derive(Debug)]
pub(super) struct World {
    pub(super) exchange: Exchange<Recorder>,
    pub(super) now: Instant,
    pub(super) callers: Vec<(Key, End)>,
    pub(super) answering: Vec<(Key, Destination, End)>,
    /// Bytes are given in pieces of this size.
    pub(super) piece: usize,
    /// What those who answer say first.
    pub(super) server: Config,
    /// Nobody can be reached.
    pub(super) unreachable: bool,
    /// What the exchange has not read yet, per line.
    left: HashMap<Key, Vec<u8>>,
}

impl World {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            exchange: Exchange::new(Recorder::default(), now),
            now,
            callers: Vec::new(),
            answering: Vec::new(),
            piece: 1 << 20,
            server: Config::mesh(),
            unreachable: false,
            left: HashMap::new(),
        }
    }

    /// Somebody connects; answers the number.
    pub(super) fn caller(&mut self) -> usize {
        let line = self.exchange.accept((), Config::caller(), self.now);
        self.callers
            .push((line, End::new(Config::agent(), self.now)));
        self.run();
        self.callers.len() - 1
    }

    pub(super) fn client(&mut self, caller: usize) -> &mut End {
        &mut self.callers[caller].1
    }

    pub(super) fn server(&mut self, answering: usize) -> &mut End {
        &mut self.answering[answering].2
    }

    /// Moves bytes until nobody has anything to say.
    pub(super) fn run(&mut self) {
        while self.step() {}
    }

    /// One round. Answers whether anything moved.
    pub(super) fn step(&mut self) -> bool {
        let mut moved = self.dial();
        let mut ends: Vec<(Key, &mut End)> = self
            .callers
            .iter_mut()
            .map(|(line, end)| (*line, end))
            .chain(self.answering.iter_mut().map(|(line, _, end)| (*line, end)))
            .collect();
        let mut out = Vec::new();
        for (line, end) in &mut ends {
            end.now = self.now;
            let said = end.take();
            moved |= !said.is_empty();
            for piece in said.chunks(self.piece.max(1)) {
                let left = self.left.entry(*line).or_default();
                left.extend_from_slice(piece);
                let used = self.exchange.receive(*line, left, self.now);
                left.drain(..used);
            }
            out.clear();
            while self.exchange.take_output(*line, &mut out, self.now) {
                moved = true;
                self.exchange.written(*line, out.len(), self.now);
                for piece in out.chunks(self.piece.max(1)) {
                    if end.give(piece).is_err() {
                        break;
                    }
                }
                out.clear();
            }
        }
        self.exchange.take_dirty(&mut Vec::new());
        moved
    }

    fn dial(&mut self) -> bool {
        let mut dialed = false;
        while let Some(dial) = self.exchange.next_dial() {
            dialed = true;
            if self.unreachable {
                self.exchange.closed(dial.line, self.now);
                continue;
            }
            self.exchange.connected(dial.line, self.now);
            let end = End::new(self.server.clone(), self.now);
            self.answering.push((dial.line, dial.to, end));
        }
        dialed
    }

    /// The connection of somebody who answers breaks.
    pub(super) fn cut(&mut self, answering: usize) -> End {
        let (line, _, end) = self.answering.remove(answering);
        self.exchange.closed(line, self.now);
        end
    }

    pub(super) fn outcomes(&mut self) -> Vec<Outcome> {
        std::mem::take(&mut self.exchange.policy().outcomes)
    }
}
