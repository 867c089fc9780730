//! The table against the plainest one there is.

use proptest::prelude::*;

use crate::h2::hpack::{ENTRY_OVERHEAD, Fields, table::Table};

/// What happens to a table.
#[derive(Debug, Clone)]
enum Step {
    Resize(usize),
    /// A field with a value of so many octets.
    Insert(usize),
}

const CAPACITY: usize = 4096;

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (0..CAPACITY + 100).prop_map(Step::Resize),
        1 => Just(Step::Resize(CAPACITY)),
        20 => prop_oneof![0..40_usize, 0..1200_usize, 0..CAPACITY + 100].prop_map(Step::Insert),
    ]
}

/// Evicts as section 4.3 says, newest first.
fn evict(model: &mut Vec<Vec<u8>>, most: usize) {
    let size = |model: &Vec<Vec<u8>>| -> usize {
        model
            .iter()
            .map(|value| value.len() + 1 + ENTRY_OVERHEAD)
            .sum()
    };
    while size(model) > most {
        model.pop();
    }
}

proptest! {
    #[test]
    fn what_is_in_the_table_stays_as_it_was(steps in prop::collection::vec(step(), 1..200)) {
        let (mut table, mut max) = (Table::new(CAPACITY, CAPACITY), CAPACITY);
        let mut model: Vec<Vec<u8>> = Vec::new();
        for (at, step) in (0_u8..).zip(steps) {
            match step {
                Step::Resize(octets) => {
                    table.resize(octets);
                    max = octets.min(CAPACITY);
                    evict(&mut model, max);
                }
                Step::Insert(length) => {
                    let value = vec![at; length];
                    let mut fields = Fields::new();
                    fields.push(b"k", &value);
                    table.insert(fields.rows().next().unwrap());
                    let size = length + 1 + ENTRY_OVERHEAD;
                    evict(&mut model, max.saturating_sub(size));
                    if size <= max {
                        model.insert(0, value);
                    }
                }
            }
            let held: Vec<_> = (0..).map_while(|age| table.get(age)).collect();
            prop_assert_eq!(held.len(), model.len());
            for (row, value) in held.iter().zip(&model) {
                prop_assert!(row.name() == b"k" && row.value() == value);
            }
        }
    }
}
