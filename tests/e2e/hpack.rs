//! Header compression against a foreign implementation, both ways on one connection.

use std::{
    io::{BufRead, BufReader, Lines, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use attache::h2::hpack::{Decoder, Encoder, Fields, Fit, Limits};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use crate::support::{
    skip::skip,
    tools::{fetched, root},
};

/// Lists that are sent each way.
const LISTS: usize = 1500;

/// The other end: `tests/polyglot/python/fields.py`.
struct Foreign {
    process: Child,
    asks: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Foreign {
    /// `None` where Python has no such library.
    fn start(test: &str) -> Option<Self> {
        let python = fetched("python/bin/python", test)?;
        let there = Command::new(&python).args(["-c", "import hpack"]).output();
        if !there.is_ok_and(|ran| ran.status.success()) {
            skip(test, "no hpack for Python: tests/run fetches it");
            return None;
        }
        Some(Self::run(&python))
    }

    fn run(python: &Path) -> Self {
        let mut process = Command::new(python)
            .arg(root().join("tests/polyglot/python/fields.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            asks: process.stdin.take().unwrap(),
            answers: BufReader::new(process.stdout.take().unwrap()).lines(),
            process,
        }
    }

    fn ask(&mut self, ask: &Value) -> Value {
        writeln!(self.asks, "{ask}").unwrap();
        serde_json::from_str(&self.answers.next().unwrap().unwrap()).unwrap()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

fn octets(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

/// A list as the other end writes it.
fn written(fields: &Fields) -> Value {
    fields
        .iter()
        .map(|field| json!([hex(field.name), hex(field.value), field.never_indexed]))
        .collect()
}

const NAMES: [&str; 16] = [
    ":method",
    ":path",
    ":status",
    ":authority",
    "authorization",
    "content-type",
    "grpc-timeout",
    "grpc-status",
    "traceparent",
    "user-agent",
    "x-data-bin",
    "x-a",
    "x-b",
    "x-c",
    "x-longer-name",
    "accept-encoding",
];

/// Names and values that come again, and some that never do.
fn any_list(chance: &mut StdRng) -> Fields {
    let mut fields = Fields::new();
    for _ in 0..chance.random_range(0..14) {
        let name = match chance.random_range(0..8) {
            0 => format!("x-name-{}", chance.random_range(0..500)),
            _ => NAMES[chance.random_range(0..NAMES.len())].to_owned(),
        };
        let value: Vec<u8> = match chance.random_range(0..10) {
            0 => Vec::new(),
            1..=5 => format!("value {}", chance.random_range(0..20)).into_bytes(),
            6 => b"POST".to_vec(),
            7 => vec![b'l'; chance.random_range(100..3000)],
            _ => (0..chance.random_range(0..60))
                .map(|_| chance.random())
                .collect(),
        };
        fields.push(name.as_bytes(), &value);
    }
    fields
}

#[test]
fn python_and_we_read_each_other() {
    let Some(mut foreign) = Foreign::start("hpack::python_and_we_read_each_other") else {
        return;
    };
    let mut chance = StdRng::seed_from_u64(7541);
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(1 << 16));
    let limits = Limits {
        list: 1 << 20,
        unfolded: 1 << 21,
        ..Limits::default()
    };
    let (mut block, mut arrived, mut indexed) = (Vec::new(), Fields::new(), 0);
    let mut size = 4096;
    for at in 0..LISTS {
        // Shrunk and grown, at times twice between two blocks. Never to what it is: that library
        // forgets then to tell of the change before.
        for _ in 0..chance.random_range(0..20_usize).saturating_sub(17) {
            let sizes = [0, 64, 300, 1000, 4096, 20_000];
            let others: Vec<u32> = sizes.into_iter().filter(|other| *other != size).collect();
            size = others[chance.random_range(0..others.len())];
            foreign.ask(&json!({ "table": size }));
            encoder.set_table_max(size);
        }
        let fields = any_list(&mut chance);
        block.clear();
        encoder.encode(&fields, &mut block);
        indexed += usize::from(block.iter().any(|octet| *octet > 0xbd));
        let read = foreign.ask(&json!({"decode": hex(&block)}));
        assert_eq!(read["fields"], written(&fields), "{at}: {read}");

        let fields = any_list(&mut chance);
        let ask = json!({"encode": written(&fields), "huffman": chance.random::<bool>()});
        let answer = foreign.ask(&ask);
        let block = octets(answer["block"].as_str().unwrap());
        let fit = decoder.decode(&block, &limits, &mut arrived);
        assert_eq!(fit, Ok(Fit::Whole), "{at}");
        assert_eq!(written(&arrived), written(&fields), "{at}");
    }
    assert!(indexed > LISTS / 10, "tables were used: {indexed}");
    // And it knows a block of ours from one that is none.
    let refused = foreign.ask(&json!({"decode": "80"}));
    assert!(refused["error"].is_string(), "{refused}");
}
