//! What a call costs in memory: nothing, once the buffers have grown.

use crate::h2::{
    connection::{Config, Connection, Event, Share},
    exchange::{Exchange, GivenBack, Outcome, Policy, Request, Target, Verdict},
    hpack::Fields,
    slab::{Key, Slab},
    tests::{list, request},
};

#[derive(Debug)]
struct Straight;

impl Policy for Straight {
    type Peer = ();
    type Call = ();

    fn on_request(&mut self, (): &(), request: &mut Request<'_>) -> (Verdict, ()) {
        request.fields.push(b"x-stamp", b"stamped");
        (Verdict::Forward(Target(1)), ())
    }

    fn on_again(&mut self, (): &mut (), _: &mut Request<'_>, _: GivenBack) -> Verdict {
        Verdict::Forward(Target(1))
    }

    fn on_end(&mut self, (): (), _: &Outcome) {}
}

fn key() -> Key {
    Slab::default().insert(())
}

/// Takes what an end says and gives it to the exchange, which is counted; answers what it says.
fn turn(
    exchange: &mut Exchange<Straight>,
    line: Key,
    end: &mut Connection,
    buffers: (&mut Vec<u8>, &mut Vec<u8>),
    allocations: &mut u64,
) {
    let (said, out) = buffers;
    let now = tokio::time::Instant::now();
    said.clear();
    end.take_output(said, now);
    end.written(said.len(), now);
    let counted = allocation_counter::measure(|| {
        let used = exchange.receive(line, said, now);
        assert_eq!(used, said.len());
        while let Some(dial) = exchange.next_dial() {
            exchange.connected(dial.line, now);
        }
        out.clear();
        exchange.take_output(line, out, now);
        exchange.written(line, out.len(), now);
        exchange.dirty.clear();
    });
    *allocations += counted.count_total;
}

#[test]
fn a_forwarded_call_allocates_nothing() {
    let now = tokio::time::Instant::now();
    let mut exchange = Exchange::new(Straight, now);
    let caller = exchange.accept((), Config::caller(), now);
    let mut client = Connection::new(Config::agent(), now);
    let mut server = Connection::new(Config::mesh(), now);
    let (mut fields, mut open) = (Fields::new(), None);
    let (mut said, mut out, mut taken) = (Vec::new(), Vec::new(), Vec::new());
    let mut allocations = 0;
    let mut target = None;
    for round in 0..300 {
        if round == 200 {
            allocations = 0;
        }
        if round > 1 {
            let mut request = request("/s/m");
            request.push(b"grpc-timeout", format!("{}m", 1000 + round).as_bytes());
            let stream = client.open((key(), Share::ONLY), &request, false, now);
            assert_eq!(client.send_data(stream, &[7; 128], true, now), Some(128));
        }
        let mut bytes = 0;
        // There and back, until both are quiet.
        for _ in 0..4 {
            turn(
                &mut exchange,
                caller,
                &mut client,
                (&mut said, &mut out),
                &mut allocations,
            );
            give(&mut client, &out, &mut fields, &mut open, &mut bytes);
            if round == 0 && target.is_none() {
                let first = client.open((key(), Share::ONLY), &request("/s/m"), true, now);
                client.send_data(first, b"", true, now);
                target = Some(());
                continue;
            }
            let line = upstream(&exchange);
            turn(
                &mut exchange,
                line,
                &mut server,
                (&mut said, &mut taken),
                &mut allocations,
            );
            give(&mut server, &taken, &mut fields, &mut open, &mut bytes);
            if let Some(stream) = open.take() {
                server.send_fields(stream, &list(&[(":status", "200")]), false, false);
                server.send_data(stream, &[8; 128], false, now);
                server.send_fields(stream, &list(&[("grpc-status", "0")]), false, true);
            }
        }
        assert!(
            round < 2 || bytes == 256,
            "round {round}: {bytes} bytes came through"
        );
    }
    assert_eq!(exchange.calls(), 0);
    assert_eq!(allocations, 0, "for 100 calls");
}

fn upstream(exchange: &Exchange<Straight>) -> Key {
    exchange.targets[&Target(1)]
}

fn give(
    end: &mut Connection,
    bytes: &[u8],
    fields: &mut Fields,
    open: &mut Option<Key>,
    counted: &mut usize,
) {
    let now = tokio::time::Instant::now();
    let mut at = 0;
    loop {
        let (used, event) = end.receive(&bytes[at..], fields, now).unwrap();
        match event {
            Event::Request { stream, .. } => {
                end.assign(stream, key());
                *open = Some(stream);
            }
            Event::Data { data, flow, .. } => {
                *counted += data.len();
                end.release_connection(flow);
            }
            Event::Quiet
            | Event::Eased
            | Event::Changed
            | Event::Oversized { .. }
            | Event::Fields { .. }
            | Event::Reset { .. }
            | Event::Widened { .. }
            | Event::GoAway { .. } => {}
        }
        if used == 0 {
            return;
        }
        at += used;
    }
}
