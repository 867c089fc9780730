//! An exchange, callers, and those who answer.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use super::End;
use crate::h2::{
    connection::Config,
    exchange::{
        Destination, Exchange, GivenBack, Onward, Outcome, Policy, Request, Target, Verdict,
    },
    grpc::Code,
    hpack::{Fields, Name},
    slab::Key,
};

/// Routes by path and remembers everything: `/t/N/..` goes to target N, `/local` to the pipe,
/// anything else nowhere.
#[derive(Debug, Default)]
pub(in crate::h2) struct Recorder {
    pub(in crate::h2) begun: usize,
    pub(in crate::h2) again: Vec<GivenBack>,
    pub(in crate::h2) outcomes: Vec<Outcome>,
    pub(in crate::h2) upstream: Option<Config>,
    /// Of those who connect from now on.
    pub(in crate::h2) name: Option<u64>,
}

impl Policy for Recorder {
    type Peer = ();
    type Call = String;

    fn caller(&self, (): &()) -> Option<u64> {
        self.name
    }

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
        if path.ends_with("/rest") && why != GivenBack::Rested {
            return Verdict::Later(Duration::from_millis(50));
        }
        if path.ends_with("/never") {
            return Verdict::Later(Duration::from_secs(3));
        }
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
pub(in crate::h2) struct World {
    pub(in crate::h2) exchange: Exchange<Recorder>,
    pub(in crate::h2) now: Instant,
    pub(in crate::h2) callers: Vec<(Key, End)>,
    pub(in crate::h2) answering: Vec<(Key, Destination, End)>,
    /// Bytes are given in pieces of this size.
    pub(in crate::h2) piece: usize,
    /// What those who answer say first.
    pub(in crate::h2) server: Config,
    /// Nobody can be reached.
    pub(in crate::h2) unreachable: bool,
    /// What the exchange has not read yet, per line.
    left: HashMap<Key, Vec<u8>>,
}

impl World {
    pub(in crate::h2) fn new() -> Self {
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
    pub(in crate::h2) fn caller(&mut self) -> usize {
        self.caller_at(Config::caller())
    }

    /// The same at a door of this kind.
    pub(in crate::h2) fn caller_at(&mut self, door: Config) -> usize {
        let line = self.exchange.accept((), door, self.now);
        self.callers
            .push((line, End::new(Config::agent(), self.now)));
        self.run();
        self.callers.len() - 1
    }

    pub(in crate::h2) fn client(&mut self, caller: usize) -> &mut End {
        &mut self.callers[caller].1
    }

    pub(in crate::h2) fn server(&mut self, answering: usize) -> &mut End {
        &mut self.answering[answering].2
    }

    /// Moves bytes until nobody has anything to say.
    pub(in crate::h2) fn run(&mut self) {
        while self.step() {}
    }

    /// One round. Answers whether anything moved.
    pub(in crate::h2) fn step(&mut self) -> bool {
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
    pub(in crate::h2) fn cut(&mut self, answering: usize) -> End {
        let (line, _, end) = self.answering.remove(answering);
        self.exchange.closed(line, self.now);
        end
    }

    pub(in crate::h2) fn outcomes(&mut self) -> Vec<Outcome> {
        std::mem::take(&mut self.exchange.policy().outcomes)
    }
}
