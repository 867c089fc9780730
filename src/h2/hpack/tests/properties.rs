//! Both ends of a connection stay in step, whatever lists and table sizes come.

use proptest::prelude::*;

use super::{decode, encode, shown};
use crate::h2::hpack::{Decoder, Encoder, Fields};

/// What happens on a connection.
#[derive(Debug, Clone)]
enum Step {
    /// The peer's SETTINGS.
    TableMax(u32),
    /// A list, of few names and values so that they come again.
    List(Vec<(usize, usize)>),
}

const NAMES: [&str; 12] = [
    ":path",
    ":status",
    "te",
    "grpc-timeout",
    "authorization",
    "x-a",
    "x-b",
    "x-c",
    "x-some-longer-name",
    "x-data-bin",
    "content-type",
    "cookie",
];

fn value(at: usize) -> String {
    match at {
        0 => String::new(),
        1..=60 => format!("value {at}"),
        _ => "long ".repeat(at),
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => prop_oneof![Just(0), 1..200_u32, 200..5000_u32, Just(u32::MAX)].prop_map(Step::TableMax),
        6 => prop::collection::vec((0..NAMES.len(), prop_oneof![0..6_usize, 0..120_usize]), 0..12)
            .prop_map(Step::List),
    ]
}

proptest! {
    #[test]
    fn lists_arrive_as_they_were_sent(steps in prop::collection::vec(step(), 1..60)) {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
        // A second hop, which encodes what the first has decoded, with what is known of it.
        let (mut onward, mut last) = (Encoder::new(), Decoder::new(4096));
        for step in steps {
            match step {
                Step::TableMax(octets) => {
                    encoder.set_table_max(octets);
                    onward.set_table_max(octets / 2);
                }
                Step::List(list) => {
                    let mut fields = Fields::new();
                    for (name, at) in list {
                        fields.push(NAMES[name].as_bytes(), value(at).as_bytes());
                    }
                    let arrived = decode(&mut decoder, &encode(&mut encoder, &fields)).unwrap();
                    prop_assert_eq!(shown(&arrived), shown(&fields));
                    let passed = decode(&mut last, &encode(&mut onward, &arrived)).unwrap();
                    prop_assert_eq!(shown(&passed), shown(&fields));
                    let secret = |fields: &Fields| -> Vec<bool> {
                        fields.iter().map(|field| field.never_indexed).collect()
                    };
                    prop_assert_eq!(secret(&passed), secret(&fields));
                }
            }
        }
    }
}
