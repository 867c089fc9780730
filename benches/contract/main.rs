//! What it costs to hold a task to its skill's schemas: `cargo bench --bench contract`.
//!
//! One line each: the least of the means of five rounds. The last ones are values as large as a check
//! takes at all; they show how long a thread is held up at worst.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench prints, and ends where something is wrong"
)]

use std::time::Duration;

use attache::{
    contract::{Contract, Side},
    pb::{self, part::Content},
};
use serde_json::{Value, json};
use tokio::time::Instant;

/// How long a round takes.
const ROUND: Duration = Duration::from_millis(200);

fn main() {
    // Benches are also run as tests, to see that they still run.
    let round = if std::env::args().any(|word| word == "--test") {
        Duration::ZERO
    } else {
        ROUND
    };
    let order = order().to_string();
    figure(round, "compile a schema of 20 rules", || {
        drop(contract(&order));
    });
    let orders = contract(&order);
    for count in [2, 1000] {
        let item = json!({"price": 1.5, "count": 2});
        let parts = [part(
            &json!({"customer": "acme", "items": vec![item; count]}),
        )];
        let bytes = prost::Message::encoded_len(&parts[0]);
        figure(
            round,
            &format!("check {count} items, {bytes} bytes"),
            || {
                orders.check(Side::Input, &parts, &[]).unwrap();
            },
        );
    }
    let wrong = [part(&json!({"customer": "ACME", "items": []}))];
    figure(round, "find and tell two breaches", || {
        let broken = orders.check(Side::Input, &wrong, &[]).unwrap_err();
        assert!(!broken.sentence("shop.order").is_empty());
    });
    let none = Contract::default();
    figure(round, "no schema", || {
        none.check(Side::Input, &wrong, &[]).unwrap();
    });
    worst(round);
}

/// Close to the bound of a check.
fn worst(round: Duration) {
    let words = part(&json!(vec!["w".repeat(10); 30_000]));
    let lengths: Vec<Value> = (0..14).map(|n| json!({"minLength": n / 4})).collect();
    let listed = (0..26).map(|n| format!("wwwwwwwww{n}"));
    let listed: Vec<String> = listed.chain(["w".repeat(10)]).collect();
    let pattern = "^(w|ww|www|wwww|x{1,40}y|w{1,9}|[a-w]{1,5}[^a]|(w?w?w?w?)x|[aw]{2,7})+$";
    for (name, items) in [
        ("many lengths", json!({ "allOf": lengths })),
        ("a long enum", json!({ "enum": listed })),
        ("a long pattern", json!({ "pattern": pattern })),
        (
            "many patterns",
            json!({"allOf": [
                {"pattern": "w+x?$"}, {"pattern": "^.*w.*w.*$"}, {"pattern": "(w|ww)*$"},
            ]}),
        ),
    ] {
        let schema = contract(&json!({ "items": items }).to_string());
        let parts = std::slice::from_ref(&words);
        schema.check(Side::Input, parts, &[]).unwrap();
        figure(round, &format!("30,000 strings, {name}"), || {
            schema.check(Side::Input, parts, &[]).unwrap();
        });
    }
    // Each level is tried by either branch, and fails at the last.
    let branch = json!({"properties": {"a": {"$ref": "#"}}, "required": ["b"]});
    let tree = contract(&json!({ "anyOf": [branch, branch] }).to_string());
    let mut value = json!({});
    for _ in 0..14 {
        value = json!({ "a": value });
    }
    let parts = [part(&value)];
    figure(
        round,
        "14 levels, each tried twice, and the breaches",
        || {
            tree.check(Side::Input, &parts, &[]).unwrap_err();
        },
    );
}

fn figure(round: Duration, name: &str, mut work: impl FnMut()) {
    let begun = Instant::now();
    work();
    // So many at a time that looking at the clock costs nothing beside them.
    let each = begun.elapsed().as_nanos().max(1);
    let batch = u32::try_from(round.as_nanos() / each / 10).unwrap_or(u32::MAX);
    let batch = batch.clamp(1, 100_000);
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let (begun, mut turns) = (Instant::now(), 0);
        loop {
            (0..batch).for_each(|_| work());
            turns += batch;
            let passed = begun.elapsed();
            if passed >= round {
                best = best.min(passed / turns);
                break;
            }
        }
    }
    println!("{name:<48} {best:>12.2?}");
}

fn contract(input: &str) -> Contract {
    Contract::of(&pb::Skill {
        input_schema: input.to_owned(),
        ..Default::default()
    })
    .unwrap()
}

fn part(value: &Value) -> pb::Part {
    pb::Part {
        content: Some(Content::Data(attache::wire::json::to_value(value.clone()))),
        ..Default::default()
    }
}

fn order() -> Value {
    json!({
        "type": "object",
        "properties": {
            "customer": { "type": "string", "pattern": "^[a-z]+$" },
            "items": { "type": "array", "minItems": 1, "items": { "$ref": "#/$defs/item" } },
            "note": { "type": ["string", "null"], "maxLength": 10 },
        },
        "required": ["customer", "items"],
        "additionalProperties": false,
        "$defs": {
            "item": {
                "type": "object",
                "properties": {
                    "price": { "type": "number", "minimum": 0 },
                    "count": { "type": "integer", "enum": [1, 2, 3] },
                },
                "required": ["price"],
            },
        },
    })
}
